"""A start with the ported module's distribution of numbers, and none of its values in their places."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portability.core.errors import choose
from portability.core.seeds import stream
from portability.inits.base import InitContext, InitialModule
from portability.methods.module import ModuleState

FURTHEST = 11  # powers of two by which a sample is scaled at most (our choice)


def sampled(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """Numbers from the same distribution as the ported module (Sabry & Belz 2024, abstract; which
    distribution is our choice).

    Per tensor, on the carried entries only and before any padding: ``law: normal`` draws from N(mean, std)
    with std of ddof 0, ``law: permute`` shuffles the entries. With ``match: function_norm`` the whole module
    is then scaled so that it changes the logits as much as the ported one (D-09).

    Raises:
        UserError: unknown law or match.
    """
    done = context.port()
    draw = DISTRIBUTIONS[choose(str(options.get("law")), DISTRIBUTIONS, "law of sampling "
                                                                        "(init.sampled.options.law)")]
    generator = stream(*context.stream, "sample")
    tensors = {}
    for slot, tensor in done.module.tensors.items():
        mask, drawn = done.carried[slot], tensor.clone()
        if mask.any():
            drawn[mask] = draw(tensor[mask], generator)
        tensors[slot] = drawn
    module = done.module.map(tensors)
    if (match := options.get("match")) is None:
        return InitialModule(module, done.report)
    choose(str(match), ("function_norm",), "match of sampling")
    target = context.change(done.module)
    module = match_change(module, target, context.change)
    fraction = context.change(module) / target if target else 1.0
    examples = context.calibration_examples
    report = replace(done.report, calibration_examples=examples, effect_fraction=fraction)
    return InitialModule(module, report)


def _normal(entries: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) entries from the normal distribution with the mean and standard deviation of these (n,)."""
    noise = torch.randn(entries.shape, generator=generator, dtype=entries.dtype)
    return entries.mean() + noise * entries.std(correction=0)


def _permute(entries: Tensor, generator: torch.Generator) -> Tensor:
    """The (n,) entries in another order."""
    return entries[torch.randperm(entries.numel(), generator=generator)]


Distribution = Callable[[Tensor, torch.Generator], Tensor]
DISTRIBUTIONS: dict[str, Distribution] = {"normal": _normal, "permute": _permute}


def match_change(module: ModuleState, target: float, change: Callable[[ModuleState], float]) -> ModuleState:
    """The module times one factor, with which it changes the logits by `target`.

    The factor is found by bisection in log2 between the first two powers of two, going outwards from 1, that
    have the target between them. Where none up to 2^FURTHEST has, it is the power whose change comes nearest
    (D-122).

    Args:
        change: module -> norm of the logit change it makes.
    """
    def scaled(power: float) -> ModuleState:
        return module.map({slot: tensor * 2.0**power for slot, tensor in module.tensors.items()})

    changes = {0.0: change(module)}
    reached = changes[0.0] >= target
    step = -1.0 if reached else 1.0
    for power in step * np.arange(FURTHEST):  # outwards, because far out the change may turn back
        changes[power + step] = change(scaled(power + step))
        if (changes[power + step] >= target) != reached:
            low, high = sorted((power, power + step))
            break
    else:
        return scaled(min(changes, key=lambda power: abs(changes[power] - target)))
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if change(scaled(middle)) < target else (low, middle)
    return scaled((low + high) / 2)
