"""Cuts that agree between matrices: what shares an axis shares the cut, so that what is extracted is a
sub-network.

The reference cuts every matrix for itself, so neither the residual stream nor heads agree between them. Here
(our choice) each axis has one contiguous cut, the one with the largest scores summed over all extracted
matrices that have the axis:

- feed-forward units, one cut a layer;
- heads, one a layer and attention, as (key-value head, place in its group, entry of the head): heads stay
  whole where both hosts' heads are of one size, and a query stays with its key and value. Entries are cut
  once for query and key, which meet in a product, and once for value and output;
- the residual stream, one cut for the whole host (a T5's stacks share it through their embedding), chosen
  last: by the scores that lie inside the other axes' cuts in the layers that were chosen.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from portability.core.architectures import LORA_AXES
from portability.core.specs import HostShape
from portability.inits.extraction.submatrix import Cut, window_sums

RESIDUAL = "hidden"
ENTRIES = {"query": "query_key", "key": "query_key", "value": "value_out", "attention_out": "value_out"}
Axis = tuple[str, str]  # what it belongs to ("" or "cross_"), and its label


@dataclass(frozen=True)
class Pending:
    """A matrix whose cut along the residual stream is still open.

    Attributes:
        kept: indices along its other side, in the teacher's matrix.
        profile: (d,) float64, scores inside `kept` summed over it, per place of the residual stream.
        total: the matrix's summed scores.
        first: whether the residual stream is its rows.
    """

    kept: Tensor
    profile: Tensor
    total: float
    first: bool

    def cut(self, offset: int, width: int) -> tuple[Cut, float]:
        """The cut, with the residual stream's entries from `offset`, and the share of the scores inside
        it."""
        stream = torch.arange(offset, offset + width)
        rows, columns = (stream, self.kept) if self.first else (self.kept, stream)
        captured = float(self.profile[offset : offset + width].sum()) / self.total if self.total else 0.0
        whole = len(self.kept) == int(self.kept[-1] - self.kept[0]) + 1
        return Cut(rows[:, None], columns[None], (int(rows[0]), int(columns[0])) if whole else None), captured


def pending_cuts(scores: Mapping[str, Tensor], teacher: HostShape, student: HostShape) -> dict[str, Pending]:
    """Site -> matrix with its heads and feed-forward units cut, from one layer's scores.

    Args:
        scores: site -> (out, in) scores of the teacher's layer, only of what is extracted.
    """
    marginals: dict[Axis, Tensor] = {}
    for site, values in scores.items():
        side = _side(site, values)
        labels = _labels(site)
        spread = side.sum(1, dtype=torch.float64).reshape([_size(label, teacher) for _, label in labels])
        for place, axis in enumerate(labels):
            own = spread.movedim(place, 0).reshape(spread.shape[place], -1).sum(1)
            marginals[axis] = marginals[axis] + own if axis in marginals else own
    starts = {axis: int(window_sums(values, _size(axis[1], student), 0).argmax())
              for axis, values in marginals.items()}
    return {site: _pending(site, values, starts, teacher, student) for site, values in scores.items()}


def shared_pending(scores: Tensor) -> Pending:
    """An embedding or head, of whose scores (shared tokens, hidden) every row is kept."""
    profile = scores.sum(0, dtype=torch.float64)
    return Pending(torch.arange(len(scores)), profile, float(profile.sum()), first=False)


def residual_offset(matrices: Iterable[Pending], width: int) -> int:
    """Where the cut of the residual stream begins, for these matrices together."""
    profiles = [matrix.profile for matrix in matrices]
    return int(window_sums(torch.stack(profiles).sum(0), width, 0).argmax())


def _pending(
    site: str, values: Tensor, starts: Mapping[Axis, int], teacher: HostShape, student: HostShape
) -> Pending:
    labels = _labels(site)
    sizes = [_size(label, teacher) for _, label in labels]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    for place, axis in enumerate(labels):
        grid = np.take(grid, np.arange(starts[axis], starts[axis] + _size(axis[1], student)), place)
    kept = torch.from_numpy(grid.reshape(-1))
    side = _side(site, values)
    profile = side[kept].sum(0, dtype=torch.float64)
    return Pending(kept, profile, float(side.sum(dtype=torch.float64)), first=_in_rows(site))


def _side(site: str, values: Tensor) -> Tensor:
    """Scores as (other side, residual stream)."""
    return values.T if _in_rows(site) else values


def _in_rows(site: str) -> bool:
    return LORA_AXES[site.removeprefix("cross_")][1] == (RESIDUAL,)


def _labels(site: str) -> list[Axis]:
    """The axes of a site's other side; entries of a head are labelled by the product in which they meet."""
    plain = site.removeprefix("cross_")
    into, out = LORA_AXES[plain]
    owner = "cross_" if site.startswith("cross_") else ""
    side = into if out == (RESIDUAL,) else out
    return [(owner, ENTRIES[plain] if axis == "head_dim" else axis) for axis in side]


def _size(label: str, shape: HostShape) -> int:
    return int(getattr(shape, "head_dim" if label in ENTRIES.values() else label))
