"""Tokens of two tokenizers that end at the same character of a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from portability.core.errors import UserError

# ids (B, T), mask (B, T), rows and columns of tokens (N,)
Read = tuple[Tensor, Tensor, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Aligned:
    """A batch of texts as both hosts read it; the n-th picked token of the one ends where that of the other
    does."""

    origin: Read
    receiving: Read

    @property
    def tokens(self) -> int:
        """How many tokens are picked."""
        return len(self.origin[2][0])


def align(origin: Any, receiving: Any, texts: Sequence[str], length: int) -> Aligned:
    """Texts as both tokenizers read them, with the tokens that end at the same character.

    Args:
        origin, receiving: tokenizers.
        length: most tokens of a text.

    Raises:
        UserError: tokenizers that differ, and one of them does not say where its tokens end.
    """
    same = origin.get_vocab() == receiving.get_vocab()
    found = [_encoded(tokenizer, texts, length, same) for tokenizer in (origin, receiving)]
    rows: list[int] = []
    columns: tuple[list[int], list[int]] = [], []
    for row, (one, other) in enumerate(zip(found[0][2], found[1][2], strict=True)):
        for end in one.keys() & other.keys() if not same else one.keys():
            rows.append(row)
            columns[0].append(one[end])
            columns[1].append(other[end])
    picks = [(torch.tensor(rows, dtype=torch.long), torch.tensor(side, dtype=torch.long)) for side in columns]
    return Aligned((*found[0][:2], picks[0]), (*found[1][:2], picks[1]))


def _encoded(tokenizer: Any, texts: Sequence[str], length: int,
             same: bool) -> tuple[Tensor, Tensor, list[dict[int, int]]]:
    """Ids and mask (B, T), padded on the right, and of each text the place of the token that ends at a
    character; of equal tokenizers the place of each token."""
    if not same and not tokenizer.is_fast:
        raise UserError(f"the tokenizers differ, and {type(tokenizer).__name__} does not say at which "
                        "characters its tokens end, so that they cannot be aligned; save it as a fast "
                        "tokenizer (tokenizer.json)")
    options = {} if same else {"return_offsets_mapping": True}
    encoded = tokenizer(list(texts), truncation=True, max_length=length, verbose=False, **options)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    ids = torch.full((len(texts), max(1, max(lengths))), tokenizer.pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ends: list[dict[int, int]] = []
    for row, own in enumerate(encoded["input_ids"]):
        ids[row, :len(own)] = torch.tensor(own, dtype=torch.long)
        mask[row, :len(own)] = 1
        if same:
            ends.append({place: place for place in range(len(own))})
        else:
            spans = encoded["offset_mapping"][row]
            ends.append({end: place for place, (start, end) in enumerate(spans) if end > start})
    return ids, mask, ends
