"""Whether the files of a run are those that its record names."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portability.core.errors import UserError
from portability.store.records import TORN, parse

KNOWN = ("module.safetensors", "head.safetensors", "predictions.safetensors", "port_report.json")  # of format 1
REMEDY = "move it away with `python -m portability.store verify STUDY --discard` and repeat the command"


@dataclass
class Checked:
    """What was found in a run's folder: its record, faults in words, files that are none of its own, and the digests
    (SHA-256) of those that are."""

    record: dict[str, Any] | None = None
    foreign: str | None = None  # why this version does not read it
    faults: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


def check(folder: Path, run_id: str) -> Checked:
    """Read every file of a run's folder and compare it with the record."""
    found = Checked()
    try:
        raw = (folder / "record.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found.faults.append(TORN)
        return found
    found.record, fault = parse(raw, run_id)
    if found.record is None:
        found.faults.append(str(fault))
        return found
    found.foreign = fault
    if fault is None:
        _check_files(folder, found)
    return found


def _check_files(folder: Path, found: Checked) -> None:
    assert found.record is not None
    present = {path.name: path for path in sorted(folder.iterdir()) if path.name != "record.json"}
    named = found.record["files"] if "format" in found.record else {name: None for name in KNOWN if name in present}
    found.strays = [name for name in present if name not in named]
    for name, entry in named.items():
        try:
            raw = present[name].read_bytes()
        except (KeyError, OSError) as error:
            found.faults.append(f"{name} is not there" if isinstance(error, KeyError) else f"{name} cannot be read ({error})")
            continue
        found.digests[name] = hashlib.sha256(raw).hexdigest()
        fault = differs(raw, entry) if entry else None
        if fault is None and name.endswith(".safetensors"):
            fault = unopenable(present[name])
        if fault:
            found.faults.append(f"{name} {fault}")


def differs(raw: bytes, entry: dict[str, Any]) -> str | None:
    """How a file's bytes differ from what the record says of it, or None."""
    if len(raw) != entry["bytes"]:
        return f"has {len(raw)} bytes, its record says {entry['bytes']}"
    if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        return "has other bytes than its record says (SHA-256)"
    return None


def unopenable(path: Path) -> str | None:
    """Why a file does not open as safetensors, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):
            return None
    except (OSError, SafetensorError) as error:
        return f"does not open as safetensors ({error})"


def load_bytes(folder: Path, record: dict[str, Any] | None, name: str) -> bytes:
    """The bytes of a run's file, compared with its record (of format 2).

    Raises:
        UserError: the file is not there, or differs from the record, or the record itself cannot be used.
    """
    path = folder / name
    if record is None:
        raise UserError(f"{path} cannot be read (its run has no record that can be used); {REMEDY}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if "format" in record:
        entry = record["files"].get(name)
        if fault := differs(raw, entry) if entry else "is not named by its record":
            raise UserError(f"{path} cannot be read ({name} {fault}); {REMEDY}")
    return raw
