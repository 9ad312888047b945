"""Which examples an update sees: length buckets fixed by the data and the step, contents by the member's
seed.

Step j of every member of a stack draws from the same bucket, padded to the bucket's longest text, so padding
stays near the real tokens and a member's arithmetic does not depend on its neighbours.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from portability.core.seeds import stream_seed
from portability.data.tokenization import Flat, Sequences


@dataclass(frozen=True)
class Bucket:
    """Examples of similar length: `members` are their indices, `length` is the longest, in tokens."""

    members: np.ndarray
    length: int


def buckets(lengths: np.ndarray, smallest: int) -> list[Bucket]:
    """Cut the examples, sorted by length, into buckets of whole lengths with at least `smallest` examples
    each.

    Args:
        lengths: (N,) tokens of each example.
        smallest: fewest examples in a bucket, so that batches inside it vary; all N make one bucket if N is
            less.

    Example:
        >>> [(b.members.tolist(), b.length) for b in buckets(np.array([3, 5, 3, 5, 9]), 2)]
        [([0, 2], 3), ([1, 3, 4], 9)]
    """
    order = np.argsort(lengths, kind="stable")
    edges = [0]
    for cut in np.flatnonzero(np.diff(lengths[order])) + 1:
        if cut - edges[-1] >= smallest and len(order) - cut >= smallest:
            edges.append(int(cut))
    parts = zip(edges, [*edges[1:], len(order)], strict=True)
    return [Bucket(order[a:b], int(lengths[order[b - 1]])) for a, b in parts]


class BatchSampler:
    """The batches of a training set; absolute, so a longer run begins with the batches of a shorter one."""

    def __init__(self, encoded: Flat, batch_size: int, bucket_batches: int, data_key: str):
        self.buckets = buckets(encoded.lengths, batch_size * bucket_batches)
        self.batch_size, self.data_key = batch_size, data_key
        turns = [max(1, len(bucket.members) // batch_size) for bucket in self.buckets]
        self.turns = np.repeat(np.arange(len(turns)), turns)  # one entry a batch of an epoch
        self._last: tuple[int, tuple[int, int]] = (-1, (0, 0))  # all members of a stack ask for the same step

    def bucket(self, step: int) -> tuple[int, int]:
        """Index of the bucket of `step` (from 0), and how often that bucket was drawn before."""
        if self._last[0] == step:
            return self._last[1]
        epoch, place = divmod(step, len(self.turns))
        order = _permutation(len(self.turns), "buckets", self.data_key, epoch)
        index = int(self.turns[order[place]])
        per_epoch = int((self.turns == index).sum())
        self._last = step, (index, epoch * per_epoch + int((self.turns[order[:place]] == index).sum()))
        return self._last[1]

    def length(self, step: int) -> int:
        """Tokens to which the batch of `step` is padded."""
        return self.buckets[self.bucket(step)[0]].length

    def examples(self, step: int, seed: int) -> np.ndarray:
        """Indices (B,) of the examples that a member with this seed sees at `step`.

        Within a bucket the member walks through one permutation of its examples after another; what is left
        at the end of a permutation, less than a batch, is passed over, so no batch holds an example twice.
        """
        index, turn = self.bucket(step)
        members = self.buckets[index].members
        walk, place = divmod(turn, max(1, len(members) // self.batch_size))
        order = _permutation(len(members), seed, "batches", self.data_key, index, walk)
        return members[np.resize(order[place * self.batch_size :], self.batch_size)]


@functools.lru_cache(4096)
def _permutation(size: int, *names: object) -> np.ndarray:
    return np.random.default_rng(stream_seed(*names)).permutation(size)


def pad_rows(picks: np.ndarray, multiple: int) -> np.ndarray:
    """Picks (..., B) with the first one repeated until B divides by `multiple`; what comes of the repeats is
    not used.

    Products of one, of few or of an odd number of rows may take another kernel than larger ones, and then a
    result would show how many members were stacked (measured, DECISIONS D-42).

    Example:
        >>> pad_rows(np.array([[7, 8, 9]]), 4).tolist(), pad_rows(np.array([1, 2]), 2).tolist()
        ([[7, 8, 9, 7]], [1, 2])
    """
    return np.concatenate([picks, np.repeat(picks[..., :1], -picks.shape[-1] % multiple, axis=-1)], axis=-1)


def pad(encoded: Flat, picks: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of the picked examples, each (*picks.shape, length) int64, padded on the right with
    id 0 (masked, so the id never counts).

    Args:
        picks: indices of examples, of any shape.
        length: at least the tokens of the longest of them.

    Example:
        >>> two = Flat(np.array([7, 8, 9], dtype=np.int32), np.array([0, 1, 3]))
        >>> [part.tolist() for part in pad(two, np.array([1, 0]), 2)]
        [[[8, 9], [7, 0]], [[1, 1], [1, 0]]]
    """
    return padded(encoded.ids, encoded.offsets[picks], encoded.lengths[picks], length)


def padded(flat: np.ndarray, begins: np.ndarray, lengths: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Rows of a flat array (T,) as `pad` gives them; `begins` and `lengths` are of any one shape."""
    place = np.arange(length)
    real = place < lengths[..., None]
    ids = np.zeros(real.shape, dtype=np.int64)
    ids[real] = flat[(begins[..., None] + place)[real]]
    return torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64))


def by_length(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Indices of all examples, sorted by their lengths (N,), in batches of `size`.

    Example:
        >>> [part.tolist() for part in by_length(np.array([3, 1, 2]), 2)]
        [[1, 2], [0]]
    """
    return np.split(np.argsort(lengths, kind="stable"), range(size, len(lengths), size))


class Batch(NamedTuple):
    """Rows of `Sequences` as tensors, int64, each (..., B, length), padded on the right with id 0.

    Attributes:
        ids: (..., B, T) prompts with answers (of t5, prompts).
        mask: (..., B, T) 1 for real tokens.
        starts: (..., B) where an answer begins in its row.
        answers: (..., B, A) the answers' tokens.
        answer_mask: (..., B, A) 1 for real tokens; a row without any has no loss.
    """

    ids: Tensor
    mask: Tensor
    starts: Tensor
    answers: Tensor
    answer_mask: Tensor


def batch(sequences: Sequences, picks: np.ndarray, length: int, answer_length: int) -> Batch:
    """The picked rows, padded.

    Args:
        picks: indices of rows, of any shape (..., B).
        length: at least the tokens of the longest of them.
        answer_length: at least the tokens of the longest answer among them.
    """
    ids, mask = padded(sequences.ids, sequences.offsets[picks], sequences.lengths[picks], length)
    answers, answer_mask = padded(sequences.answer_ids, sequences.answer_begins[picks],
                                  sequences.answer_lengths[picks], answer_length)
    return Batch(ids, mask, torch.from_numpy(sequences.starts[picks]), answers, answer_mask)
