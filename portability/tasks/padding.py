"""Rows of token ids as padded tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from portability.data.answer_tokens import Sequences
from portability.data.sampling import padded


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
    flat, begins = sequences.answers
    ids, mask = padded(sequences.ids, sequences.offsets[picks], sequences.lengths[picks], length)
    answers, answer_mask = padded(flat, begins[picks], sequences.answer_lengths[picks], answer_length)
    return Batch(ids, mask, torch.from_numpy(sequences.starts[picks]), answers, answer_mask)
