"""What a port by `procrustes` between two large Llamas of one layer takes, on random weights, beside what is
said of it before work: ``python -m portability.bench.porting``."""

import resource
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import peft
import torch

from portability.bench.extraction import write
from portability.core.command_line import Command, Parser, carry_out
from portability.core.seeds import stream_seed
from portability.core.specs import HostSpec, PortSpec
from portability.execution.processes import in_child
from portability.hosts.devices import cores, without_gaps
from portability.hosts.host import load_host, load_tokenizer
from portability.porting.adapter import caching, load_adapter, port_folder
from portability.porting.calibration import Calibration, calibration
from portability.porting.size import size_of

WORDS = 100  # of a text
HOW = PortSpec("procrustes", "procrustes", "stretch")


def _options(parser: Parser) -> None:
    add, sizes = parser.add_argument, ("WIDTH", "FFN", "HEADS")
    for name in ("origin", "receiving"):
        add(f"--{name}", type=int, nargs=3, metavar=sizes, default=(4096, 11008, 32),
            help="shape of its layer (4096 11008 32)")
    add("--modules", nargs="+", metavar="NAME", default=["q_proj", "k_proj", "v_proj", "o_proj"],
        help="matrices that the LoRA stands beside (q_proj k_proj v_proj o_proj)")
    add("--tokens", type=int, help="that both hosts read (twice the largest of the sizes)")
    add("--threads", type=int, default=cores(), help="at most (all cores)")


COMMAND = Command(
    "Time a port by procrustes between two large Llamas of one layer, on random weights, beside what is said "
    "of it before work.",
    ("python -m portability.bench.porting", "python -m portability.bench.porting --modules up_proj",
     "python -m portability.bench.porting --origin 2048 5504 16 --receiving 2560 6912 20"), add=_options)


def lora(folder: str, origin: HostSpec, modules: Sequence[str]) -> Iterator[str]:
    """A LoRA of rank 8 that plain peft writes."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=8, target_modules=list(modules), init_lora_weights=False,
                               task_type="CAUSAL_LM")
    peft.get_peft_model(load_host(origin).model, settings).save_pretrained(folder)
    yield folder


def texts(host: HostSpec, tokens: int) -> Calibration:
    """Texts of words that are one token each, all of them other ones."""
    words = np.array([word for word in load_tokenizer(host).get_vocab() if word.isalpha()])
    draw = np.random.default_rng(stream_seed("bench", "porting"))
    count = tokens // WORDS + 1
    return calibration("words", [" ".join(draw.choice(words, WORDS)) for _ in range(count)], tokens)


def report(options: Namespace, folder: str) -> str:
    """Seconds and memory of one port, said and taken.

    Raises:
        UserError: shapes between which nothing is ported, or too few tokens.
    """
    torch.set_num_threads(options.threads)
    without_gaps()
    shapes = {"origin": options.origin, "receiving": options.receiving}
    origin, receiving = (host for seed, (name, shape) in enumerate(shapes.items())  # by other processes
                         for host in in_child(write, f"{folder}/{name}", tuple(shape), seed))
    tokens = options.tokens or 2 * max(map(max, shapes.values()))
    found = load_adapter(*in_child(lora, f"{folder}/lora", origin, options.modules))
    read = texts(origin, tokens)
    size = size_of(found, origin, receiving, HOW, read)
    assert size is not None
    peak = partial(resource.getrusage, resource.RUSAGE_SELF)
    held, began, said = peak().ru_maxrss, time.perf_counter(), size.seconds
    port_folder(found, origin, receiving, HOW, load=caching(), texts=read)
    seconds, taken = time.perf_counter() - began, 1024 * (peak().ru_maxrss - held)
    words = " to ".join("x".join(map(str, shape)) for shape in shapes.values())
    return (f"{words}, {' '.join(options.modules)}, {tokens} tokens, {options.threads} threads: "
            f"{seconds:.0f} s (said: {said:.0f}), {taken / 1e9:.2f} GB beside the libraries (said: "
            f"{(size.weights + size.beside) / 1e9:.2f})")


def main(given: Sequence[str] | None = None) -> int:
    """Print the report; gives back the exit code."""
    return carry_out(Parser(COMMAND, prog="python -m portability.bench.porting"), work, given)


def work(options: Namespace) -> None:
    """Print the report.

    Raises:
        UserError: shapes, modules or tokens that do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sys.stdout.write(f"{report(options, folder)}\n")


if __name__ == "__main__":
    sys.exit(main())
