"""Strategies that work layer by layer and tensor by tensor: which layers feed which is the layer map's to
say, what becomes of a tensor the strategy's. Here: those that give every axis of the host its size by one
function.

The libraries' own loaders are not used: they carry nothing from BERT to RoBERTa and half of a module to a
deeper host without a word. A fresh module of the receiving host is filled slot by slot, and both lists of
names are checked.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.methods.module import ModuleState, axis_size
from portability.porting.base import ORIGIN, Port, PortContext, PortReport, Strategy, no_options
from portability.porting.layer_maps import average_layers, check_mixed, stack_map

INPUT_ROLES = (  # whose host axes are summed over in the forward pass
    "A", "down_weight", "down_left", "mlp_in", "gate_weight", "source_weight")
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


class Placed(NamedTuple):
    """A tensor of the receiving module, where it holds something of the origin (bool, its shape), and the
    report's word for what was done."""

    tensor: Tensor
    carried: Tensor
    action: str


class LayerwiseStrategy(Strategy):
    """A strategy that makes each site of a layer out of the same site of one or several origin layers.

    Attributes:
        same_depth: whether it refuses hosts of unequal depths.
    """

    same_depth = False

    @abstractmethod
    def place(self, work: "Filling", found: Sequence[Mapping[Slot, Slot]]) -> dict[Slot, Placed]:
        """The tensors of one (stack, layer, site).

        Args:
            found: of each origin layer behind it: receiving slot -> origin slot.

        Raises:
            UserError: shapes or numbers for which the strategy has no rule.
        """

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """The module slot by slot.

        Raises:
            UserError: as `Filling.port` and `place`.
        """
        return Filling(self, module, context).port()


class AxisStrategy(LayerwiseStrategy):
    """A strategy given by what it does to one axis; several layers that become one are averaged before.

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
        """See LayerwiseStrategy.fit; there are no options."""
        no_options(context.spec)
        return super().fit(module, context)

    def place(self, work: "Filling", found: Sequence[Mapping[Slot, Slot]]) -> dict[Slot, Placed]:
        """See LayerwiseStrategy.place."""
        have = work.module.tensors
        values = average_layers([{s.role: have[own] for s, own in one.items()} for one in found],
                                work.context.sums)
        return {slot: self._fit(work, slot, values[slot.role], [one[slot] for one in found])
                for slot in found[0]}

    def _fit(self, work: "Filling", slot: Slot, tensor: Tensor, sources: list[Slot]) -> Placed:
        """One tensor in the receiving shape."""
        fresh, shape = work.context.fresh, work.context.receiving.shape
        axes, wanted = fresh.axes[slot], fresh.tensors[slot].shape
        sizes, mask, action = tuple(tensor.shape), torch.ones_like(tensor, dtype=torch.bool), ""
        with work.refusing(slot, sizes):
            work.check_axes(slot, sources[0])
            for axis, (label, size) in enumerate(zip(axes, wanted, strict=True)):
                if tensor.shape[axis] == size:
                    continue
                if label == "vocab":
                    raise UserError("the vocabularies differ, and rows of different tokens are not "
                                    "exchanged: leave embedding and head out of the method's sites")
                if axis_size(label, shape) is None:
                    raise UserError(f"the method's own axis '{label}' differs: same hyper-parameters needed")
                action = "cut" if size < tensor.shape[axis] else self.grown
                tensor = self.change(tensor, axis, size, summed_over(slot.role, label))
                mask = self.change(mask, axis, size, False)
        kept = tuple(slice(0, min(a, b)) for a, b in zip(sizes, wanted, strict=True))
        for source in sources:
            work.use(source, work.module.tensors[source][kept])
        return Placed(tensor.clone(), mask, action)

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The head with the width changed as an axis that is summed over."""
        weight, hidden = head["head.weight"], context.receiving.shape.hidden
        if (width := weight.shape[1]) != hidden:
            try:
                weight = self.change(weight, 1, hidden, True)
            except UserError as error:
                raise UserError(f"cannot fit a head of width {width} to width {hidden}: {error}") from error
        return {"head.weight": weight.clone(), "head.bias": head["head.bias"].clone()}


