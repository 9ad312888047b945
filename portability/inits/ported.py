"""Starts without an origin, and with the origin's module as the port gives it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.inits.base import InitContext, InitialModule
from portability.methods.module import equal


def scratch(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The library's own initialisation (of LoRA: Hu et al. 2021, section 4.1)."""
    return InitialModule(context.fresh())


def ported(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The origin's trained module, fitted by the port strategy (Sabry & Belz 2024, abstract)."""
    done = context.port()
    return InitialModule(done.module, done.report)


def shuffled(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The ported module with its layers in a random other order, per stack (our control: does the order
    matter?).

    Raises:
        UserError: every layer is like every other, so there is nothing to shuffle.
    """
    done = context.port()
    generator = stream(*context.stream, "shuffle")
    tensors = dict(done.module.tensors)
    for stack, depth in context.receiving.shape.layers.items():
        tensors |= _reordered({s: t for s, t in tensors.items() if s.stack == stack}, depth, generator)
    module = done.module.map({slot: tensor.clone() for slot, tensor in tensors.items()})
    if equal(module, done.module):
        raise UserError(f"init 'shuffled' has no layers to exchange: all layers of the port to "
                        f"'{context.receiving.name}' are alike")
    return InitialModule(module, done.report)


def _reordered(tensors: Mapping[Slot, Tensor], depth: int, generator: torch.Generator) -> dict[Slot, Tensor]:
    """One stack's tensors with the layers in an order that changes something, or as they are where none does.

    A port may fill two layers with the same tensors, so an exchange of these two would be no change.
    """
    for _ in range(100):
        order = torch.randperm(depth, generator=generator).tolist()
        moved = {slot: tensors[slot._replace(layer=order[slot.layer])] for slot in tensors}
        if any(not torch.equal(moved[slot], tensors[slot]) for slot in tensors):
            return moved
    return dict(tensors)
