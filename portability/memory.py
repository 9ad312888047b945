"""How many modules fit into a device at once: measured on a real forward pass, not guessed from sizes."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from portability.engine import logits_of
from portability.scorer import Scorer

STATE = 6  # tensors of a member's size: parameters, gradient, clipped gradient, moving average, AdamW's two moments
MARGIN = 1.5  # for what lives beside the activations: gradients on their way, the allocator's gaps (our choice, D-36)


def member_bytes(scorer: Scorer, start: Mapping[str, Tensor], ids: Tensor, mask: Tensor, target: Tensor) -> int:
    """Bytes that one more member of a stack needs: its state, and the activations that its update keeps.

    Both grow linearly with the members: under `vmap` every activation has a member axis, and the host has none.

    Args:
        start: one member's parameters by the scorer's names.
        ids: (B, T) the longest batch of the training set; mask alike; target (B,).
    """
    stacked = {name: value[None] for name, value in start.items()}
    kept = kept_bytes(scorer, stacked, ids[None], mask[None], target[None])
    return int(MARGIN * kept) + STATE * 4 * sum(value.numel() for value in start.values())


def kept_bytes(scorer: Scorer, stacked: Mapping[str, Tensor], ids: Tensor, mask: Tensor, target: Tensor) -> int:
    """Bytes that one forward pass of a stack keeps for its backward pass, the host's own weights not counted.

    Args:
        stacked: parameters (K, ...); ids (K, B, T), mask alike, target (K, B).
    """
    own = {p.untyped_storage().data_ptr() for p in scorer.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss(parameters: dict[str, Tensor], ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(scorer, parameters, ids, mask), target)

    there = {name: value.to(scorer.device).requires_grad_() for name, value in stacked.items()}
    batch = [part.to(scorer.device) for part in (ids, mask, target)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        whole = vmap(loss)(there, *batch)  # held, so that no storage is freed and its address used again
    del whole
    return sum(kept.values())


def free_bytes(device: torch.device, share: float) -> int:
    """Bytes that a worker may still take of a device's memory: what is free, and of it at most its share of the whole."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # ours, and empty
        return int(min(free + held, total * share))
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(int(facts["MemAvailable"].split()[0]) * 1024 * share)
    except FileNotFoundError:  # not Linux: half of all there is
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 * share)


def most_members(one: int, device: torch.device, share: float) -> int:
    """The largest stack of members of `one` bytes each, at least 1: a fifth of what is free stays free."""
    return max(1, int(0.8 * free_bytes(device, share)) // one)