class Filling:
    """The state of one port while its slots are filled.

    Attributes:
        used: of each origin slot that was carried, the number of its entries that were, and their squares.
        reached: origin slots that have a place, of which a map may still send nothing there.
    """

    def __init__(self, strategy: LayerwiseStrategy, module: ModuleState, context: PortContext):
        self.strategy, self.module, self.context = strategy, module, context
        self.report = PortReport(context.spec.name, context.spec.strategy)
        self.used: dict[Slot, tuple[int, float]] = {}
        self.reached: set[Slot] = set()
        self.stacks = stack_map(module, context.fresh)
        for stack, source in self.stacks.items():
            depths = context.origin.shape.layers.get(source, 1), context.receiving.shape.layers.get(stack, 1)
            if strategy.same_depth and depths[0] != depths[1]:
                raise UserError(f"cannot {context.spec.strategy} {context.pair}: {source} has {depths[0]} "
                                f"layers and {stack} has {depths[1]}; use pad or repeat "
                                "(--strategy pad, or 'grid.ports=[pad]')")
            self.report.layer_map[stack] = context.layers_of(stack, source)

    def places(self) -> Iterator[tuple[list[Slot], list[dict[Slot, Slot]]]]:
        """The receiving slots of each (stack, layer, site), and of each origin layer behind it those of them
        that it has, with its own slots.

        Raises:
            UserError: slots without a counterpart, where a partial carry was not asked for, or several layers
                as one of a method of which no mean is defined.
        """
        fresh, have = self.context.fresh.tensors, self.module.tensors
        for place in dict.fromkeys(slot[:3] for slot in fresh):
            slots = [slot for slot in fresh if slot[:3] == place]
            (stack, layer, *_), source = slots[0], self.stacks.get(slots[0].stack)
            found = [{s: s._replace(stack=source, layer=one) for s in slots}
                     for one in self.report.layer_map[stack][layer]] if source else []
            present = [s for s in slots if found and all(one[s] in have for one in found)]
            missing = [s for s in slots if s not in present]
            if missing and not self.context.spec.partial:
                raise UserError(f"port {self.context.pair}: {missing[0].key} has no counterpart in the "
                                "module; a partial carry must be asked for (--partial; in a study "
                                f"port.{self.context.spec.name}.partial=true)")
            if len(found) > 1:
                self._check_mixed(present)
            yield slots, [{s: one[s] for s in present} for one in found]

    def _check_mixed(self, slots: Sequence[Slot]) -> None:
        """Refuse several layers as one in words that name the method."""
        context = self.context
        try:
            check_mixed([slot.role for slot in slots], context.sums)
        except UserError as error:
            stack, layer, site, _ = slots[0]
            raise UserError(f"port {context.pair} by layer map '{context.spec.layer_map}': of "
                            f"{context.fresh.method or 'the method'} at {stack}.{layer}.{site} {error}; use "
                            "a layer map of single layers: stretch, skip or cka (--layer-map stretch; in a "
                            f"study port.{context.spec.name}.layer_map=stretch)") from error

    def port(self) -> Port:
        """Every slot of the fresh module, filled.

        Raises:
            UserError: shapes that cannot be mapped, a partial carry that was not asked for, or nothing
                carried.
        """
        fresh, out, masks = self.context.fresh, dict[Slot, Tensor](), dict[Slot, Tensor]()
        for slots, found in self.places():
            placed = self.strategy.place(self, found) if found and found[0] else {}
            for slot in slots:
                if slot in placed:
                    tensor, mask, action = placed[slot]
                    if stays_as_begun(slot.role):
                        tensor = torch.where(mask, tensor, fresh.tensors[slot])
                    moved = "averaged" if len(found) > 1 else (
                        "carried" if found[0][slot].layer == slot.layer else "mapped")
                    self.report.tensors[slot.key] = action or moved
                else:
                    tensor, self.report.tensors[slot.key] = fresh.tensors[slot].clone(), "fresh"
                    mask = torch.zeros_like(tensor, dtype=torch.bool)
                out[slot], masks[slot] = tensor, mask
        self._finish()
        return Port(fresh.map({slot: out[slot] for slot in fresh.tensors}),
                    {slot: masks[slot] for slot in fresh.tensors}, self.report)

    @contextmanager
    def refusing(self, slot: Slot, sizes: tuple[int, ...]) -> Iterator[None]:
        """Within it a refusal names the slot, both hosts and both sizes."""
        try:
            yield
        except UserError as error:
            wanted = tuple(self.context.fresh.tensors[slot].shape)
            raise UserError(f"cannot port {slot.key} from '{self.context.origin.name}' {sizes} to "
                            f"'{self.context.receiving.name}' {wanted}: {error}") from error

    def use(self, source: Slot, part: Tensor) -> None:
        """Note what was carried of an origin slot."""
        self.used[source] = part.numel(), float(part.double().square().sum())

    def check_axes(self, slot: Slot, source: Slot) -> None:
        """Refuse an origin slot whose axes mean something else.

        Raises:
            UserError: says which.
        """
        have, axes = self.module.axes[source], self.context.fresh.axes[slot]
        if have != axes:
            raise UserError("the method's numbers go with the origin's widths alone: turn it into a LoRA "
                            "first (--via lora)" if any(" at " in label for label in axes)
                            else f"axes {have} and {axes}")

    def _finish(self) -> None:
        """Check both lists of names and fill in what was carried."""
        report, context, total = self.report, self.context, self.module.tensors
        whole = sum(float(tensor.double().square().sum()) for tensor in total.values())
        carried = sum(squares for _, squares in self.used.values())
        report.carried_fraction = len(self.used) / len(total)
        report.carried_entries_fraction = sum(count for count, _ in self.used.values()) / self.module.entries
        report.carried_norm_fraction = carried / whole if whole else 0.0
        dropped = [slot for slot in total if slot not in self.used]
        report.tensors |= {f"{slot.key}{ORIGIN}": "dropped" for slot in dropped}
        if not self.used or carried == 0.0:
            raise UserError(f"port {context.pair} carries nothing: {len(self.used)} of {len(total)} tensors, "
                            f"squared norm {carried:g}")
        sites = {(slot.stack, slot.site, slot.role) for slot in {*self.used, *self.reached}}
        lost = [slot for slot in dropped if (slot.stack, slot.site, slot.role) not in sites]
        if lost and not context.spec.partial:
            raise UserError(f"port {context.pair} would lose {lost[0].key} {tuple(total[lost[0]].shape)}: "
                            "the receiving module has no such place; ask for a partial carry "
                            f"(--partial; in a study port.{context.spec.name}.partial=true)")
