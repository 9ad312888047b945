"""The record of a run: its canonical text, its digest, and what keeps a record that was read from being
used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FORMAT = 2  # of the files of a run; raise it when this version could not read the next one's
RECORD = "record.json"
CORRUPT = "its record is not there or does not parse"
Arrays = Mapping[str, "torch.Tensor"]
Parsed = tuple[dict[str, Any] | None, str | None]  # record, fault; both, where its format is newer
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@dataclass
class Result:
    """What a finished run leaves behind: its record, and tensors by file name (module, start, head,
    predictions)."""

    record: dict[str, Any]
    tensors: dict[str, Arrays] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)  # safetensors metadata by file name
    port_report: dict[str, Any] | None = None


def seal(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record with its format, the SHA-256 and bytes of the `files` beside it, and last its own digest.

    Raises:
        ValueError: a number is not finite.
    """
    return with_digest({**record, "format": FORMAT, "files": files})


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value as it is read back from JSON, with its own digest.

    Raises:
        ValueError: a number is not finite.
    """
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, "digest": self_digest(plain)}


def self_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical text of a record without its digest."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "digest"}).encode()).hexdigest()


def read_record(folder: Path, run_id: str) -> Parsed:
    """The record in a run's folder as `parse` gives it; (None, None) where there is none."""
    try:
        raw = (folder / RECORD).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    return parse(raw, run_id)


def parse(raw: bytes | str, run_id: str) -> Parsed:
    """The record in a file's text and what is wrong with it: (record, None), (None, fault), or (record,
    fault) where its format is newer than this version reads."""
    try:
        record = json.loads(raw)
    except ValueError:
        return None, CORRUPT
    if not isinstance(record, dict):
        return None, CORRUPT
    version = record.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        return record, f"format {version}, this version reads up to {FORMAT}"
    fault = _fault(record, run_id)
    return (None, fault) if fault else (record, None)


def _fault(record: Mapping[str, Any], run_id: str) -> str | None:
    """What keeps a record that parses from being used, or None."""
    if record.get("format", 1) not in (1, FORMAT):
        return f"its record has the format {record['format']!r}"
    if ("digest" in record) != ("format" in record):
        return "its record has a digest without a format, or the other way round"
    if "digest" in record and record["digest"] != self_digest(record):
        return "its record differs from the record's own digest (it was changed, or damaged)"
    if record.get("run_id", run_id) != run_id:
        return f"its record is that of run {record['run_id']}"
    try:
        marks = [mark["updates"] for mark in record["train_info"]["metrics"]]
        files = record["files"].values() if "format" in record else ()
        sizes = [entry["bytes"] for entry in files if entry["sha256"]]
    except (KeyError, TypeError, AttributeError) as error:
        return f"its record has no train_info.metrics with updates, or does not name its files ({error!r})"
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in marks + sizes):
        return "updates or bytes of its record are no counts"
    return None


def evaluated(record: Mapping[str, Any]) -> frozenset[int]:
    """The optimiser updates at which a run was evaluated."""
    return frozenset(mark["updates"] for mark in record["train_info"]["metrics"])


def measured(record: Mapping[str, Any]) -> frozenset[str]:
    """The metrics of which a record holds numbers, or says why there are none."""
    train = record["train_info"]
    holes = {hole["metric"] for hole in train.get("unmeasured", [])}
    return frozenset(holes.union(*train["metrics"]) - {"updates"})
