"""A host trained further: on running text, or towards another host's states."""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.attention import body
from portability.hosts.host import load_plain
from portability.hosts.recipes import Continued, Distilled
from portability.porting.calibration import read_texts


def continued(
    model: Any, tokenizer: Any, change: Continued, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """An update reads windows of the texts, one behind the other with the end token between, at places drawn
    by the seed.

    Raises:
        UserError: a host that is no decoder, or texts shorter than a window.
    """
    if set(FAMILIES[model.config.model_type].stacks) != {"decoder"}:
        raise UserError(f"a {model.config.model_type} host cannot be trained further on running text: only "
                        "decoders such as gpt2 and llama are")
    ids: list[int] = []
    for text in read_texts(Path(change.texts).expanduser()):
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    if len(ids) <= change.length:
        raise UserError(f"{change.texts} holds {len(ids)} tokens, and one window takes {change.length}")
    _check_length(model, change.length)
    drawn = random.Random(change.seed)

    def losses() -> Iterable[Tensor]:
        while True:
            places = [drawn.randrange(len(ids) - change.length) for _ in range(change.windows)]
            rows = torch.tensor([ids[place : place + change.length] for place in places])
            yield model(input_ids=rows, labels=rows, use_cache=False).loss

    return model, {"tokens": len(ids), **_fit(model, losses(), change)}


def distilled(
    model: Any, tokenizer: Any, change: Distilled, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """The loss is the squared distance of last states over that of the other host's states from 0, summed
    over the tokens of texts drawn by the seed (our choice).

    Raises:
        UserError: a host with two stacks, or the other host has another width or vocabulary.
    """
    if FAMILIES[model.config.model_type].seq2seq:
        raise UserError(f"a {model.config.model_type} host cannot be trained towards another's states: only "
                        "hosts with one stack are")
    _check_length(model, change.length)
    like = load_plain(find(change.like))
    for key in ("model_type", "hidden_size", "vocab_size"):
        own, other = (getattr(one.config, key, None) for one in (model, like))
        if own != other or own is None:
            raise UserError(f"a host cannot be trained towards '{change.like}': its {key} is {other}, and "
                            f"this one's {own}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    texts, drawn = read_texts(Path(change.texts).expanduser()), random.Random(change.seed)
    if not texts:
        raise UserError(f"{change.texts} holds no text")
    whole = FAMILIES[model.config.model_type].scoring == "head"

    def losses() -> Iterable[Tensor]:
        while True:
            batch = tokenizer(drawn.choices(texts, k=change.batch), padding=True, truncation=True,
                              max_length=change.length, return_tensors="pt")
            given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            real = batch["attention_mask"].bool()
            with torch.no_grad():
                wanted = (like if whole else body(like))(**given).last_hidden_state[real]
            states = (model if whole else body(model))(**given).last_hidden_state[real]
            yield (states - wanted).square().sum() / wanted.square().sum()

    return model, _fit(model, losses(), change)


def _check_length(model: Any, length: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise UserError(f"length is {length}, and the host has {positions} positions")


def _fit(model: Any, losses: Iterable[Tensor], change: Continued | Distilled) -> dict[str, Any]:
    """All weights by AdamW at a constant rate, gradients clipped to norm 1, with the dropout that the host's
    config.json says, as in its pretraining (our choice), drawn by the recipe's seed.

    Raises:
        UserError: the loss is no number any more.
    """
    started, seen = time.perf_counter(), list[float]()
    adam = torch.optim.AdamW(model.parameters(), lr=change.learning_rate)
    model.requires_grad_(True).train()
    found = iter(losses)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(change.seed)
        for _ in tqdm(range(change.updates), desc="trained further", unit="update", mininterval=2.0):
            loss = next(found)
            if not math.isfinite(float(loss.detach())):
                raise UserError(f"the loss of update {len(seen) + 1} is {float(loss.detach())}; lower "
                                "learning_rate")
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            seen.append(float(loss.detach()))
    tenth = max(1, len(seen) // 10)
    return {"first_loss": round(sum(seen[:tenth]) / tenth, 4),
            "last_loss": round(sum(seen[-tenth:]) / tenth, 4),
            "seconds": round(time.perf_counter() - started, 1)}
