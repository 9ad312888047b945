"""A run's folder: its record with its digest, and whether the files beside it are those that it names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.errors import UserError

if TYPE_CHECKING:
    import torch

FORMAT = 2  # of the files of a run; raise it when this version could not read the next one's
RECORD = "record.json"
CORRUPT = "its record is not there or does not parse"
REMEDY = "move it away with `portability store verify STUDY --discard` and repeat the command"
# files that a record of format 1 does not name
KNOWN = ("module.safetensors", "head.safetensors", "predictions.safetensors", "port_report.json")
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
        version = record.get("format", 1)
    except (ValueError, AttributeError):
        return None, CORRUPT
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
        counts = [mark["updates"] for mark in record["train_info"]["metrics"]]
        files = record["files"].values() if "format" in record else ()
        counts += [entry["bytes"] for entry in files if entry["sha256"]]
    except (KeyError, TypeError, AttributeError) as error:
        return f"its record has no train_info.metrics with updates, or does not name its files ({error!r})"
    good = all(isinstance(number, int) and 0 <= number < 2**63 for number in counts)
    return None if good else "updates or bytes of its record are no counts"


def evaluated(record: Mapping[str, Any]) -> frozenset[int]:
    """The optimiser updates at which a run was evaluated."""
    return frozenset(mark["updates"] for mark in record["train_info"]["metrics"])


# ---- the files beside a record


@dataclass
class Checked:
    """A run whose files were read.

    Attributes:
        record: its record, where that parses.
        unsupported_version: why this version does not read the record.
        faults: what is wrong with the record and the files that it names.
        strays: files that the record does not name.
        digests: SHA-256 of the files that the record names.
    """

    record: dict[str, Any] | None = None
    unsupported_version: str | None = None
    faults: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parsed: Parsed) -> "Checked":
        """A record whose files were not read yet."""
        record, fault = parsed
        return cls(None, None, [fault or CORRUPT]) if record is None else cls(record, fault)

    @property
    def fault(self) -> str | None:
        """The first reason why the run cannot be used, or None."""
        return next(iter(self.faults), self.unsupported_version)


def check(folder: Path, run_id: str) -> Checked:
    """Read every file of a run's folder and compare it with the record."""
    from safetensors import SafetensorError, safe_open

    found = Checked.of(read_record(folder, run_id))
    if found.record is None or found.unsupported_version:
        return found
    present = sorted(path.name for path in folder.iterdir() if path.name != RECORD)
    named = found.record["files"] if "format" in found.record else [name for name in present if name in KNOWN]
    found.strays = [name for name in present if name not in named]
    for name in named:
        try:
            found.digests[name] = hashlib.sha256(_read(folder / name, found.record)).hexdigest()
            if name.endswith(".safetensors"):
                with safe_open(folder / name, "numpy"):
                    pass
        except ValueError as error:
            found.faults.append(f"{name} {error}")
        except (OSError, SafetensorError) as error:
            found.faults.append(f"{name} does not open as safetensors ({error})")
    return found


def _read(path: Path, record: Mapping[str, Any]) -> bytes:
    """The bytes of a run's file.

    Raises:
        ValueError: says how it differs from what the record (of format 2) says of it.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError("is not there") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error})") from error
    if "format" in record:
        entry = record["files"].get(path.name)
        if entry is None:
            raise ValueError("is not named by its record")
        if len(raw) != entry["bytes"]:
            raise ValueError(f"has {len(raw)} bytes, its record says {entry['bytes']}")
        if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
            raise ValueError("has other bytes than its record says (SHA-256)")
    return raw


def load_bytes(folder: Path, run_id: str, name: str) -> bytes:
    """The bytes of a run's file, compared with its record (of format 2).

    Raises:
        UserError: the file is not there, or differs from the record, or the record itself cannot be used.
    """
    record, unusable = read_record(folder, run_id)
    try:
        if record is None or unusable:
            raise ValueError("is of a run with no record that can be used")
        return _read(folder / name, record)
    except ValueError as error:
        raise UserError(f"{folder / name} cannot be read ({name} {error}); {REMEDY}") from error
