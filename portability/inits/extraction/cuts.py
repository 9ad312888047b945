"""Which layers of a teacher feed the student's, and which entries of a matrix become one of the student's
shape.

The reference cuts every matrix for itself, so neither the residual stream nor heads agree between them. In
"aligned" cuts (our choice) what shares an axis shares the cut, so that what is extracted is a sub-network:
each axis has one contiguous cut, the one with the largest scores summed over all extracted matrices that have
the axis:

- feed-forward units, one cut a layer;
- heads, one a layer and attention, as (key-value head, place in its group, entry of the head): heads stay
  whole where both hosts' heads are of one size, and a query stays with its key and value. Entries are cut
  once for query and key, which meet in a product, and once for value and output;
- the residual stream, one cut for the whole host (a T5's stacks share it through their embedding), chosen
  last: by the scores that lie inside the other axes' cuts in the layers that were chosen.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from portability.core.architectures import LORA_AXES
from portability.core.specs import HostShape
from portability.inits.extraction.threads import share, total

COLUMNS = 64  # that are summed at a time, while they are in the cache
ENTRIES = {"query": "query_key", "key": "query_key", "value": "value_out", "attention_out": "value_out"}


@dataclass(frozen=True)
class Cut:
    """Entries of an (M, N) matrix in the place of an (m, n) one: ``matrix[rows, columns]``, broadcast against
    each other.

    Attributes:
        rows: (m, 1) or (m, n) indices; columns: (1, n) or (m, n).
        offset: first row and column of a contiguous cut, else None.
    """

    rows: Tensor
    columns: Tensor
    offset: tuple[int, int] | None = None

    def of(self, matrix: Tensor) -> Tensor:
        """(m, n) copy of the entries."""
        if self.offset is not None:
            (row, column), (m, n) = self.offset, (self.rows.shape[0], self.columns.shape[1])
            return matrix[row : row + m, column : column + n].clone()
        return matrix[self.rows.to(matrix.device, torch.long), self.columns.to(matrix.device, torch.long)]

    def share(self, scores: Tensor) -> float:
        """Share of the summed scores inside the cut, in [0, 1]; 0 where all scores are 0."""
        whole = total(scores)
        return total(self.of(scores)) / whole if whole else 0.0


Structure = Callable[[Tensor, tuple[int, int], torch.Generator], Cut]


def window_sums(scores: Tensor, size: int, axis: int) -> Tensor:
    """Sums of `size` neighbours along an axis, in float64: entry i is the sum of i ... i + size - 1.

    Example:
        >>> window_sums(torch.tensor([1, 2, 4]), 2, 0).tolist()
        [3.0, 6.0]
    """
    lines = scores.movedim(axis, 0)
    sums = torch.empty(len(lines) - size + 1, *lines.shape[1:], dtype=torch.float64, device=scores.device)
    flat, found = lines.reshape(len(lines), -1), sums.view(len(sums), -1)

    def work(first: int) -> None:
        own, into = flat[:, first : first + COLUMNS], found[:, first : first + COLUMNS]
        into[0] = own[:size].sum(0, dtype=torch.float64)
        torch.sub(own[size:].double(), own[:-size], out=into[1:])  # a window's new line less its lost one
        into.cumsum_(0)

    share(work, range(0, flat.shape[1], COLUMNS))
    return sums.movedim(0, axis)


def contiguous(offset: tuple[int, int], size: tuple[int, int]) -> Cut:
    """The block of this size whose first entry is at `offset`."""
    rows, columns = (torch.arange(first, first + count) for first, count in zip(offset, size, strict=True))
    return Cut(rows[:, None], columns[None], offset)


def block(scores: Tensor, size: tuple[int, int], generator: torch.Generator) -> Cut:
    """The contiguous block with the largest summed score, the first of equal ones (Zhong et al. 2024, section
    3.2).

    All blocks are compared, by sums over a window of rows and of those over a window of columns: a
    summed-area table taken one axis at a time, in float64 (the reference's is fp32, whose differences lose
    digits).

    Example:
        >>> block(torch.tensor([[0., 1., 5.], [9., 0., 5.]]), (1, 2), torch.Generator()).offset
        (1, 0)
    """
    sums = window_sums(window_sums(scores, size[0], 0), size[1], 1)
    row, column = divmod(int(sums.contiguous().argmax()), sums.shape[1])
    return contiguous((row, column), size)


def rows_columns(scores: Tensor, size: tuple[int, int], generator: torch.Generator) -> Cut:
    """The rows and the columns with the largest mean scores, in their order (the reference's commented-out
    ``max_sens_submatrix``).

    Example:
        >>> scores = torch.tensor([[1., 0., 1.], [3., 0., 4.], [2., 0., 2.]])
        >>> cut = rows_columns(scores, (2, 2), torch.Generator())
        >>> cut.rows.flatten().tolist(), cut.columns.flatten().tolist()
        ([1, 2], [0, 2])
    """
    rows, columns = (_largest(scores.sum(1 - axis, dtype=torch.float64), size[axis]) for axis in (0, 1))
    return Cut(rows[:, None], columns[None])


def neurons(scores: Tensor, size: tuple[int, int], generator: torch.Generator) -> Cut:
    """The output units (rows) with the largest summed scores, in their order; of each the inputs with the
    largest scores, chosen for each unit apart.

    Our reading of the paper's ablation (section 4.4), which has no code: between single weights, of which no
    structure is left, and rows with columns, where all units keep the same inputs.
    """
    rows = _largest(scores.sum(1, dtype=torch.float64), size[0])
    return Cut(rows[:, None].int(), _largest(scores[rows], size[1]).int())


def random_block(scores: Tensor, size: tuple[int, int], generator: torch.Generator) -> Cut:
    """A contiguous block at a random place; scores are not looked at."""
    rooms = [have - want + 1 for have, want in zip(scores.shape, size, strict=True)]
    row, column = (int(torch.randint(room, (), generator=generator, device="cpu")) for room in rooms)
    return contiguous((row, column), size)


def random_entries(scores: Tensor, size: tuple[int, int], generator: torch.Generator) -> Cut:
    """Random entries of the matrix, none twice, in its order (the paper's "random weights")."""
    order = torch.randperm(scores.numel(), generator=generator, device="cpu")
    picks = order[: size[0] * size[1]].sort().values.view(size)
    return Cut((picks // scores.shape[1]).int(), (picks % scores.shape[1]).int())


CUTS: dict[str, Structure] = {  # structures that look at one matrix alone; "aligned" is below
    "block": block, "rows_columns": rows_columns, "neurons": neurons, "random_block": random_block,
    "random_entries": random_entries,
}


LayerChoice = Callable[[list[float], int, torch.Generator], list[int]]

LAYER_CHOICES: dict[str, LayerChoice] = {  # (summed scores by teacher layer, how many) -> teacher layers
    "sensitivity": lambda totals, count, generator: _largest(
        torch.tensor(totals, dtype=torch.float64), count).tolist(),
    "first": lambda totals, count, generator: list(range(count)),
    "last": lambda totals, count, generator: list(range(len(totals) - count, len(totals))),
    "random": lambda totals, count, generator: sorted(
        torch.randperm(len(totals), generator=generator, device="cpu")[:count].tolist()),
}


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the largest values along the last axis, in order; of equal ones the first."""
    return values.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values


# ---- aligned


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
    first: bool = False

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
    layouts = {site: _other_side(site) for site in scores}
    sides = {site: values.T if layouts[site][0] else values for site, values in scores.items()}
    marginals: dict[tuple[str, str], Tensor] = {}
    for site, (_, axes) in layouts.items():
        spread = sides[site].sum(1, dtype=torch.float64).reshape([_size(axis, teacher) for axis in axes])
        for place, axis in enumerate(axes):
            own = spread.movedim(place, 0).reshape(spread.shape[place], -1).sum(1)
            marginals[axis] = marginals[axis] + own if axis in marginals else own
    starts = {axis: int(window_sums(values, _size(axis, student), 0).argmax())
              for axis, values in marginals.items()}
    found = {}
    for site, (first, axes) in layouts.items():
        side = sides[site]
        grid = np.arange(len(side)).reshape([_size(axis, teacher) for axis in axes])
        for place, axis in enumerate(axes):
            grid = np.take(grid, np.arange(starts[axis], starts[axis] + _size(axis, student)), place)
        kept = torch.from_numpy(grid.reshape(-1))
        profile = side[kept].sum(0, dtype=torch.float64)
        found[site] = Pending(kept, profile, float(side.sum(dtype=torch.float64)), first)
    return found


def residual_offset(matrices: Iterable[Pending], width: int) -> int:
    """Where the cut of the residual stream begins, for these matrices together."""
    return int(window_sums(torch.stack([matrix.profile for matrix in matrices]).sum(0), width, 0).argmax())


def _other_side(site: str) -> tuple[bool, list[tuple[str, str]]]:
    """Whether a site's rows are the residual stream; and the axes of its other side, each as what it belongs
    to ("" or "cross_") and its label. Entries of a head are labelled by the product in which they meet."""
    plain = site.removeprefix("cross_")
    into, out = LORA_AXES[plain]
    first = out == ("hidden",)
    return first, [(site.removesuffix(plain), ENTRIES[plain] if axis == "head_dim" else axis)
                   for axis in (into if first else out)]


def _size(axis: tuple[str, str], shape: HostShape) -> int:
    return int(getattr(shape, "head_dim" if axis[1] in ENTRIES.values() else axis[1]))
