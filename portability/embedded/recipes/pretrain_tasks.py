"""Rebuilds the embedded sets and hosts of the generated tasks, or makes a smaller host out of a Llama's own text.

`python -m portability.pretrain_tasks`: conf/pretrain_tasks.yaml -> sets -> text of the same world -> for each host: training
on rows of tokens, folder with fp16 weights and a pretrain.json record.

`python -m portability.pretrain_tasks --from TEACHER --to FOLDER`: texts sampled from the teacher -> a narrower and shallower
Llama with the teacher's tokenizer, trained on them. For teachers whose own training text is not at hand (our choice).
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from portability.core.errors import UserError, choose
from portability.core.paths import EMBEDDED, bundled
from portability.core.seeds import stream, stream_seed
from portability.core.specs import HostSpec
from portability.embedded.recipes.curriculum import rate
from portability.embedded.recipes.pretrain import SPECIAL, save_host, update
from portability.hosts.host import load_plain, load_tokenizer
from portability.hosts.sources import HostSource, describe, host_shape
from portability.tasks import generated

log = logging.getLogger(__name__)

CONF = bundled("conf") / "pretrain_tasks.yaml"
POSITIONS = 512
NONE = -100  # stands in rows where there is no token: torch's losses pass over it


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words for both tasks and their text; it adds no special token to a text."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *generated.vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=POSITIONS)


def build_host(shape: Mapping[str, int], settings: Mapping[str, Any], seed: int) -> LlamaForCausalLM:
    """A Llama with the library's initialisation under `seed`.

    Args:
        shape: sizes, by their names in LlamaConfig.
        settings: what else a LlamaConfig is to hold, such as ids of special tokens; `shape` counts where both name a size.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **shape}))


