"""Rebuilds the embedded sets and hosts of the generated tasks, or makes a smaller host out of a Llama's own
text.

`python -m portability.pretrain_tasks`: conf/pretrain_tasks.yaml -> sets -> text of the same world -> for each
host: training on rows of tokens, folder with fp16 weights and a pretrain.json record.

`python -m portability.pretrain_tasks --from TEACHER --to FOLDER`: texts sampled from the teacher -> a
narrower and shallower Llama with the teacher's tokenizer, trained on them. For teachers whose own training
text is not at hand (our choice).
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from portability.core.errors import UserError
from portability.core.paths import bundled
from portability.core.seeds import stream, stream_seed
from portability.embedded.recipes import generated, training
from portability.embedded.recipes.training import Conf
from portability.hosts.host import load_plain, load_tokenizer
from portability.hosts.sources import HostSource, describe, host_shape

log = logging.getLogger(__name__)

CONF = bundled("conf") / "pretrain_tasks.yaml"
NONE = -100  # stands in rows where there is no token: torch's losses pass over it


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words for both tasks and their text."""
    return training.word_tokenizer(generated.vocabulary(), pre_tokenizers.WhitespaceSplit())


def corpus_rows(tokenizer: PreTrainedTokenizerFast, seed: int, lines: int, length: int) -> Tensor:
    """The text of a seed's world as rows of tokens, (N, length) int64; the rest that fills no row is dropped.
    """
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
        raise UserError("a teacher's texts need a begin token and an end token: name both in its config.json")
    if length > positions:
        raise UserError(f"texts of {length} tokens exceed the teacher's {positions} positions; shorten them")
    ends = torch.tensor(teacher.generation_config.eos_token_id)
    rows = torch.full((count, length), NONE)
    with torch.random.fork_rng(), tqdm(desc="sampling", total=count, unit="text") as bar:
        torch.manual_seed(seed)
        for at in range(0, count, together):
            part = rows[at : at + together]
            asked = torch.full((len(part), 1), begin)
            found = teacher.generate(
                asked, attention_mask=torch.ones_like(asked), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, repetition_penalty=1.0, max_new_tokens=length - 1,
                pad_token_id=int(ends.flatten()[0]))
            ended = torch.isin(found[:, 1:], ends).long()
            part[:, : found.shape[1]] = found
            part[:, 1 : found.shape[1]].masked_fill_(ended.cumsum(1) > ended, NONE)  # keeps the end token
            bar.update(len(part))
    return rows


def batch_of(rows: Tensor) -> dict[str, Tensor]:
    """What a causal host takes to learn rows (B, T): each token from those before it."""
    return {"input_ids": rows.clamp(min=0), "labels": rows}


def batches(rows: Tensor, spec: Conf, warmup: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Learning rates and batches of rows (N, T) in random order, all of them before any comes again.

    Args:
        spec: `sample` (seed of the order), `steps`, `batch` and `lr`.
        warmup: updates.
    """
    generator = stream(spec["sample"], "rows")
    epochs = math.ceil(spec["steps"] * spec["batch"] / len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(epochs)])
    for step, picks in enumerate(order.split(spec["batch"])[: spec["steps"]]):
        yield training.rate(spec["lr"], (step + 1) / warmup, 1.0, step / spec["steps"]), batch_of(rows[picks])


def train(host: PreTrainedModel, rows: Tensor, spec: Conf, optimiser: Conf, name: str) -> dict[str, Any]:
    """Trains a host in place on rows (N, T) as `batches` gives them; what `fit` measures, and the hash of the
    rows.
    """
    measured = training.fit(host, batches(rows, spec, optimiser["warmup"]), optimiser, spec["steps"], name)
    return {**measured, "text_sha256": hashlib.sha256(rows.numpy().tobytes()).hexdigest()}


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


def make_host(name: str, conf: Conf, out: Path) -> dict[str, Any]:
    """Trains host `name` on the generated text and writes it to ``out/hosts/NAME``; gives back its record."""
    spec, text, tokenizer = conf["hosts"][name], conf["text"], build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=training.POSITIONS, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **spec["shape"])
    host = training.fresh(LlamaForCausalLM, config, spec["sample"])
    measured = train(host, corpus_rows(tokenizer, conf["seed"], **text), spec, conf["optimiser"], name)
    log.info("%s: loss %.3f, %.0f s", name, measured["losses_per_100"][-1], measured["seconds"])
    record = {"name": name, "seed": conf["seed"], **text, **spec, **measured}
    return training.save(host, tokenizer, out / "hosts" / name, record)


def make_student(teacher: Path, folder: Path, conf: Conf) -> dict[str, Any]:
    """Trains a student on a teacher's own text and writes it to `folder`; gives back its record.

    Raises:
        UserError: the teacher is no Llama, or not larger than the student; `folder` is not empty; or as
            `sampled_rows`.
    """
    spec, source = conf["student"], describe(HostSource("teacher", path=str(teacher)))
    large, small = source.shape, host_shape({"model_type": "llama", **spec["shape"]})
    if large.family != "llama":
        raise UserError(f"the teacher is a {large.family} host; --from takes a llama")
    if small.hidden >= large.hidden or small.layers["decoder"] >= large.layers["decoder"]:
        raise UserError("the student is not smaller than its teacher; set student.shape in another --conf")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder (--to)")
    whole, started = load_plain(source, "sdpa"), time.perf_counter()
    rows, held_out = (
        sampled_rows(whole, spec[count], spec["length"], spec["together"], stream_seed(spec["sample"], use))
        for count, use in (("rows", "text"), ("held_out", "held out")))
    sampling = round(time.perf_counter() - started, 1)
    config = LlamaConfig(**{**whole.config.to_dict(), **spec["shape"]})
    student = training.fresh(LlamaForCausalLM, config, spec["sample"])
    measured = train(student, rows, spec, conf["optimiser"], folder.name)
    losses = {f"{name}_loss": round(loss_on(host, held_out), 4)
              for name, host in (("held_out", student), ("teacher", whole))}
    log.info("%s: %s, %.0f s sampling, %.0f s training", folder.name, losses, sampling, measured["seconds"])
    record = {"name": folder.name, "teacher": source.fingerprint, **spec, **measured, **losses,
              "tokens": int((rows != NONE).sum()), "sampling_seconds": sampling}
    return training.save(student, load_tokenizer(source), folder, record)


def make_sets(conf: Conf, out: Path) -> None:
    """Writes both tasks as `data/<task>/<split>.jsonl`, the same bytes for the same seed."""
    training.write_sets(out / "data", generated.sets(conf["seed"]))


def main() -> None:
    """Entry point."""
    training.command(str(__doc__), CONF, make_sets, make_host, make_student)
