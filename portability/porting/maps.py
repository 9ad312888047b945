"""Strategies that map the spaces of one host onto those of another: a matrix for each space, by which a
module's numbers are written in the receiving host's coordinates.

Activations are rows, x_receiving = x_origin T with T (d_o, d_r). With f what `spaces.fold` gives, the pair of
a LoRA becomes A' = A diag(1 / f_o) T diag(f_r) along what it reads and B' = diag(1 / f_r) T^T diag(f_o) B
along what it writes (Theseus, arXiv 2602.12952, with the gains of RMSNorms folded in). Rank and scale stay.
HRA's reflections keep what they see, and of hosts whose gains differ only nearly what they do to it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, Slot
from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.hosts.host import Host
from portability.methods.module import ModuleState
from portability.porting.activations import Pair, aligned_batches
from portability.porting.axes import Filling, LayerwiseStrategy, Placed, stays_as_begun
from portability.porting.base import Port, PortContext
from portability.porting.kept_maps import Fitted, keep, kept, place_of_maps
from portability.porting.layer_maps import average_layers
from portability.porting.spaces import LAST, STREAM, Run, Space, fold, gain_of, runs, weight_of

SIGNLESS = ("magnitude", "ia3_l", "weight", "scaling", "w2_a", "w2_b")  # a unit's number, whatever its sign
BY_UNIT = (*SIGNLESS, "w1_a", "w1_b")  # roles of which a mixture of units keeps no meaning
KEPT = 2  # pairs of hosts whose maps are kept in memory, for modules of other seeds
ROOM = 2 << 30  # bytes of maps that are made together (D-143)
_known: dict[tuple[Any, ...], Fitted] = {}


@dataclass
class Transport:
    """One port through maps.

    Attributes:
        hosts: origin and receiving.
        maps: of each pair of spaces, (d_o, d_r) float64.
        folds: of each space, what `spaces.fold` gives; of the origin's and the receiving host's.
        by_unit: as of MapStrategy.
        tokens: of the texts that they were made of.
    """

    hosts: tuple[Host, Host]
    maps: Mapping[Pair, Tensor]
    folds: Mapping[Pair, tuple[Tensor | None, Tensor | None]]
    by_unit: bool
    tokens: int = 0

    def tensor(self, value: Tensor, slots: tuple[Slot, Slot], here: Sequence[Run],
               there: Sequence[Run]) -> tuple[Tensor, Tensor]:
        """A tensor in the receiving host's coordinates, and where the maps gave something (broadcasts).

        Args:
            slots: its place in the origin's module, and in the receiving one.
            here, there: its axes that belong to spaces of the origin host, and of the receiving one.

        Raises:
            UserError: numbers a unit each under maps that mix units, or vocabularies that differ.
        """
        mask, role = torch.ones(value.ndim * [1], dtype=torch.bool), slots[1].role
        added = [FAMILIES[host.family].gain or 0.0 if role == "weight" else 0.0 for host in self.hosts]
        value = value.double() + added[0]
        # axes before it keep their number
        for one, other in zip(reversed(here), reversed(there), strict=True):
            if one.space.kind == "vocab":
                continue
            if role.startswith(BY_UNIT) and not self.by_unit:
                raise UserError("its numbers belong to one unit each, and this strategy mixes units; use "
                                "corr, or turn it into a LoRA first where that can be done (--via lora)")
            matrix = self._matrix(slots, (one.space, other.space))
            sizes = _sizes(other.space, self.hosts[1].spec.shape, other.last - other.first)
            flat = value.flatten(one.first, one.last - 1).movedim(one.first, -1) @ matrix
            value = flat.movedim(-1, one.first).unflatten(one.first, sizes)
            given = (matrix != 0).any(0).reshape(*sizes, *[1] * (value.ndim - one.first - len(sizes)))
            mask = mask & given
        return value - added[1], mask

    def _matrix(self, slots: tuple[Slot, Slot], pair: Pair) -> Tensor:
        matrix = self.maps[pair]
        if slots[1].role.startswith(SIGNLESS):
            ours, theirs = (self._own(host, slot, space)
                            for host, slot, space in zip(self.hosts, slots, pair, strict=True))
            if ours is None or theirs is None:
                return matrix.abs()
            return matrix.abs() / ours[:, None] * theirs
        ahead, behind = self.folds[pair]
        inward = pair[0].side == "in"
        if ahead is not None:
            matrix = matrix * (1 / ahead if inward else ahead)[:, None]
        if behind is not None:
            matrix = matrix * (behind if inward else 1 / behind)
        return matrix

    @staticmethod
    def _own(host: Host, slot: Slot, space: Space) -> Tensor | None:
        """The host's numbers that a module's stand in relation to, (d,): the norms of its rows to DoRA's
        magnitudes, the gains of its RMSNorm to those in its place."""
        if slot.role.startswith("magnitude"):
            return weight_of(host, space).double().norm(dim=1).clamp_min(1e-12)
        return gain_of(host, slot) if slot.role == "weight" else None


class Carrying(Filling):
    """A port's state, with its maps: of all layers, or of a part of them in turn.

    Attributes:
        parts: pairs of spaces whose maps are made together.
        part: of each (stack, layer) of the receiving host, which of the parts has its pairs.
    """

    parts: Sequence[Sequence[Pair]] = ()
    now = -1
    transport: Transport | None = None

    def __init__(self, strategy: "MapStrategy", module: ModuleState, context: PortContext):
        super().__init__(strategy, module, context)
        self.part: dict[tuple[str, int], int] = {}

    def places(self) -> Iterator[tuple[list[Slot], list[dict[Slot, Slot]]]]:
        """See Filling.places; part by part, once they are known."""
        yield from sorted(super().places(), key=lambda place: self.part.get(place[0][0][:2], 0))


def _sizes(space: Space, shape: HostShape, axes: int) -> tuple[int, ...]:
    """The sizes of a space's axes in a module: its heads one by one, or the whole."""
    size = space.size(shape)
    if axes == 1:
        return (size,)
    group = (shape.group,) if axes == 3 else ()
    return (shape.kv_heads, *group, shape.head_dim)


