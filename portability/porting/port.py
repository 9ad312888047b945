"""Fit a module to another host, tensor by tensor, with a report of what was really carried.

The libraries' own loaders are not used: they carry nothing from BERT to RoBERTa and half of a module to a deeper host
without a word. A fresh module of the receiving host is filled slot by slot, and both lists of names are checked.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, choose
from portability.core.specs import HostSpec, PortSpec
from portability.methods.module import ModuleState, axis_size
from portability.porting.layer_maps import LAYER_MAPS, average_layers

INPUT_ROLES = ("A", "down_weight", "down_left")  # the host's axes of these are summed over in the forward pass


def summed_over(role: str, axis: str) -> bool:
    """Whether the forward pass sums over this axis: a query meets a prefix's key along the head size alone."""
    return role in INPUT_ROLES or (role == "prefix_key" and axis == "head_dim")


def pad_axis(tensor: Tensor, axis: int, size: int, summed: bool) -> Tensor:
    """Cut an axis at `size`, or fill it up with zeros (our choice, D-05). `summed` changes nothing here.

    Example:
        >>> pad_axis(torch.tensor([1.0, 2.0]), 0, 3, True).tolist()
        [1.0, 2.0, 0.0]
    """
    if size <= tensor.shape[axis]:
        return tensor.narrow(axis, 0, size)
    shape = list(tensor.shape)
    shape[axis] = size - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def repeat_axis(tensor: Tensor, axis: int, size: int, summed: bool) -> Tensor:
    """Cut an axis at `size`, or repeat it from its start; along a summed axis each entry is divided by how often it
    stands there, so a host whose units are repeated alike computes the same (Net2WiderNet: Chen et al. 2016,
    arXiv 1511.05641, section 2.2).

    Example:
        >>> repeat_axis(torch.tensor([1.0, 2.0]), 0, 3, True).tolist()
        [0.5, 2.0, 0.5]
    """
    width = tensor.shape[axis]
    if size <= width:
        return tensor.narrow(axis, 0, size)
    picks = torch.arange(size) % width
    repeated = tensor.index_select(axis, picks)
    if not summed:
        return repeated
    counts = torch.bincount(picks, minlength=width)[picks].to(tensor.dtype)
    return repeated / counts.view([-1 if i == axis else 1 for i in range(tensor.ndim)])


STRATEGIES: dict[str, Callable[[Tensor, int, int, bool], Tensor] | None] = {
    "copy": None,  # same shapes only
    "pad": pad_axis,
    "repeat": repeat_axis,
}


@dataclass
class PortReport:
    """What a port did. Fractions are of the origin module (carried) or of the receiving one (filled), in [0, 1].

    `tensors` maps each receiving slot to its action (carried, mapped, cut, padded, repeated, averaged, fresh) and
    each unused origin slot to "dropped"; `layer_map` gives the origin layers behind each receiving layer.
    """

    name: str
    strategy: str
    layer_map: dict[str, list[list[int]]] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    carried_fraction: float = 0.0  # by number of tensors
    carried_entries_fraction: float = 0.0  # by number of parameters
    carried_norm_fraction: float = 0.0  # by squared norm
    filled_fraction: float = 0.0  # receiving parameters that hold something of the origin
    seconds: float = 0.0
    calibration_examples: int = 0
    effect_fraction: float | None = None  # of a start scaled to the port's change of the logits: its own over the port's

    def summary(self) -> dict[str, Any]:
        """The report for a run's record: everything but the list of tensors, which becomes counts."""
        values = {key: value for key, value in vars(self).items() if key != "tensors"}
        return {**values, "actions": dict(sorted(Counter(self.tensors.values()).items()))}


@dataclass
class Port:
    """A ported module, where in it something was carried (bool tensors), and the report."""

    module: ModuleState
    carried: dict[Slot, Tensor]
    report: PortReport


