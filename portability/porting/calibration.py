"""Texts without labels on which two hosts are compared."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portability.core.errors import UserError
from portability.core.seeds import stream_seed
from portability.core.specs import CalibrationSpec, Text
from portability.data.examples import Example
from portability.data.files import TABLES, rows_of
from portability.data.splits import StudyData, rows


@dataclass(frozen=True)
class Calibration:
    """Texts, or pairs of texts, in the order in which they are read, until `tokens` tokens were seen by both
    hosts.

    Attributes:
        name: of the set or file.
        digest: of the texts, whatever their order.
    """

    name: str
    texts: Sequence[Text]
    tokens: int
    seed: int
    digest: str

    @property
    def mark(self) -> tuple[object, ...]:
        """What its activations depend on."""
        return self.digest, self.tokens, self.seed


def calibration(name: str, texts: Sequence[Text], tokens: int = 4096, seed: int = 0) -> Calibration:
    """Distinct texts, or pairs, in an order drawn by the seed.

    Raises:
        UserError: none of them has a character, or not even one token is asked for.
    """
    if tokens < 1:
        raise UserError(f"calibration texts '{name}': the number of tokens must be 1 or more, got {tokens}")
    own = _distinct(texts)
    if not own:
        raise UserError(f"calibration texts '{name}': there is no text in it")
    order = np.random.default_rng(stream_seed(seed, "calibration")).permutation(len(own))
    return Calibration(name, [own[place] for place in order], tokens, seed, digest_of(own))


def _distinct(texts: Sequence[Text]) -> list[Text]:
    """The texts without blanks around them, in order, each once and none empty."""
    single = {text.strip() for text in texts if isinstance(text, str)} - {""}
    pairs = {(text[0].strip(), text[1].strip()) for text in texts if not isinstance(text, str)}
    return [*sorted(single), *sorted(pairs)]


def digest_of(texts: Sequence[Text]) -> str:
    """First 16 hex digits of the SHA-256 of the distinct texts."""
    joined = json.dumps(_distinct(texts), ensure_ascii=False)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def study_texts(how: CalibrationSpec, data: StudyData) -> Calibration:
    """The texts of a study's port: the training texts of one of its sets, or a file.

    Raises:
        UserError: they cannot be read, or are no longer those that the study was planned with.
    """
    found = calibration(Path(how.texts).name, texts_of(how.texts, data), how.tokens, how.seed)
    if how.digest and found.digest != how.digest:
        raise UserError(f"calibration texts '{found.name}' changed since the study was planned; rerun")
    return found


def texts_of(words: str, data: StudyData) -> list[Text]:
    """The training texts, or pairs, of a set of the study (prompts, of examples), or of the file of this
    name."""
    if words not in data.sources:
        return read_texts(Path(words).expanduser())
    return [row.prompt if isinstance(row, Example) else row[0] for row in rows(data, words, "train", 0)]


def read_texts(path: Path) -> list[Text]:
    """The texts of a file: of a .jsonl, .csv or .parquet the field `text` of each row, or the pair `text`,
    `text_pair`, of any other each line.

    Raises:
        UserError: there is no such file, it cannot be read, or a row has no text, or half a character in it.
    """
    if not path.is_file():
        raise UserError(f"calibration texts: there is no file {path}")
    if path.suffix in TABLES:
        return [_text(row, where) for where, row in rows_of(path)]
    try:
        lines: list[str] = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"calibration texts: {path} is not text in UTF-8: {error}") from error
    if path.suffix != ".jsonl":
        return [*lines]
    return [_text(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _text(row: Any, where: str) -> Text:
    """The text, or pair of texts, of a row, or of the line of JSON that is one."""
    try:
        row = json.loads(row) if isinstance(row, str) else row
        parts = [row["text"], *([row["text_pair"]] if "text_pair" in row else [])]
        for part in parts:
            part.encode()  # half of a pair of surrogates is no text
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"calibration texts: {where}: each line must be a JSON object with text") from error
    return (parts[0], parts[1]) if parts[1:] else parts[0]
