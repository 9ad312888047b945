"""What all recipes of embedded hosts share: a tokenizer of whole words, the updates, the folder, the command
line.
"""

import json
import logging
import math
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from portability.core.command_line import Command, Parser, carry_out
from portability.core.errors import UserError, validate_choice
from portability.core.paths import EMBEDDED

POSITIONS = 512  # most tokens of a text
SPECIAL = ("<pad>", "</s>", "<unk>")
Conf = Mapping[str, Any]  # a recipe's file in conf/, or a part of it


def word_tokenizer(
    words: Sequence[str], splitter: pre_tokenizers.PreTokenizer, **more: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words for texts of at most POSITIONS tokens; it adds no special token to a text.

    Args:
        more: what else PreTrainedTokenizerFast is to know.
    """
    ids = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=POSITIONS, **special, **more)


def fresh(cls: type[PreTrainedModel], config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A host with the library's initialisation under `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(config)


def rate(peak: float, warm: float, share: float, done: float) -> float:
    """The learning rate: a share of the peak, warmed up, on a cosine at last.

    Args:
        peak: the host's learning rate.
        warm: how much of the warm-up is over; above 1 means all of it.
        share: the present share of the peak, in [0, 1].
        done: how much of the cosine is over, in [0, 1]; 0 before it.

    Example:
        >>> rate(1.0, 0.1, 1.0, 0.0), rate(1.0, 9.0, 0.5, 0.0), round(rate(1.0, 9.0, 0.5, 0.5), 2)
        (0.1, 0.5, 0.25)
    """
    return peak * min(1.0, warm) * share * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    host: PreTrainedModel, batches: Iterable[tuple[float, Mapping[str, Tensor]]], optimiser: Conf, total: int,
    name: str
) -> dict[str, Any]:
    """Train a host in place by AdamW.

    Args:
        batches: of every update, its learning rate and what the host takes, labels included.
        optimiser: beta1, beta2, weight_decay and clip, the gradient's largest norm.
        total: updates at most, for the progress bar.

    Returns:
        Mean losses of each 100 updates (nats a token), number of updates, seconds.
    """
    adam = torch.optim.AdamW(host.parameters(), betas=(optimiser["beta1"], optimiser["beta2"]),
                             weight_decay=optimiser["weight_decay"], fused=True)
    losses, started = [], time.perf_counter()
    host.train()
    bar = tqdm(batches, desc=name, total=total, unit="update", mininterval=2.0)
    for adam.param_groups[0]["lr"], batch in bar:
        loss = host(**batch, use_cache=False).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(host.parameters(), optimiser["clip"])
        adam.step()
        losses.append(float(loss.detach()))
    means = [round(statistics.fmean(losses[i : i + 100]), 4) for i in range(0, len(losses), 100)]
    seconds = round(time.perf_counter() - started, 1)
    return {"losses_per_100": means, "updates": len(losses), "seconds": seconds}


def save(
    host: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, record: Conf
) -> dict[str, Any]:
    """Write a Hugging Face folder with fp16 weights and pretrain.json, the record with size and versions, and
    give that back.
    """
    libraries = (torch, transformers, tokenizers)
    record = {**record, "parameters": sum(p.numel() for p in host.parameters()),
              "versions": {library.__name__: library.__version__ for library in libraries}}
    folder.mkdir(parents=True, exist_ok=True)
    host.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def write_sets(folder: Path, sets: Mapping[str, Mapping[str, Sequence[Mapping[str, object]]]]) -> None:
    """Write sets (name -> split -> rows) as ``folder/NAME/SPLIT.jsonl``, one row a line."""
    for name, splits in sets.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(
    text: str, conf: Path, make_sets: Callable[[Conf, Path], None],
    make_host: Callable[[str, Conf, Path], Any],
    make_student: Callable[[Path, Path, Conf], Any] | None = None,
) -> None:
    """Parse the command line, and write the sets and hosts, or the student, that it asks for; ends with 2
    where the user can put something right.

    Args:
        text: what --help says first.
    """
    parser = Parser(Command(text, level=logging.INFO), prog=f"python -m portability.{conf.stem}")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder for data/ and hosts/")
    parser.add_argument("--conf", type=Path, default=conf, help="numbers of hosts and sets")
    parser.add_argument("--only", nargs="+", default=None, help="hosts to make")
    if make_student is not None:
        parser.add_argument("--from", type=Path, help="a Llama's folder, to make a student of")
        parser.add_argument("--to", type=Path, help="the student's folder")

    def work(args: Namespace) -> None:
        torch.set_num_threads(1)
        settings = yaml.safe_load(args.conf.read_text())
        teacher, student = (vars(args).get(end) for end in ("from", "to"))
        if (teacher is None) != (student is None):
            raise UserError("--from and --to go together")
        if make_student is not None and teacher and student:
            make_student(teacher, student, settings)
            return
        for name in args.only or ():
            validate_choice(name, settings["hosts"], f"host of {args.conf.name}")
        make_sets(settings, args.out)
        for name in settings["hosts"]:
            if args.only is None or name in args.only:
                make_host(name, settings, args.out)

    if code := carry_out(parser, work):
        sys.exit(code)
