"""Reads an ordinary study: a folder for each run, and a file for each failed attempt."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.store import failures
from portability.store.integrity import Checked, check, load_bytes
from portability.store.records import CORRUPT, RECORD, Parsed, read_record

if TYPE_CHECKING:
    import numpy as np


def folder_of(root: Path, run_id: str) -> Path:
    """Where a run is, or will be."""
    return root / "runs" / run_id[:2] / run_id


def run_folders(root: Path) -> list[Path]:
    """A study's run folders in the order of their ids, drafts left out."""
    found = (path for path in (root / "runs").glob(f"{'?' * 2}/{'?' * 16}") if not path.name.startswith("."))
    return sorted(found, key=lambda path: (path.name, path))


def scan(root: Path) -> dict[str, tuple[str, int, int] | None]:
    """Run id -> (run id, mtime_ns, size) of its record.json, or None where there is none, or not in its own
    shard."""
    found: dict[str, tuple[str, int, int] | None] = {}
    for folder in run_folders(root):
        found.setdefault(folder.name, None)
        if folder.name[:2] == folder.parent.name:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                seen = (folder / RECORD).stat()
                found[folder.name] = (folder.name, seen.st_mtime_ns, seen.st_size)
    return found


class RunFolders:
    """Reads what `published.Published` reads of a packed study."""

    def __init__(self, root: Path):
        self.root = root

    def ids(self) -> list[str]:
        """Ids of the run folders, sorted."""
        return list(scan(self.root))

    def parsed(self, run_id: str) -> Parsed:
        """A run's record, its fault, or neither where it has no record."""
        return read_record(folder_of(self.root, run_id), run_id)

    def entries(self) -> Iterator[tuple[str, Parsed]]:
        """Every run folder with its record or fault, read from the index where that holds it."""
        from portability.store import index

        for run_id, text in index.texts(self.root).items():
            record, fault = (json.loads(text), None) if text else self.parsed(run_id)
            yield run_id, (record, fault if record or fault else CORRUPT)

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        return failures.attempts(self.root / "failures", run_id)

    def failures(self) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
        """Run, number and failure of every attempt (None: it cannot be read)."""
        return failures.read_all(self.root / "failures")

    def check(self, run_id: str) -> Checked:
        """Read every file of a run and compare it with the record."""
        return check(folder_of(self.root, run_id), run_id)

    def predictions(self, run_id: str) -> dict[str, "np.ndarray"]:
        """A run's predictions (see `Store.predictions`).

        Raises:
            UserError: the run has none, or they differ from its record's digest.
        """
        from safetensors.numpy import load

        return load(load_bytes(folder_of(self.root, run_id), run_id, "predictions.safetensors"))
