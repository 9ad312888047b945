"""Strategies that map the spaces of one host onto those of another: a matrix for each space, by which a
module's numbers are written in the receiving host's coordinates.

What is done with a tensor says transport.py; here is which maps are made when, and what becomes of a module.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.methods.module import ModuleState
from portability.porting.activations import Pair, aligned_batches
from portability.porting.axes import Filling, LayerwiseStrategy, Placed, stays_as_begun
from portability.porting.base import Port, PortContext
from portability.porting.kept_maps import Fitted, keep, kept, place_of_maps
from portability.porting.layer_maps import average_layers
from portability.porting.spaces import LAST, STREAM, Run, Space, fold, runs
from portability.porting.transport import RELATIVE, Moved, Transport

KEPT = 2  # pairs of hosts whose maps are kept in memory, for modules of other seeds
ROOM = 2 << 30  # bytes of maps that are made together (D-143)
_known: dict[tuple[Any, ...], Fitted] = {}


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
        moved = [{slot: self._moved(work, transport, slot, one) for slot in one} for one in found]
        values = average_layers([{slot.role: part.tensor for slot, part in one.items()} for one in moved],
                                work.context.sums)
        for slot, source in found[0].items():
            if slot.role.startswith(RELATIVE):
                run, old = self._runs(work, slot, source)[1][0], values[slot.role]
                norms = transport.norms(1, run, slot.role, values, self._scale(work, slot))
                values[slot.role] = (old * norms.reshape(old.shape)).to(old.dtype)
        return {slot: Placed(values[slot.role], torch.stack([one[slot].given for one in moved]).any(0),
                             "transported") for slot in found[0]}

    def _moved(self, work: Filling, transport: Transport, slot: Slot, one: Mapping[Slot, Slot]) -> Moved:
        """A tensor of one of the origin layers behind a place; of a DoRA's magnitude what each row is
        multiplied by."""
        have, fresh = work.module.tensors, work.context.fresh.tensors[slot]
        tensor, relative = have[one[slot]], slot.role.startswith(RELATIVE)
        with work.refusing(slot, tuple(tensor.shape)):
            here, there = self._runs(work, slot, one[slot])
            part = tensor
            if relative:
                site = {other.role: have[source] for other, source in one.items()}
                norms = transport.norms(0, here[0], slot.role, site, self._scale(work, slot))
                part = tensor / norms.reshape(tensor.shape)
            value, given, taken = transport.tensor(part, (one[slot], slot), here, there)
            if value.shape != fresh.shape:
                raise UserError("the method's own axes, or the vocabularies, differ")
        if stays_as_begun(slot.role):
            value = value.where(given, torch.ones_like(value) if relative else fresh.double())
        squares = [float(part.double().square().sum()) for part in (tensor.where(taken, 0.0), value)]
        work.reached.add(one[slot])
        if taken.any():
            work.used[one[slot]] = int(taken.sum()), squares[0] if relative else min(squares)
        return Moved(value.to(tensor.dtype), given.expand(value.shape), taken)

    @staticmethod
    def _scale(work: Filling, slot: Slot) -> float:
        """What the library multiplies B A by; a port keeps it."""
        return work.context.fresh.scales.get(slot[:3], 1.0)

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The head through the map of the last layers' residual streams."""
        end = Space("", LAST, STREAM, "out")
        matrix = self._transport(context, [(end, end)]).maps[end, end]
        weight = (head["head.weight"].double() @ matrix).to(head["head.weight"].dtype)
        return {"head.weight": weight, "head.bias": head["head.bias"].clone()}


def map_bytes(pair: Pair, context: PortContext) -> int:
    """Of the map of a pair of spaces."""
    return 8 * pair[0].size(context.origin.shape) * pair[1].size(context.receiving.shape)
