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
    """Texts as both tokenizers read them, with the tokens that end at the same character, in the order of the
    text; where both read the same tokens, all of them.

    Of several tokens that end at one character, as the bytes of a letter, the last one counts. Special tokens
    end nowhere, and neither does the last token of a text that was cut, whose letter may be half read.

    Args:
        origin, receiving: tokenizers.
        length: most tokens of a text.

    Raises:
        UserError: tokenizers that differ, and one of them does not say where its tokens end.
    """
    found = [_encoded(tokenizer, texts, length) for tokenizer in (origin, receiving)]
    if origin.get_vocab() == receiving.get_vocab() and found[0] == found[1]:
        ends = [[{place: place for place in range(len(row))} for row in ids] for ids in found]
    else:
        ends = [_ends(tokenizer, texts, length) for tokenizer in (origin, receiving)]
    picks = [(row, one[end], other[end]) for row, (one, other) in enumerate(zip(*ends, strict=True))
             for end in sorted(one.keys() & other.keys())]
    rows, *columns = torch.tensor(picks, dtype=torch.long).reshape(-1, 3).T
    first, second = (_padded(ids, tokenizer.pad_token_id or 0) for ids, tokenizer in zip(
        found, (origin, receiving), strict=True))
    return Aligned((*first, (rows, columns[0])), (*second, (rows, columns[1])))


def _encoded(tokenizer: Any, texts: Sequence[str], length: int, **options: bool) -> Any:
    """Ids of each text, or with `options` all that the tokenizer says."""
    found = tokenizer(list(texts), truncation=True, max_length=length, verbose=False, **options)
    return found if options else found["input_ids"]


def _ends(tokenizer: Any, texts: Sequence[str], length: int) -> list[dict[int, int]]:
    """Of each text the place of the last token that ends at a character."""
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizers differ, and {type(tokenizer).__name__} does not say at which "
                        "characters its tokens end, so that they cannot be aligned; save it as a fast "
                        "tokenizer (tokenizer.json)")
    found = []
    for spans in _encoded(tokenizer, texts, length, return_offsets_mapping=True)["offset_mapping"]:
        ends = {end: place for place, (start, end) in enumerate(spans) if end > start}
        if len(spans) >= length and ends:
            del ends[max(ends)]
        found.append(ends)
    return found


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T), padded on the right."""
    ids = torch.full((len(rows), max(1, *map(len, rows))), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(rows):
        ids[row, :len(own)] = torch.tensor(own, dtype=torch.long)
        mask[row, :len(own)] = 1
    return ids, mask