def corpus_rows(tokenizer: PreTrainedTokenizerFast, seed: int, lines: int, length: int) -> Tensor:
    """The text of a seed's world as rows of tokens, (N, length) int64; the rest that fills no row is dropped."""
    encoded = tokenizer(list(generated.corpus(seed, lines)), add_special_tokens=False)["input_ids"]
    flat = [token for line in encoded for token in (*line, tokenizer.eos_token_id)]
    return torch.tensor(flat[: len(flat) // length * length]).view(-1, length)


def sampled_rows(teacher: PreTrainedModel, count: int, length: int, together: int, seed: int) -> Tensor:
    """Texts that a host writes by itself, each token drawn from its probabilities (temperature 1).

    Args:
        length: most tokens of a text, the begin token among them.
        together: texts that are sampled at once.
        seed: of the draws; texts also depend on `together`.

    Returns:
        (count, length) int64; each row starts with the begin token, and `NONE` stands behind an end token.

    Raises:
        UserError: the host has no begin or no end token, or fewer positions than `length`.
    """
    begin, positions = teacher.config.bos_token_id, teacher.config.max_position_embeddings
    if begin is None or teacher.generation_config.eos_token_id is None:
        raise UserError("a teacher's texts need a begin token and an end token; its config.json must name both "
                        "(bos_token_id, eos_token_id)")
    if length > positions:
        raise UserError(f"texts of {length} tokens exceed the teacher's {positions} positions; lower student.length")
    ends = torch.tensor(teacher.generation_config.eos_token_id)
    rows = torch.full((count, length), NONE)
    with torch.random.fork_rng(), tqdm(desc="sampling", total=count, unit="text") as bar:
        torch.manual_seed(seed)
        for at in range(0, count, together):
            part = rows[at : at + together]
            asked = torch.full((len(part), 1), begin)
            found = teacher.generate(asked, attention_mask=torch.ones_like(asked), do_sample=True, temperature=1.0, top_k=0,
                                     top_p=1.0, repetition_penalty=1.0,
                                     max_new_tokens=length - 1, pad_token_id=int(ends.flatten()[0]))
            ended = torch.isin(found[:, 1:], ends).long()
            part[:, : found.shape[1]] = found
            part[:, 1 : found.shape[1]].masked_fill_(ended.cumsum(1) > ended, NONE)  # keeps the end token itself
            bar.update(len(part))
    return rows


def batch_of(rows: Tensor) -> dict[str, Tensor]:
    """What a causal host takes to learn rows (B, T): each token from those before it."""
    return {"input_ids": rows.clamp(min=0), "labels": rows}


def train(
    host: PreTrainedModel, rows: Tensor, spec: Mapping[str, Any], optimiser: Mapping[str, float], name: str
) -> dict[str, Any]:
    """Trains a host in place on rows (N, T) in random order, all of them before any comes again.

    Args:
        spec: `sample` (seed of the order), `steps`, `batch` and `lr`.
        optimiser: the values of AdamW, of clipping and of the warm-up (conf/pretrain_tasks.yaml).

    Returns:
        Mean losses of each 100 updates (nats a token), number of updates, hash of the rows, seconds.
    """
    adam = torch.optim.AdamW(host.parameters(), betas=(optimiser["beta1"], optimiser["beta2"]),
                             weight_decay=optimiser["weight_decay"], fused=True)
    generator, order = stream(spec["sample"], "rows"), torch.empty(0, dtype=torch.int64)
    losses, started = [], time.perf_counter()
    host.train()
    for step in tqdm(range(spec["steps"]), desc=name, unit="update", mininterval=2.0):
        while len(order) < spec["batch"]:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        picks, order = order[: spec["batch"]], order[spec["batch"] :]
        adam.param_groups[0]["lr"] = rate(spec["lr"], (step + 1) / optimiser["warmup"], 1.0, step / spec["steps"])
        losses.append(update(host, adam, batch_of(rows[picks]), optimiser["clip"]))
    return {
        "losses_per_100": [round(statistics.fmean(losses[i : i + 100]), 4) for i in range(0, len(losses), 100)],
        "updates": len(losses),
        "text_sha256": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
        "seconds": round(time.perf_counter() - started, 1),
    }


@torch.no_grad()
def loss_on(host: PreTrainedModel, rows: Tensor, size: int = 50) -> float:
    """Mean loss over all tokens of rows (N, T) but each row's first, nats a token; `size` rows at a time."""
    total = tokens = 0.0
    host.eval()
    for part in rows.split(size):
        count = int((part[:, 1:] != NONE).sum())
        if count:
            total += float(host(**batch_of(part), use_cache=False).loss) * count
        tokens += count
    return total / tokens


def recorded(host: PreTrainedModel) -> dict[str, Any]:
    """What every record says of a host and of the libraries."""
    libraries = (torch, transformers, tokenizers)
    return {"parameters": sum(p.numel() for p in host.parameters()),
            "versions": {library.__name__: library.__version__ for library in libraries}}


def make_host(name: str, conf: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Trains host `name` on the generated text and writes it to ``out/hosts/NAME``; gives back its record."""
    spec, text, tokenizer = conf["hosts"][name], conf["text"], build_tokenizer()
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    host = build_host(spec["shape"], settings, spec["sample"])
    measured = train(host, corpus_rows(tokenizer, conf["seed"], **text), spec, conf["optimiser"], name)
    record = {"name": name, "seed": conf["seed"], **text, **spec, **measured, **recorded(host)}
    log.info("%s: loss %.3f, %.0f s", name, measured["losses_per_100"][-1], measured["seconds"])
    save_host(host, tokenizer, out / "hosts" / name, record)
    return record


def make_student(teacher: Path, folder: Path, conf: Mapping[str, Any]) -> dict[str, Any]:
    """Trains a student on a teacher's own text and writes it to `folder`; gives back its record.

    Raises:
        UserError: the teacher is no Llama, or not larger than the student; `folder` is not empty; or as `sampled_rows`.
    """
    spec, source = conf["student"], describe(HostSource("teacher", path=str(teacher)))
    _check_smaller(source, spec["shape"])
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder (--to)")
    whole, sizes = load_plain(source, "sdpa"), (spec["length"], spec["together"])
    started = time.perf_counter()
    rows = sampled_rows(whole, spec["rows"], *sizes, stream_seed(spec["sample"], "text"))
    held_out = sampled_rows(whole, spec["held_out"], *sizes, stream_seed(spec["sample"], "held out"))
    sampling = round(time.perf_counter() - started, 1)
    student = build_host(spec["shape"], whole.config.to_dict(), spec["sample"])
    measured = train(student, rows, spec, conf["optimiser"], folder.name)
    losses = {"held_out_loss": round(loss_on(student, held_out), 4), "teacher_loss": round(loss_on(whole, held_out), 4)}
    log.info("%s: %s, %.0f s of sampling, %.0f s of training", folder.name, losses, sampling, measured["seconds"])
    record = {"name": folder.name, "teacher": source.fingerprint, **spec, **measured, **losses,
              "tokens": int((rows != NONE).sum()), "sampling_seconds": sampling, **recorded(student)}
    save_host(student, load_tokenizer(source), folder, record)
    return record


def _check_smaller(teacher: HostSpec, shape: Mapping[str, int]) -> None:
    large, small = teacher.shape, host_shape({"model_type": "llama", **shape})
    if large.family != "llama":
        raise UserError(f"the teacher is a {large.family} host; --from takes a llama")
    if small.hidden >= large.hidden or small.layers["decoder"] >= large.layers["decoder"]:
        raise UserError(f"a student of width {small.hidden} and {small.layers['decoder']} layers is not smaller than its "
                        f"teacher ({large.hidden}, {large.layers['decoder']}); set student.shape in another --conf")


def make(args: argparse.Namespace, conf: Mapping[str, Any]) -> None:
    """The student, or the sets and hosts, that the command line asks for."""
    if args.teacher is not None:
        make_student(args.teacher, args.folder, conf)
        return
    for name in args.only or ():
        choose(name, conf["hosts"], "host of the generated tasks")
    generated.write(args.out / "data", conf["seed"])
    for name in conf["hosts"]:
        if args.only is None or name in args.only:
            make_host(name, conf, args.out)


def main() -> None:
    """Parses the command line and makes what was asked for; ends with 2 where the user can put something right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder for data/ and hosts/")
    parser.add_argument("--conf", type=Path, default=CONF)
    parser.add_argument("--only", nargs="+", default=None, help="hosts to make")
    parser.add_argument("--from", type=Path, default=None, dest="teacher", help="a Llama's folder, to make a student of")
    parser.add_argument("--to", type=Path, default=None, dest="folder", help="the student's folder")
    args = parser.parse_args()
    if (args.teacher is None) != (args.folder is None):
        parser.error("--from and --to go together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    try:
        make(args, yaml.safe_load(args.conf.read_text()))
    except UserError as error:
        parser.exit(2, f"{error}\n")
