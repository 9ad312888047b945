"""What an extraction from one layer of a large Llama takes, on random weights: a 13B's for a 7B's, as in the
second paper, unless other shapes are named: ``python -m portability.bench.extraction``."""

import resource
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from portability.core.command_line import Command, Parser, carry_out
from portability.core.errors import UserError
from portability.core.seeds import stream_seed
from portability.core.specs import HostSpec
from portability.execution.processes import in_child
from portability.hosts.devices import cores
from portability.hosts.host import load_tokenizer
from portability.hosts.sources import HostSource, describe
from portability.inits.extraction import ExtractionOptions, extract
from portability.run import compose
from portability.tasks.base import Answered

ANSWER = 8  # last tokens of a seed, which are its answer


def _options(parser: Parser) -> None:
    add, sizes = parser.add_argument, ("WIDTH", "FFN", "HEADS")
    add("--teacher", type=int, nargs=3, metavar=sizes, default=(5120, 13824, 40),
        help="shape of its layer (5120 13824 40)")
    add("--student", type=int, nargs=3, metavar=sizes, default=(4096, 11008, 32),
        help="shape of its layer (4096 11008 32)")
    add("--seeds", type=int, default=32, help="seed examples (32)")
    add("--tokens", type=int, default=200, help=f"of a seed, of which {ANSWER} are its answer (200)")
    add("--rank", type=int, default=16, help="of the pairs (16)")
    add("--threads", type=int, default=cores(), help="at most (all cores)")


COMMAND = Command(
    "Time an extraction from one layer of a large Llama, on random weights: a 13B's for a 7B's, as in the "
    "second paper, unless other shapes are named.",
    ("python -m portability.bench.extraction",
     "python -m portability.bench.extraction --teacher 4096 11008 32 --student 2048 5504 16",
     "python -m portability.bench.extraction --seeds 8 --tokens 100 --threads 2"), add=_options)


def write(folder: str, shape: tuple[int, int, int], seed: int = 0) -> Iterator[HostSpec]:
    """A Llama of one layer in bf16 with a small vocabulary."""
    width, ffn, heads = shape
    tokenizer = load_tokenizer(compose([]).grid.pairs[0][0])
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=width, intermediate_size=ffn, num_attention_heads=heads,
                         num_hidden_layers=1, vocab_size=len(tokenizer))
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield describe(HostSource(Path(folder).name, path=folder))


def report(options: Namespace, folder: str) -> str:
    """Seconds, and this process's largest memory, of one extraction.

    Raises:
        UserError: shapes between which nothing can be extracted.
    """
    if options.tokens <= ANSWER:
        raise UserError(f"--tokens must be above {ANSWER}, got {options.tokens}")
    shapes = {"teacher": options.teacher, "student": options.student}
    teacher, student = (host for name, shape in shapes.items()  # made by processes of their own
                        for host in in_child(write, f"{folder}/{name}", tuple(shape)))
    draw = np.random.default_rng(stream_seed("bench", "extraction"))
    vocabulary = len(load_tokenizer(teacher))
    seeds = [Answered(draw.integers(3, vocabulary, options.tokens).tolist(), start=options.tokens - ANSWER)
             for _ in range(options.seeds)]
    wanted = ExtractionOptions(options.rank, sites=("attention", "ffn"))
    _, found = extract(teacher, student, seeds, wanted, 0, free=lambda: options.threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    words = " to ".join("x".join(map(str, shape)) for shape in shapes.values())
    return (f"{words}, {options.seeds} seeds of {options.tokens} tokens, {options.threads} threads: "
            f"{found.seconds:.1f} s, {peak / 1e9:.2f} GB at most in all")


def main(given: Sequence[str] | None = None) -> int:
    """Print the report; gives back the exit code."""
    return carry_out(Parser(COMMAND, prog="python -m portability.bench.extraction"), work, given)


def work(options: Namespace) -> None:
    """Print the report.

    Raises:
        UserError: shapes or seeds that do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sys.stdout.write(f"{report(options, folder)}\n")


if __name__ == "__main__":
    sys.exit(main())
