"""Whether the files of a run are those that its record names."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portability.core.errors import UserError
from portability.store.records import CORRUPT, RECORD, Parsed, read_record

# files that a record of format 1 does not name
KNOWN = ("module.safetensors", "head.safetensors", "predictions.safetensors", "port_report.json")
REMEDY = "move it away with `python -m portability.store verify STUDY --discard` and repeat the command"


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
        return next(iter(self.faults), None) or self.unsupported_version


def check(folder: Path, run_id: str) -> Checked:
    """Read every file of a run's folder and compare it with the record."""
    found = Checked.of(read_record(folder, run_id))
    if found.record is None or found.unsupported_version:
        return found
    present = {path.name: path for path in sorted(folder.iterdir()) if path.name != RECORD}
    of_format_1 = {name: None for name in KNOWN if name in present}
    named = found.record["files"] if "format" in found.record else of_format_1
    found.strays = [name for name in present if name not in named]
    for name, entry in named.items():
        try:
            raw = present[name].read_bytes()
        except KeyError:
            found.faults.append(f"{name} is not there")
        except OSError as error:
            found.faults.append(f"{name} cannot be read ({error})")
        else:
            found.digests[name] = hashlib.sha256(raw).hexdigest()
            if fault := (differs(raw, entry) if entry else None) or _unopenable(present[name]):
                found.faults.append(f"{name} {fault}")
    return found


def differs(raw: bytes, entry: dict[str, Any]) -> str | None:
    """How a file's bytes differ from what the record says of it, or None."""
    if len(raw) != entry["bytes"]:
        return f"has {len(raw)} bytes, its record says {entry['bytes']}"
    if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        return "has other bytes than its record says (SHA-256)"
    return None


def _unopenable(path: Path) -> str | None:
    """Why a file of tensors does not open, or None."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "numpy"):
            return None
    except (OSError, SafetensorError) as error:
        return f"does not open as safetensors ({error})"


def load_bytes(folder: Path, run_id: str, name: str) -> bytes:
    """The bytes of a run's file, compared with its record (of format 2).

    Raises:
        UserError: the file is not there, or differs from the record, or the record itself cannot be used.
    """
    record, unusable = read_record(folder, run_id)
    if record is None or unusable:
        raise UserError(f"{folder / name} cannot be read (its run has no record that can be used); {REMEDY}")
    try:
        raw = (folder / name).read_bytes()
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read ({error}); {REMEDY}") from error
    if "format" in record:
        entry = record["files"].get(name)
        if fault := differs(raw, entry) if entry else "is not named by its record":
            raise UserError(f"{folder / name} cannot be read ({name} {fault}); {REMEDY}")
    return raw
