"""Fit a module to another host by a strategy, with a report of what was really carried."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.methods.drawn import orthonormal
from portability.methods.module import ROTATION, ModuleState, equal
from portability.porting.base import LOOKED_AT, Need, Port, PortContext, Strategy, no_texts
from portability.porting.layer_maps import MEASURED, check_layer_map
from portability.porting.roles import by_roles
from portability.porting.strategies import find_strategy
from portability.porting.trained import ComposedStrategy


def port(module: ModuleState, context: PortContext) -> Port:
    """Fit `module`, trained on ``context.origin``, to ``context.receiving``.

    Raises:
        UserError: unknown strategy or layer map, what the strategy refuses, or a result that is no module of
            the receiving host, or carries nothing.
    """
    started = time.perf_counter()
    strategy = find_strategy(context.spec.strategy)
    check_layer_map(context.spec.layer_map)
    module, notes = by_roles(module, context.fresh, context.origin.shape)
    module, _ = with_orthonormal_rows(module)
    done = strategy.fit(module, replace(context, needs=needs_of(strategy, context.spec.layer_map)))
    _check(done, module, context)
    done.module, note = with_orthonormal_rows(done.module)
    done.report.notes[:0] = notes + note
    filled = sum(int(mask.sum()) for mask in done.carried.values())
    done.report.filled_fraction = filled / context.fresh.entries
    done.report.seconds = time.perf_counter() - started
    return done


def with_orthonormal_rows(module: ModuleState) -> tuple[ModuleState, list[str]]:
    """A module whose matrices that act through orthonormal rows (ReFT's) have such, and what a report is to
    say of them. Rows stay so where entries are filled up with zeros, and through orthogonal maps.

    Raises:
        UserError: rows that depend on each other.
    """
    tensors, turned = dict(module.tensors), 0
    found = {slot: tensor for slot, tensor in tensors.items() if slot.role == ROTATION and tensor.any()}
    for slot, tensor in found.items():
        if (tensor @ tensor.mT - torch.eye(len(tensor))).abs().max() < 1e-5:
            continue
        values = torch.linalg.svdvals(tensor)
        if values.min() < 1e-4 * values.max():
            raise UserError(f"{slot.key}: the rows of a projection, which must be orthonormal, depend on "
                            f"each other on the receiving host: its rank {len(tensor)} is too high for what "
                            "is left of them")
        tensors[slot], turned = orthonormal(tensor), turned + 1
    note = [f"{turned} of {len(found)} projections have been given orthonormal rows again, which cutting, "
            "repeating, or maps that are not orthogonal, took from them"] if turned else []
    return module.map(tensors), note


def _check(done: Port, module: ModuleState, context: PortContext) -> None:
    """Refuse a module or masks that are not of the receiving host's slots and shapes, and one that carries
    nothing of `module`."""
    strategy = f"port strategy '{context.spec.strategy}' {context.pair}"
    wanted = {slot: tensor.shape for slot, tensor in context.fresh.tensors.items()}
    for tensors in (done.module.tensors, done.carried):
        found = {slot: tensor.shape for slot, tensor in tensors.items()}
        if wrong := sorted(s.key for s in wanted.keys() | found.keys() if wanted.get(s) != found.get(s)):
            raise UserError(f"{strategy} gave no module of the receiving host: {wrong[0]} is missing, left "
                            "over or of another shape")
    for slot, tensor in done.module.tensors.items():
        if done.carried[slot].dtype != torch.bool or not tensor.isfinite().all():
            raise UserError(f"{strategy} gave numbers that are not finite, or a mask that is not bool, for "
                            f"{slot.key}")
    idle = equal(done.module, context.fresh) and not equal(done.module, module)
    if idle or not any(mask.any() for mask in done.carried.values()):
        raise UserError(f"{strategy} carries nothing: its module is the fresh one of the receiving host")


def needs_of(strategy: Strategy, layer_map: str) -> frozenset[Need]:
    """What a port uses: the strategy, and the layer map where that is measured."""
    return strategy.needs | (LOOKED_AT if layer_map == MEASURED else frozenset())


def strategies_of(name: str, options: Mapping[str, Any]) -> Iterator[Strategy]:
    """A strategy by its name and options, the one that it goes on from, and so on.

    Raises:
        UserError: as `find_strategy`.
    """
    while True:
        yield (strategy := find_strategy(name))
        if not (isinstance(strategy, ComposedStrategy) and isinstance(options, Mapping)):
            return  # of options that are none the strategy says so
        name, options = str(options.get("of", "pad")), options.get("of_options", {})


def check_texts(spec: PortSpec, pair: str) -> None:
    """Refuse a port that cannot do without texts and has none.

    Args:
        pair: both hosts' names, as `PortContext.pair`.

    Raises:
        UserError: it is such a port, or a strategy is unknown.
    """
    strategies = strategies_of(spec.strategy, spec.options)
    if spec.calibration is None and any("text" in one.needs - one.optional for one in strategies):
        raise no_texts(spec, pair)


def fit_head(head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
    """The origin's classification head ("head.weight" (C, d_o), "head.bias" (C,)) for the receiving host, by
    a port's strategy.

    Raises:
        UserError: the strategy has no rule for these widths.
    """
    strategy = find_strategy(context.spec.strategy)
    return strategy.fit_head(head, replace(context, needs=needs_of(strategy, context.spec.layer_map)))