def port(module: ModuleState, origin: HostSpec, fresh: ModuleState, receiving: HostSpec, spec: PortSpec) -> Port:
    """Fit `module`, trained on `origin`, to `receiving`.

    Args:
        fresh: a module of the same method on the receiving host; its values stay only where the strategy may be
            partial and nothing could be carried.

    Raises:
        UserError: shapes that the strategy cannot map (names both hosts, the slot and the two shapes), a partial
            carry that was not asked for, or nothing carried at all.

    Source: design after the paper's comparison (Sabry & Belz 2024 do not say how shapes are adapted); our choices
    D-05 to D-08.
    """
    started = time.perf_counter()
    choose(spec.strategy, STRATEGIES, "port strategy")
    choose(spec.layer_map, LAYER_MAPS, "layer map")
    work = _Work(module, origin, fresh, receiving, spec)
    tensors, masks = {}, {}
    for stack, layer, site in dict.fromkeys((s.stack, s.layer, s.site) for s in fresh.tensors):
        roles = [slot for slot in fresh.tensors if slot[:3] == (stack, layer, site)]
        for slot, (tensor, mask) in work.fill(roles).items():
            tensors[slot], masks[slot] = tensor, mask
    work.finish(masks)
    work.report.seconds = time.perf_counter() - started
    return Port(fresh.map(tensors), masks, work.report)


class _Work:
    """The state of one port while its slots are filled."""

    def __init__(
        self, module: ModuleState, origin: HostSpec, fresh: ModuleState, receiving: HostSpec, spec: PortSpec
    ):
        self.module, self.origin, self.fresh, self.receiving, self.spec = module, origin, fresh, receiving, spec
        self.report = PortReport(spec.name, spec.strategy)
        self.used: dict[Slot, tuple[slice, ...]] = {}
        self.stacks = _stack_map(module, fresh)
        for stack, source in self.stacks.items():
            depth = (origin.shape.layers.get(source, 1), receiving.shape.layers.get(stack, 1))
            if spec.strategy == "copy" and depth[0] != depth[1]:
                raise UserError(f"cannot copy from '{origin.name}' to '{receiving.name}': "
                                f"{source} has {depth[0]} layers and {stack} has {depth[1]}; use port=pad or port=repeat")
            self.report.layer_map[stack] = LAYER_MAPS[spec.layer_map](*depth)

    def fill(self, slots: list[Slot]) -> dict[Slot, tuple[Tensor, Tensor]]:
        """Tensors and masks for the receiving slots of one (stack, layer, site)."""
        stack, layer, site, _ = slots[0]
        source = self.stacks.get(stack)
        layers = self.report.layer_map[stack][layer] if source is not None else []
        found = [{s.role: s._replace(stack=source, layer=one) for s in slots} for one in layers]
        missing = [s for s in slots if not found or any(place[s.role] not in self.module.tensors for place in found)]
        if missing and not self.spec.partial:
            raise UserError(f"port from '{self.origin.name}' to '{self.receiving.name}': {missing[0].key} has no "
                            f"counterpart in the module; a partial carry must be asked for "
                            f"(port.{self.spec.name}.partial=true)")
        present = [s for s in slots if s not in missing]
        out = {}
        if present:
            values = average_layers([{s.role: self.module.tensors[place[s.role]] for s in present} for place in found])
            out = {s: self._fit(s, values[s.role], [place[s.role] for place in found]) for s in present}
        for slot in missing:
            self.report.tensors[slot.key] = "fresh"
            fresh = self.fresh.tensors[slot].clone()
            out[slot] = (fresh, torch.zeros_like(fresh, dtype=torch.bool))
        return {slot: out[slot] for slot in slots}

    def _fit(self, slot: Slot, tensor: Tensor, sources: list[Slot]) -> tuple[Tensor, Tensor]:
        """One tensor in the receiving shape, and where it holds something of the origin."""
        axes, wanted = self.fresh.axes[slot], self.fresh.tensors[slot].shape
        action = "averaged" if len(sources) > 1 else "carried" if sources[0].layer == slot.layer else "mapped"
        mask = torch.ones_like(tensor, dtype=torch.bool)
        sizes = tuple(tensor.shape)
        change = STRATEGIES[self.spec.strategy]
        if self.module.axes[sources[0]] != axes:
            raise self._misfit(slot, sizes, f"axes {self.module.axes[sources[0]]} and {axes}")
        for axis, (label, size) in enumerate(zip(axes, wanted, strict=True)):
            if tensor.shape[axis] == size:
                continue
            if label == "vocab":
                raise self._misfit(slot, sizes, "the vocabularies differ, and rows of different tokens are not exchanged: "
                                                "leave embedding and head out of the method's sites")
            if axis_size(label, self.receiving.shape) is None:
                raise self._misfit(slot, sizes, f"the method's own axis '{label}' differs: same hyper-parameters needed")
            if change is None:
                raise self._misfit(slot, sizes, "strategy 'copy' needs equal shapes: use port=pad or port=repeat")
            action = "cut" if size < tensor.shape[axis] else {"pad": "padded", "repeat": "repeated"}[self.spec.strategy]
            tensor = change(tensor, axis, size, summed_over(slot.role, label))
            mask = change(mask, axis, size, False)
        kept = tuple(slice(0, min(a, b)) for a, b in zip(sizes, wanted, strict=True))
        self.used |= {source: kept for source in sources}
        self.report.tensors[slot.key] = action
        return tensor.clone(), mask

    def _misfit(self, slot: Slot, sizes: tuple[int, ...], why: str) -> UserError:
        wanted = tuple(self.fresh.tensors[slot].shape)
        return UserError(f"cannot port {slot.key} from '{self.origin.name}' {sizes} to '{self.receiving.name}' "
                         f"{wanted}: {why}")

    def finish(self, masks: Mapping[Slot, Tensor]) -> None:
        """Check both lists of names and fill in the fractions."""
        report, total = self.report, self.module.tensors
        norms = {slot: float(tensor.double().square().sum()) for slot, tensor in total.items()}
        parts = {slot: total[slot][kept] for slot, kept in self.used.items()}
        report.carried_fraction = len(self.used) / len(total)
        report.carried_entries_fraction = sum(part.numel() for part in parts.values()) / self.module.entries
        carried = sum(float(part.double().square().sum()) for part in parts.values())
        report.carried_norm_fraction = carried / sum(norms.values()) if sum(norms.values()) else 0.0
        report.filled_fraction = sum(int(mask.sum()) for mask in masks.values()) / self.fresh.entries
        dropped = [slot for slot in total if slot not in self.used]
        report.tensors |= {f"{slot.key} (origin)": "dropped" for slot in dropped}
        if not self.used or carried == 0.0:
            raise UserError(f"port from '{self.origin.name}' to '{self.receiving.name}' carries nothing: "
                            f"{len(self.used)} of {len(total)} tensors, squared norm {carried:g}")
        sites = {(slot.stack, slot.site, slot.role) for slot in self.used}
        lost = [slot for slot in dropped if (slot.stack, slot.site, slot.role) not in sites]
        if lost and not self.spec.partial:
            raise UserError(f"port from '{self.origin.name}' to '{self.receiving.name}' would lose {lost[0].key} "
                            f"{tuple(total[lost[0]].shape)}: the receiving module has no such place; ask for a partial "
                            f"carry (port.{self.spec.name}.partial=true)")


