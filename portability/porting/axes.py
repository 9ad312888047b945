"""Strategies that work tensor by tensor: layers by a layer map, then every axis of the host by one function.

The libraries' own loaders are not used: they carry nothing from BERT to RoBERTa and half of a module to a
deeper host without a word. A fresh module of the receiving host is filled slot by slot, and both lists of
names are checked.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.methods.module import ModuleState, axis_size
from portability.porting.base import Port, PortContext, PortReport, Strategy
from portability.porting.layer_maps import LAYER_MAPS, average_layers

INPUT_ROLES = (  # whose host axes are summed over in the forward pass
    "A", "down_weight", "down_left", "mlp_in", "gate_weight")
KEY_ROLES = ("prefix_key", "mlp_key", "mlp_key_bias")  # of what queries meet
MULTIPLIES = ("magnitude", "ia3_l")  # of several sites in one matrix a part each, such as magnitude_query
OF_NORM = ("weight", "bias")  # a normalisation's own numbers
ChangeAxis = Callable[[Tensor, int, int, bool], Tensor]


def summed_over(role: str, axis: str) -> bool:
    """Whether the forward pass sums over this axis: a query meets a prefix's key along the head size
    alone."""
    return role in INPUT_ROLES or (role in KEY_ROLES and axis == "head_dim")


def stays_as_begun(role: str) -> bool:
    """Whether what is not carried of a role stays as the library begins it, because a zero there would change
    the host.

    Example:
        >>> stays_as_begun("magnitude_query"), stays_as_begun("bias"), stays_as_begun("B_query")
        (True, True, False)
    """
    return role in OF_NORM or role.startswith(MULTIPLIES)


class AxisStrategy(Strategy):
    """A strategy given by what it does to one axis.

    Args:
        change: (tensor, axis, wanted size, whether the forward pass sums over the axis) -> tensor of that
            size; called where the sizes differ. Raises UserError where it has no rule.
        grown: the report's word for a tensor with a longer axis.
        same_depth: whether to refuse hosts of unequal depths.

    Source: design after the comparison of Sabry & Belz (2024), who do not say how shapes are adapted; D-05 to
        D-08.
    """

    def __init__(self, change: ChangeAxis, grown: str, same_depth: bool = False):
        self.change, self.grown, self.same_depth = change, grown, same_depth

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """The module slot by slot.

        Raises:
            UserError: shapes that cannot be mapped, a partial carry that was not asked for, or nothing
                carried.
        """
        work, fresh = _Filling(self, module, context), context.fresh
        found: dict[Slot, tuple[Tensor, Tensor]] = {}
        for place in dict.fromkeys(slot[:3] for slot in fresh.tensors):
            found |= work.fill([slot for slot in fresh.tensors if slot[:3] == place])
        work.finish()
        return Port(fresh.map({slot: tensor for slot, (tensor, _) in found.items()}),
                    {slot: mask for slot, (_, mask) in found.items()}, work.report)

    def fit_head(self, head: Mapping[str, Tensor], hidden: int) -> dict[str, Tensor]:
        """The head with the width changed as an axis that is summed over."""
        weight = head["head.weight"]
        if (width := weight.shape[1]) != hidden:
            try:
                weight = self.change(weight, 1, hidden, True)
            except UserError as error:
                raise UserError(f"cannot fit a head of width {width} to width {hidden}: {error}") from error
        return {"head.weight": weight.clone(), "head.bias": head["head.bias"].clone()}


class _Filling:
    """The state of one port while its slots are filled."""

    def __init__(self, strategy: AxisStrategy, module: ModuleState, context: PortContext):
        self.strategy, self.module, self.context = strategy, module, context
        self.report = PortReport(context.spec.name, context.spec.strategy)
        self.used: dict[Slot, tuple[slice, ...]] = {}  # origin slot -> the part of it that was carried
        self.stacks = _stack_map(module, context.fresh)
        for stack, source in self.stacks.items():
            depths = context.origin.shape.layers.get(source, 1), context.receiving.shape.layers.get(stack, 1)
            if strategy.same_depth and depths[0] != depths[1]:
                raise UserError(f"cannot {context.spec.strategy} {context.pair}: {source} has {depths[0]} "
                                f"layers and {stack} has {depths[1]}; use port=pad or port=repeat")
            self.report.layer_map[stack] = LAYER_MAPS[context.spec.layer_map](*depths)

    def fill(self, slots: list[Slot]) -> dict[Slot, tuple[Tensor, Tensor]]:
        """Tensors and masks for the receiving slots of one (stack, layer, site)."""
        (stack, layer, *_), source, have = slots[0], self.stacks.get(slots[0].stack), self.module.tensors
        # of each origin layer, its slots by the receiving ones
        found = [{s: s._replace(stack=source, layer=one) for s in slots}
                 for one in self.report.layer_map[stack][layer]] if source else []
        present = [s for s in slots if found and all(one[s] in have for one in found)]
        missing = [s for s in slots if s not in present]
        if missing and not self.context.spec.partial:
            raise UserError(f"port {self.context.pair}: {missing[0].key} has no counterpart in the module; "
                            "a partial carry must be asked for (--partial; in a study "
                            f"port.{self.context.spec.name}.partial=true)")
        values = average_layers([{s.role: have[one[s]] for s in present} for one in found]) if present else {}
        out = {s: self._fit(s, values[s.role], [one[s] for one in found]) for s in present}
        for slot in missing:
            self.report.tensors[slot.key] = "fresh"
            fresh = self.context.fresh.tensors[slot].clone()
            out[slot] = (fresh, torch.zeros_like(fresh, dtype=torch.bool))
        return {slot: out[slot] for slot in slots}

    def _fit(self, slot: Slot, tensor: Tensor, sources: list[Slot]) -> tuple[Tensor, Tensor]:
        """One tensor in the receiving shape, and where it holds something of the origin."""
        axes, wanted = self.context.fresh.axes[slot], self.context.fresh.tensors[slot].shape
        sizes, mask = tuple(tensor.shape), torch.ones_like(tensor, dtype=torch.bool)
        action = "averaged" if len(sources) > 1 else "carried" if sources[0].layer == slot.layer else "mapped"
        try:
            if self.module.axes[sources[0]] != axes:
                own = any(" at " in label for label in axes)
                raise UserError("the method's numbers go with the origin's widths alone: turn it into a LoRA "
                                "first (--via lora)" if own
                                else f"axes {self.module.axes[sources[0]]} and {axes}")
            for axis, (label, size) in enumerate(zip(axes, wanted, strict=True)):
                if tensor.shape[axis] == size:
                    continue
                if label == "vocab":
                    raise UserError("the vocabularies differ, and rows of different tokens are not "
                                    "exchanged: leave embedding and head out of the method's sites")
                if axis_size(label, self.context.receiving.shape) is None:
                    raise UserError(f"the method's own axis '{label}' differs: same hyper-parameters needed")
                action = "cut" if size < tensor.shape[axis] else self.strategy.grown
                tensor = self.strategy.change(tensor, axis, size, summed_over(slot.role, label))
                mask = self.strategy.change(mask, axis, size, False)
        except UserError as error:
            raise UserError(f"cannot port {slot.key} from '{self.context.origin.name}' {sizes} to "
                            f"'{self.context.receiving.name}' {tuple(wanted)}: {error}") from error
        if stays_as_begun(slot.role):
            tensor = torch.where(mask, tensor, self.context.fresh.tensors[slot])
        kept = tuple(slice(0, min(a, b)) for a, b in zip(sizes, wanted, strict=True))
        self.used |= {source: kept for source in sources}
        self.report.tensors[slot.key] = action
        return tensor.clone(), mask

    def finish(self) -> None:
        """Check both lists of names and fill in what was carried."""
        report, context, total = self.report, self.context, self.module.tensors
        parts = [total[slot][kept] for slot, kept in self.used.items()]
        whole, carried = (sum(float(part.double().square().sum()) for part in some)
                          for some in (total.values(), parts))
        report.carried_fraction = len(self.used) / len(total)
        report.carried_entries_fraction = sum(part.numel() for part in parts) / self.module.entries
        report.carried_norm_fraction = carried / whole if whole else 0.0
        dropped = [slot for slot in total if slot not in self.used]
        report.tensors |= {f"{slot.key} (origin)": "dropped" for slot in dropped}
        if not self.used or carried == 0.0:
            raise UserError(f"port {context.pair} carries nothing: {len(self.used)} of {len(total)} tensors, "
                            f"squared norm {carried:g}")
        sites = {(slot.stack, slot.site, slot.role) for slot in self.used}
        lost = [slot for slot in dropped if (slot.stack, slot.site, slot.role) not in sites]
        if lost and not context.spec.partial:
            raise UserError(f"port {context.pair} would lose {lost[0].key} {tuple(total[lost[0]].shape)}: "
                            "the receiving module has no such place; ask for a partial carry "
                            f"(--partial; in a study port.{context.spec.name}.partial=true)")


def _stack_map(module: ModuleState, fresh: ModuleState) -> dict[str, str]:
    """Receiving stack -> origin stack: the same name, or the only one where each side has just one."""
    have = {slot.stack for slot in module.tensors}
    want = {slot.stack for slot in fresh.tensors}
    pairs = {stack: stack for stack in sorted(want & have)}
    single = [stacks - {"shared"} for stacks in (want, have)]
    if all(len(stacks) == 1 for stacks in single) and single[0] != single[1]:
        pairs[single[0].pop()] = single[1].pop()
    return pairs
