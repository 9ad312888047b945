"""Which layers of a teacher feed the student's, and which entries of a matrix become one of the student's
shape."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from portability.inits.extraction.threads import share, total

COLUMNS = 64  # that are summed at a time, while they are in the cache


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


CUTS: dict[str, Structure] = {  # structures that look at one matrix alone; "aligned" is in aligned.py
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
