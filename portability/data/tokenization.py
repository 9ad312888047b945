"""Texts to token ids: a question is cut in its text, never in the words that ask it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from portability.core.errors import UserError
from portability.core.specs import TaskSpec
from portability.data.examples import LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenise = Callable[[list[str]], list[list[int]]]


def flattened(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All ids (T,) int32, and where each row begins and the last one ends (N + 1,) int64."""
    lengths = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return np.array([token for row in rows for token in row], dtype=np.int32), np.concatenate([[0], lengths])


@dataclass(frozen=True)
class Encoded:
    """Token ids of N examples, one after another.

    Attributes:
        ids: (T,) int32.
        offsets: (N + 1,) int64; example i is ``ids[offsets[i] : offsets[i + 1]]``.
        labels: (N,) int64, 0 negative, 1 positive.
        truncated: number of examples whose text was cut.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, index: int) -> np.ndarray:
        """Token ids of one example, (length,) int32."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (N,) int64."""
        return np.diff(self.offsets)


def encode(
    texts: Sequence[LabelledText], tokenizer: "PreTrainedTokenizerBase", task: TaskSpec, use_template: bool
) -> Encoded:
    """Tokenise texts with labels for a host.

    Args:
        task: its template (where `use_template`) and length limit in tokens, the tokenizer's special tokens
            included.
        use_template: True for hosts that score label words, False for hosts with a head, which see the text
            alone.

    Raises:
        UserError: the limit leaves no room for the text, or a text has no tokens.
    """
    template = task.template if use_template else "{text}"

    def tokenise(texts: list[str]) -> list[list[int]]:
        asked = [template.replace("{text}", text) for text in texts]
        return tokenizer(asked, return_attention_mask=False, return_token_type_ids=False,
                         verbose=False)["input_ids"]

    found, truncated = tokenise_within([text for text, _ in texts], tokenise, task.max_length)
    return Encoded(*flattened(found), np.array([label for _, label in texts], dtype=np.int64), truncated)


def tokenise_within(texts: Sequence[str], tokenise: Tokenise, limit: int) -> tuple[list[list[int]], int]:
    """Token ids of each text within `limit` tokens, and how many texts had to be cut.

    A long text loses whole words from its end until the question fits; where not even its first word does, it
    loses characters.

    Args:
        tokenise: texts -> token ids of the questions around them.

    Raises:
        UserError: the limit leaves no room for the text, or a text has no tokens.

    Source: our choice (D-15).

    Example:
        >>> words = lambda texts: [f"{text} ?".split() for text in texts]
        >>> tokenise_within(["a b", "a b c d"], words, 3)
        ([['a', 'b', '?'], ['a', 'b', '?']], 1)
    """
    found = tokenise(list(texts))
    for text, ids in zip(texts, found, strict=True):
        if not ids:
            raise UserError(f"the host's tokenizer finds no token in {text[:60]!r}")
    long = [i for i, ids in enumerate(found) if len(ids) > limit]
    rests = [texts[i] for i in long]
    cut = _longest([[m.end() for m in re.finditer(r"\S+", text)] for text in rests], rests, tokenise, limit)
    stuck = [j for j, text in enumerate(cut) if not text]
    by_letter = [rests[j].strip() for j in stuck]
    letters = _longest([list(range(1, len(text) + 1)) for text in by_letter], by_letter, tokenise, limit)
    for j, text in zip(stuck, letters, strict=True):
        if not text:
            room = len(tokenise([""])[0])
            raise UserError(f"task.max_length {limit} leaves no room for the text: the question alone takes "
                            f"{room}")
        cut[j] = text
    for i, ids in zip(long, tokenise(cut) if cut else [], strict=True):
        found[i] = ids
    return found, len(long)


def _longest(ends: list[list[int]], texts: list[str], tokenise: Tokenise, limit: int) -> list[str]:
    """The longest beginning of each text, up to one of its `ends`, that fits; empty where none does.

    All texts are halved at once, so that the tokenizer is called some ten times, not some ten times a text.
    """
    low, high = [0] * len(texts), [len(places) for places in ends]  # `low` ends fit, more than `high` do not
    while open_ := [i for i in range(len(texts)) if low[i] < high[i]]:
        middle = {i: (low[i] + high[i] + 1) // 2 for i in open_}
        tried = tokenise([texts[i][: ends[i][middle[i] - 1]] for i in open_])
        for i, ids in zip(open_, tried, strict=True):
            if len(ids) <= limit:
                low[i] = middle[i]
            else:
                high[i] = middle[i] - 1
    return [text[: places[fit - 1]] if fit else ""
            for text, places, fit in zip(texts, ends, low, strict=True)]
