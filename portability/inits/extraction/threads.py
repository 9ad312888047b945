"""Work in parts on several threads. Where the parts are cut depends on sizes alone, and each is computed by
one thread, so numbers do not depend on how many threads there are (torch's own threads would add in another
order)."""

import contextlib
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
_open: list[tuple[ThreadPoolExecutor, Callable[[], int]]] = []  # of extractions in hand, the innermost last


@contextlib.contextmanager
def threads(free: Callable[[], int]) -> Iterator[None]:
    """Let `share` use as many threads as are free, and torch one for each; after the block all is as it was.

    Args:
        free: how many threads may be used now, asked again every ASK_SECONDS.
    """
    asked, count, before = float("-inf"), 1, torch.get_num_threads()

    def now() -> int:
        nonlocal asked, count
        if time.monotonic() - asked > ASK_SECONDS:
            count, asked = min(MOST, max(1, free())), time.monotonic()
        return count

    torch.set_num_threads(1)
    try:
        # a thread's own number, not MKL's
        with ThreadPoolExecutor(MOST, "extraction", torch.set_num_threads, (1,)) as pool:
            _open.append((pool, now))
            yield
    finally:
        _open.pop()
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

    pool, free = _open[-1] if _open else (None, lambda: 1)
    helpers = [pool.submit(take) for _ in range(min(len(parts), free()) - 1)] if pool else []
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


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, vectors: Tensor, matrix: Tensor) -> Tensor:
        context.matrix = matrix
        flat = vectors.reshape(-1, vectors.shape[-1])
        out = flat.new_empty(len(flat), matrix.shape[1])
        share(lambda part: torch.mm(flat, matrix[:, part], out=out[:, part]), slices(matrix.T, WIDE))
        return out.view(*vectors.shape[:-1], -1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Product.apply(gradient, context.matrix.T), None


def times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """(..., in) by a matrix (in, out) without gradients: (..., out), whose gradient goes back to the
    vectors."""
    out: Tensor = _Product.apply(vectors, matrix)
    return out