class MapStrategy(LayerwiseStrategy):
    """A strategy given by the maps of the spaces that a module is written in. Of several layers that become
    one each is mapped first.

    Attributes:
        by_unit: whether its maps send units to units, up to sign, so that numbers that belong to one unit
            each can be carried.
        apart: whether its map of what a matrix reads is that matrix's own, and not that of all which read the
            same.
        by_layer: whether the maps of a layer do not depend on which others are asked for with them, so that
            those of large hosts are made for a few layers at a time.
        lasting: whether its maps are kept on disk, for other processes (kept_maps.py). Of a package of your
            own they are made anew with each of its versions.
    """

    by_unit = False
    apart = False
    by_layer = False
    lasting = False

    @abstractmethod
    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """The map T (d_o, d_r), float64, of each pair, in coordinates out of which RMSNorms' gains are
        folded. It follows from the hosts, the texts and the options alone, and from no seed: it is kept for
        other modules.

        Raises:
            UserError: a pair for which the strategy has no map; names it.
        """

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """The module through the maps.

        Raises:
            UserError: as `Filling.port`, `spaces.runs` and `maps`.
        """
        return self.begun(module, context).port()

    def begun(self, module: ModuleState, context: PortContext) -> Carrying:
        """The port before any of its maps is made.

        Raises:
            UserError: as `Filling.places` and `spaces.runs`.
        """
        work = Carrying(self, module, context)
        layers: dict[tuple[str, int], dict[Pair, int]] = {}  # with the bytes of each map
        for slots, found in work.places():
            own = layers.setdefault(slots[0][:2], {})
            for one in found:
                for slot, source in one.items():
                    with work.refusing(slot, tuple(module.tensors[source].shape)):
                        work.check_axes(slot, source)
                        own |= {pair: map_bytes(pair, context) for pair in self._pairs(work, slot, source)
                                if pair[0].kind != "vocab"}
        parts: list[dict[Pair, int]] = [{}]
        for layer, own in layers.items():
            if self.by_layer and parts[-1] and sum((parts[-1] | own).values()) > ROOM:
                parts.append({})
            parts[-1] |= own
            work.part[layer] = len(parts) - 1
        work.parts = [list(part) for part in parts]
        return work

    def _at(self, work: Carrying, slot: Slot) -> Transport:
        """The maps of the part that a receiving slot is of, in place of those of another part."""
        if (part := work.part[slot[:2]]) != work.now or work.transport is None:
            if len(work.parts) > 1:
                work.transport = None
                _known.clear()
            work.now, work.transport = part, self._transport(work.context, work.parts[part])
            work.report.calibration_tokens = work.transport.tokens
        return work.transport

    def _runs(self, work: Filling, slot: Slot, source: Slot) -> tuple[list[Run], list[Run]]:
        return (runs(source, work.module.axes[source], self.apart),
                runs(slot, work.context.fresh.axes[slot], self.apart))

    def _pairs(self, work: Filling, slot: Slot, source: Slot) -> list[Pair]:
        here, there = self._runs(work, slot, source)
        return [(one.space, other.space) for one, other in zip(here, there, strict=True)]

    def _transport(self, context: PortContext, pairs: Sequence[Pair]) -> Transport:
        """The maps, or what they were for these hosts and spaces before."""
        marks = context.calibration().mark if "text" in context.needs else ()
        hosts = context.origin_host(), context.receiving_host()
        prints = context.origin.fingerprint, context.receiving.fingerprint
        key = (context.spec.strategy, repr(dict(context.spec.options)), prints,
               tuple(host.precision for host in hosts), context.spec.layer_map, marks, tuple(pairs))
        if key not in _known or not all(prints):
            path = None
            if self.lasting and pairs and all(prints):
                path = place_of_maps([*key, next(hosts[0].model.parameters()).device.type])
            found = kept(path, pairs) if path else None
            if found is None:
                found = self._fitted(context, pairs)
                if path:
                    keep(path, pairs, found)
            while len(_known) >= KEPT:
                _known.pop(next(iter(_known)))
            _known[key] = found
        folds = {pair: (fold(hosts[0], pair[0]), fold(hosts[1], pair[1])) for pair in pairs}
        return Transport(hosts, _known[key].maps, folds, self.by_unit, _known[key].tokens)

    def _fitted(self, context: PortContext, pairs: Sequence[Pair]) -> Fitted:
        """The maps, made and checked."""
        try:
            found = self.maps(context, pairs) if pairs else {}
        except UserError as error:
            if context.origin.name in str(error):
                raise
            raise UserError(f"port {context.pair}: {error}") from error
        wrong = next((pair for pair in pairs if not found[pair].isfinite().all()), None)
        if wrong:
            raise UserError(f"port strategy '{context.spec.strategy}' {context.pair}: the map of "
                            f"{wrong[0].words} is not finite")
        tokens = 0 if "text" not in context.needs else sum(aligned.tokens for aligned in aligned_batches(
            context.origin_host(), context.receiving_host(), context.calibration()))
        return Fitted(found, tokens)

    def place(self, work: Filling, found: Sequence[Mapping[Slot, Slot]]) -> dict[Slot, Placed]:
        """See LayerwiseStrategy.place."""
        assert isinstance(work, Carrying)
        transport = self._at(work, next(iter(found[0])))
        layers: list[dict[str, Tensor]] = []
        masks: dict[Slot, Tensor] = {}
        for one in found:
            layers.append({})
            for slot, source in one.items():
                tensor, fresh = work.module.tensors[source], work.context.fresh
                with work.refusing(slot, tuple(tensor.shape)):
                    here, there = self._runs(work, slot, source)
                    value, mask = transport.tensor(tensor, (source, slot), here, there)
                    if value.shape != fresh.tensors[slot].shape:
                        raise UserError("the method's own axes, or the vocabularies, differ")
                if stays_as_begun(slot.role):
                    value = value.where(mask, fresh.tensors[slot].double())
                layers[-1][slot.role] = value.to(tensor.dtype)
                masks[slot] = masks.get(slot, torch.zeros_like(value, dtype=torch.bool)) | mask
                before, after = float(tensor.double().square().sum()), float(value.square().sum())
                work.used[source] = tensor.numel(), min(before, after)
        values = average_layers(layers, work.context.sums)
        return {slot: Placed(values[slot.role], mask, "transported") for slot, mask in masks.items()}

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The head through the map of the last layers' residual streams."""
        end = Space("", LAST, STREAM, "out")
        matrix = self._transport(context, [(end, end)]).maps[end, end]
        weight = (head["head.weight"].double() @ matrix).to(head["head.weight"].dtype)
        return {"head.weight": weight, "head.bias": head["head.bias"].clone()}


def map_bytes(pair: Pair, context: PortContext) -> int:
    """Of the map of a pair of spaces."""
    return 8 * pair[0].size(context.origin.shape) * pair[1].size(context.receiving.shape)


def rotary(context: PortContext) -> bool:
    """Whether queries and keys turn with their position in either host.

    Raises:
        UserError: in one of them alone: what they mean has no counterpart.
    """
    turns = [FAMILIES[host.shape.family].rotary for host in (context.origin, context.receiving)]
    if turns[0] != turns[1]:
        raise UserError(f"port {context.pair}: the queries and keys of one of them turn with the position, "
                        "those of the other do not: no map of them is defined; leave query and key out of "
                        "the method's sites")
    return turns[0]
