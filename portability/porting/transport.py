"""A module's tensors in another host's coordinates, by the maps of both hosts' spaces.

Activations are rows, x_receiving = x_origin T with T (d_o, d_r). With f what `spaces.fold` gives, the pair of
a LoRA becomes A' = A diag(1 / f_o) T diag(f_r) along what it reads and B' = diag(1 / f_r) T^T diag(f_o) B
along what it writes (Theseus, arXiv 2602.12952, with the gains of RMSNorms folded in). Rank and scale stay.
HRA's reflections keep what they see, and of hosts whose gains differ only nearly what they do to it. A DoRA's
magnitude goes in relation to the norm that it stands for (`Transport.norms`), so that what each row is
multiplied by stays (D-149).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, Slot
from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.hosts.host import Host
from portability.porting.activations import Pair
from portability.porting.spaces import Run, Space, gain_of, weight_of

SIGNLESS = ("magnitude", "ia3_l", "weight", "scaling", "w2_a", "w2_b")  # a unit's number, whatever its sign
RELATIVE = "magnitude"  # DoRA's, beside A and B
BY_UNIT = (*SIGNLESS, "w1_a", "w1_b")  # roles of which a mixture of units keeps no meaning


class Moved(NamedTuple):
    """A tensor in the receiving host's coordinates, where the maps gave something (bool, broadcasts), and
    which of the origin's entries they took (bool, the origin's shape)."""

    tensor: Tensor
    given: Tensor
    taken: Tensor


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
               there: Sequence[Run]) -> Moved:
        """A tensor in the receiving host's coordinates.

        Args:
            slots: its place in the origin's module, and in the receiving one.
            here, there: its axes that belong to spaces of the origin host, and of the receiving one.

        Raises:
            UserError: numbers a unit each under maps that mix units, or vocabularies that differ.
        """
        given, role = torch.ones(value.ndim * [1], dtype=torch.bool), slots[1].role
        taken, axes, begun = given, value.ndim, value.shape
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
            given = given & (matrix != 0).any(0).reshape(*sizes, *[1] * (value.ndim - one.first - len(sizes)))
            taken = taken & (matrix != 0).any(1).reshape(*begun[one.first:one.last], *[1] * (axes - one.last))
        return Moved(value - added[1], given, taken.expand(begun))

    def _matrix(self, slots: tuple[Slot, Slot], pair: Pair) -> Tensor:
        matrix = self.maps[pair]
        if slots[1].role.startswith(SIGNLESS):
            units = matrix.ne(0).double()
            if slots[1].role != "weight":
                return units
            ours, theirs = (gain_of(host, slot) for host, slot in zip(self.hosts, slots, strict=True))
            return units if ours is None or theirs is None else units / ours[:, None] * theirs
        ahead, behind = self.folds[pair]
        inward = pair[0].side == "in"
        if ahead is not None:
            matrix = matrix * (1 / ahead if inward else ahead)[:, None]
        if behind is not None:
            matrix = matrix * (behind if inward else 1 / behind)
        return matrix

    def norms(self, side: int, run: Run, role: str, site: Mapping[str, Tensor], scale: float) -> Tensor:
        """What a DoRA divides each row by before its magnitude multiplies it, |W + scale B A|, (d,) float64.

        Args:
            side: 0 of the origin, 1 of the receiving host.
            run: the magnitude's, of that host.
            site: the module's tensors beside W, by role.

        Source: DoRA (arXiv 2402.09353, equation 5).
        """
        weight = weight_of(self.hosts[side], run.space).double()
        into, out = (site.get(one) for one in ("A", role.replace("magnitude", "B")))
        if into is not None and out is not None:
            rank = len(into)
            weight = weight + scale * out.reshape(-1, rank).double() @ into.reshape(rank, -1).double()
        return weight.norm(dim=1).clamp_min(1e-12)


def _sizes(space: Space, shape: HostShape, axes: int) -> tuple[int, ...]:
    """The sizes of a space's axes in a module: its heads one by one, or the whole."""
    size = space.size(shape)
    if axes == 1:
        return (size,)
    group = (shape.group,) if axes == 3 else ()
    return (shape.kv_heads, *group, shape.head_dim)
