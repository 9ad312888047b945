"""Texts to token ids, once per content: a question is cut in its text, never in the words that ask it."""

import hashlib
import importlib.metadata
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portability.core.errors import UserError
from portability.core.hashing import cache_folder
from portability.core.specs import TaskSpec, digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
LAYOUT = 1  # of the kept files and of the rule by which texts are cut
Tokenise = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Encoded:
    """Token ids of N examples, one after another.

    Attributes:
        ids: (T,) int32, read only, perhaps mapped from a file.
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
    dataset: "Dataset | Mapping[str, Sequence[Any]]", tokenizer: "PreTrainedTokenizerBase", task: TaskSpec,
    use_template: bool, tokenizer_key: str,
) -> Encoded:
    """Tokenise a data set for a host, or load it where the same was tokenised before.

    Args:
        dataset: columns text and label.
        task: its template (where `use_template`) and length limit in tokens, the tokenizer's special tokens
            included.
        use_template: True for hosts that score label words, False for hosts with a head, which see the text
            alone.
        tokenizer_key: fingerprint of the tokenizer; two tokenizers must never share one.

    Raises:
        UserError: the limit leaves no room for the text, or a text has no tokens.
    """
    template = task.template if use_template else "{text}"
    texts, labels = list(dataset["text"]), np.array(dataset["label"], dtype=np.int64)
    content = hashlib.sha256(json.dumps([texts, labels.tolist()]).encode()).hexdigest()
    versions = [importlib.metadata.version(package) for package in ("tokenizers", "transformers")]
    entry = digest([LAYOUT, content, tokenizer_key, versions, template, task.max_length])
    path = cache_folder() / "encoded" / f"{entry}.npy"
    known = _load(path, labels)
    if known is not None:
        return known

    def tokenise(texts: list[str]) -> list[list[int]]:
        asked = [template.replace("{text}", text) for text in texts]
        return tokenizer(asked, return_attention_mask=False, return_token_type_ids=False,
                         verbose=False)["input_ids"]

    found, truncated = tokenise_within(texts, tokenise, task.max_length)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in found])]).astype(np.int64)
    ids = np.fromiter((token for row in found for token in row), dtype=np.int32, count=int(offsets[-1]))
    encoded = Encoded(ids, offsets, labels, truncated)
    _save(path, encoded)
    return encoded


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


# ---- one file per data set: int32 [truncated, N, length 1 .. N, label 1 .. N, ids ...]


def _load(path: Path, labels: np.ndarray) -> Encoded | None:
    """What was kept under this name, mapped into memory, or None where it is missing or broken."""
    try:
        whole = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    count, head = len(labels), 2 + 2 * len(labels)
    if whole.dtype != np.int32 or whole.ndim != 1 or len(whole) < head or whole[1] != count:
        return None
    offsets = np.concatenate([[0], np.cumsum(whole[2 : 2 + count], dtype=np.int64)])
    if len(whole) != head + offsets[-1] or not np.array_equal(whole[2 + count : head], labels):
        return None
    return Encoded(whole[head:], offsets, labels, int(whole[0]))


def _save(path: Path, encoded: Encoded) -> None:
    """Write beside `path` and rename; a cache that cannot be written costs time, not the run."""
    parts = [np.array([encoded.truncated, len(encoded)]), encoded.lengths, encoded.labels, encoded.ids]
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".draft-", delete=False) as file:
            draft = Path(file.name)
            np.save(file, np.concatenate(parts).astype(np.int32), allow_pickle=False)
        draft.replace(path)
    except OSError as error:
        log.warning("cannot keep tokenised texts in %s (%s)", path.parent, error.strerror)
        if draft is not None:
            draft.unlink(missing_ok=True)
