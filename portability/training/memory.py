"""How many modules fit into a device at once: measured on a real forward pass, not guessed from sizes."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from portability.hosts.devices import free_memory, without_gaps
from portability.tasks.base import TaskScorer

# tensors of a member's size: parameters, gradient, clipped gradient, an average (train.tail), AdamW's two
# moments
STATE = 6
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
# tensors as large as the largest one kept that live beside all of them when the way back begins (D-143)
BESIDE = 2
# on a GPU, times what is kept: gaps, and the graphs' pool beside the memory of ordinary calls (our choice)
CUDA = 3.0
# at most so many times what is alive does the C library hold, which fills the gaps that freed tensors leave
# when something fits into them (largest seen: 3.4, D-143)
GAPS = 3.5


def member_bytes(
    scorer: TaskScorer, start: Mapping[str, Tensor], rows: Sequence[Tensor],
    frozen: Mapping[str, Tensor] = NOTHING
) -> int:
    """Bytes of one more member of a stack that are alive at once: its state, its frozen tensors, and the
    activations that its update keeps, with what is computed beside them.

    Both grow linearly with the members: under `vmap` every activation has a member axis, and the host has
    none.

    Args:
        start: one member's parameters by the scorer's names.
        rows: (B, ...) each, the longest batch of the training set as the scorer makes it.
        frozen: what one member holds beside its parameters, by the scorer's names.
    """
    stacked, beside = ({name: value[None] for name, value in part.items()} for part in (start, frozen))
    kept = kept_bytes(scorer, stacked, [part[None] for part in rows], beside)
    own, fixed = (sum(value.numel() for value in part.values()) for part in (start, frozen))
    alive = CUDA * sum(kept) if scorer.device.type == "cuda" else sum(kept) + BESIDE * max(kept, default=0)
    return int(alive) + 4 * (STATE * own + fixed)


def kept_bytes(
    scorer: TaskScorer, stacked: Mapping[str, Tensor], rows: Sequence[Tensor],
    frozen: Mapping[str, Tensor] = NOTHING
) -> list[int]:
    """Bytes of each tensor that one forward pass of a stack keeps for its backward pass, the host's own
    weights and the members' frozen tensors not counted.

    Args:
        stacked: parameters (K, ...), frozen alike; rows (K, B, ...) each.
    """
    beside = {name: value.to(scorer.device) for name, value in frozen.items()}
    own = {p.untyped_storage().data_ptr() for p in (*scorer.parameters(), *beside.values())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    there = {name: value.to(scorer.device).requires_grad_() for name, value in stacked.items()}
    batch = [part.to(scorer.device) for part in rows]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # held, so that no address is used twice
        whole = scorer.each(lambda *member: scorer.loss(*member))(there | beside, *batch)
    del whole
    return list(kept.values())


def free_bytes(device: torch.device, share: float) -> int:
    """Bytes that a worker may still take of a device's memory: what is free, and of it at most its share of
    the whole."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(min(free, total * share))
    return int(_available() * share)


@functools.cache
def _available() -> int:
    """Bytes that were free when this process first asked: later, what it freed stays with it and would not be
    seen."""
    return free_memory()


def room_of(device: torch.device, share: float) -> int:
    """Bytes that a stack may take: a fifth of what is free stays free."""
    return int(0.8 * free_bytes(device, share))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory; on a CPU that is a RuntimeError like others, known by its words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def stack_size(one: int, wanted: int, device: torch.device, share: float) -> int:
    """How many of the `wanted` members, of `one` bytes alive each, a stack may have, 0 where not even one
    fits into the `room`. On a CPU, where all of them might not fit with the gaps that the C library leaves,
    it leaves none from now on in this process."""
    room = room_of(device, share)
    if device.type == "cuda" or GAPS * one * wanted <= room:
        return min(wanted, room // one)
    return min(wanted, room // (one if without_gaps() else int(GAPS * one)))
