"""A host of the same shape whose numbers were disturbed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import within_layer
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import load_plain
from portability.hosts.recipes import Noised, Quantised


def matrices(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and numbers of each matrix, tables among them, shared ones once."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            yield name, parameter.data


def noised(
    model: Any, _: Any, change: Noised, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """Independent normal numbers on each matrix, scaled to the norm that is asked for exactly.

    Raises:
        UserError: a share below 0, or `like` names a host of another shape.
    """
    if change.share is not None and change.share < 0:
        raise UserError(f"noised.share must be 0 or more, got {change.share}")
    other = dict(matrices(load_plain(find(change.like)))) if change.like else {}
    draw, shares = torch.Generator().manual_seed(change.seed), []
    for name, own in matrices(model):
        if change.like and (name not in other or other[name].shape != own.shape):
            raise UserError(f"host '{change.like}' has no {name} of shape {tuple(own.shape)}: noise can be "
                            "like the change of a host of the same shape only")
        norm = (other[name] - own).norm() if change.like else (change.share or 0.0) * own.norm()
        noise = torch.randn(own.shape, generator=draw)
        shares.append(float(norm / own.norm()))
        own += noise * (norm / noise.norm())
    return model, {"mean_share": round(sum(shares) / len(shares), 6)}


def quantised(
    model: Any, _: Any, change: Quantised, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """Matrices inside layers, rounded; embeddings, head and normalisations stay, as is usual.

    Raises:
        UserError: fewer than two bits or more than eight.
    """
    if not 2 <= change.bits <= 8:
        raise UserError(f"quantised.bits must be from 2 to 8, got {change.bits}")
    top, shares = 2 ** (change.bits - 1) - 1, []
    for name, own in matrices(model):
        if within_layer(model.config.model_type, name) is None:
            continue
        parts = []
        for part in own.split(change.group, 1):
            scale = part.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
            parts.append((part / scale).round() * scale)
        new = torch.cat(parts, 1)
        shares.append(float((new - own).norm() / own.norm()))
        own.copy_(new)
    return model, {"mean_share": round(sum(shares) / len(shares), 6)}