def _stack_map(module: ModuleState, fresh: ModuleState) -> dict[str, str]:
    """Receiving stack -> origin stack: the same name, or the only one where each side has just one."""
    have = {slot.stack for slot in module.tensors}
    want = {slot.stack for slot in fresh.tensors}
    pairs = {stack: stack for stack in sorted(want & have)}
    single = [stacks - {"shared"} for stacks in (want, have)]
    if all(len(stacks) == 1 for stacks in single) and single[0] != single[1]:
        pairs[single[0].pop()] = single[1].pop()
    return pairs


def fit_head(head: Mapping[str, Tensor], hidden: int, spec: PortSpec) -> dict[str, Tensor]:
    """The origin's classification head (2, d_o) in the receiving width (2, d_r), by the same width strategy.

    Raises:
        UserError: widths differ under strategy 'copy'.
    """
    change = STRATEGIES[choose(spec.strategy, STRATEGIES, "port strategy")]
    width = head["head.weight"].shape[1]
    if change is None and width != hidden:
        raise UserError(f"cannot copy a head of width {width} to width {hidden}; use port=pad or port=repeat")
    weight = head["head.weight"] if change is None else change(head["head.weight"], 1, hidden, True)
    return {"head.weight": weight.clone(), "head.bias": head["head.bias"].clone()}
