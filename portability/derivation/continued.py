"""A host trained further on running text."""

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.recipes import Continued
from portability.porting.calibration import read_texts


def continued(
    model: Any, tokenizer: Any, change: Continued, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """All weights by AdamW at a constant rate, gradients clipped to norm 1; an update reads windows of the
    texts, one behind the other with the end token between, at places drawn by the seed.

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
    drawn, started, losses = random.Random(change.seed), time.perf_counter(), []
    adam = torch.optim.AdamW(model.parameters(), lr=change.learning_rate)
    model.requires_grad_(True).train()
    for _ in tqdm(range(change.updates), desc="trained further", unit="update", mininterval=2.0):
        places = [drawn.randrange(len(ids) - change.length) for _ in range(change.windows)]
        rows = torch.tensor([ids[place : place + change.length] for place in places],
                            device=model.device)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        losses.append(float(loss.detach()))
    tenth = max(1, len(losses) // 10)
    return model, {"tokens": len(ids), "first_loss": round(sum(losses[:tenth]) / tenth, 4),
                   "last_loss": round(sum(losses[-tenth:]) / tenth, 4),
                   "seconds": round(time.perf_counter() - started, 1)}
