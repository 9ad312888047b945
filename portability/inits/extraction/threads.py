"""Work in parts on several threads. Where the parts are cut depends on sizes alone, and each is computed by
one thread, so numbers do not depend on how many threads there are (torch's own threads would add in another
order)."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor

PIECE = 1 << 20  # entries of a piece: made, made absolute and added before it leaves the cache (D-103)
WIDE = 4 << 20  # entries of a piece of a matrix that vectors are multiplied by (smaller takes longer)
ASK_SECONDS = 1.0  # our choice: other workers begin and end their jobs while an extraction goes on
MOST = 64  # threads; beyond that pieces are too few and memory too slow (our choice)
Part = TypeVar("Part")
_open: list["_Threads"] = []  # of the extractions in hand, the innermost last


class _Threads:
    """Threads that are started when they are needed, and how many of them may work now."""

    def __init__(self, free: Callable[[], int]):
        self.free, self.asked, self.count = free, -math.inf, 1
        self.pool = ThreadPoolExecutor(MOST, "extraction", torch.set_num_threads, (1,))  # not MKL's number

    def now(self) -> int:
        """How many may work, asked again every ASK_SECONDS."""
        if time.monotonic() - self.asked > ASK_SECONDS:
            self.count, self.asked = min(MOST, max(1, self.free())), time.monotonic()
        return self.count


@contextlib.contextmanager
def threads(free: Callable[[], int]) -> Iterator[None]:
    """Let `share` use as many threads as are free, and torch one for each; after the block all is as it was.

    Args:
        free: how many threads may be used now, asked again every ASK_SECONDS.
    """
    before, mine = torch.get_num_threads(), _Threads(free)
    torch.set_num_threads(1)
    _open.append(mine)
    try:
        yield
    finally:
        _open.remove(mine)
        mine.pool.shutdown()
        torch.set_num_threads(before)


def share(work: Callable[[Part], object], parts: Sequence[Part]) -> None:
    """Call `work` with every part, without gradients, on as many threads as are free.

    Raises:
        Exception: what `work` raises.
    """
    left = iter(list(parts))  # a list's iterator gives each item once, whoever asks

    @torch.no_grad()  # which torch keeps for each thread
    def take() -> None:
        for part in left:
            work(part)

    count = min(len(parts), _open[-1].now()) if _open else 1
    helpers = [_open[-1].pool.submit(take) for _ in range(count - 1)]
    try:
        take()
    finally:
        wait(helpers)
    for helper in helpers:
        helper.result()


def slices(matrix: Tensor, entries: int | None = None) -> list[slice]:
    """Slices of a tensor's first axis with about so many entries each, PIECE if none are named.

    Example:
        >>> slices(torch.empty(5, 2), 4)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, (entries or PIECE) // max(1, matrix[:1].numel()))
    return [slice(first, min(first + step, len(matrix))) for first in range(0, len(matrix), step)]


def total(values: Tensor) -> float:
    """Sum of all entries, in float64."""
    pieces = slices(values)
    sums = torch.zeros(len(pieces), dtype=torch.float64, device=values.device)

    def work(place: int) -> None:
        sums[place] = values[pieces[place]].sum(dtype=torch.float64)

    share(work, range(len(pieces)))
    return float(sums.sum())


def scale_by_size(sums: Tensor, weights: Tensor) -> Tensor:
    """Multiply by the weights' absolute values, in place; an entry of zero stays zero, whatever its weight
    is."""
    def work(part: slice) -> None:
        sums[part] *= torch.where(sums[part] == 0, 0.0, weights[part].abs())

    share(work, slices(sums))
    return sums


def outer(left: Tensor, right: Tensor) -> Tensor:
    """(T, M) and (T, N) multiplied and summed over T: (M, N)."""
    product = left.new_empty(left.shape[1], right.shape[1])
    share(lambda part: torch.mm(left[:, part].T, right, out=product[part]), slices(product))
    return product


def times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """(..., in) by a matrix (in, out) without gradients: (..., out), whose gradient goes back to the
    vectors."""
    out: Tensor = _Product.apply(vectors, matrix)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, vectors: Tensor, matrix: Tensor) -> Tensor:
        context.matrix = matrix
        return _times(vectors, matrix)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _times(gradient, context.matrix.T), None


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    flat = vectors.reshape(-1, vectors.shape[-1])
    out = flat.new_empty(len(flat), matrix.shape[1])
    share(lambda part: torch.mm(flat, matrix[:, part], out=out[:, part]), slices(matrix.T, WIDE))
    return out.view(*vectors.shape[:-1], -1)
