"""Failed attempts: a file each, numbered from 1, never lost when two processes fail the same run at once."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from portability.store.atomic import json_files, write_json
from portability.store.records import canonical


def keep(folder: Path, run_id: str, failure: Mapping[str, Any]) -> int:
    """Write a failure under the first number that is free, and give back that number."""
    attempt = 1 + attempts(folder, run_id)
    try:
        write_json(path_of(folder, run_id, attempt), {**failure, "run_id": run_id, "attempt": attempt},
                   anew=True)
    except FileExistsError:  # another process was first
        return keep(folder, run_id, failure)
    return attempt


def path_of(folder: Path, run_id: str, attempt: int) -> Path:
    """Where an attempt is kept."""
    return folder / f"{run_id}-{attempt}.json"


def attempts(folder: Path, run_id: str) -> int:
    """Number of recorded failures of a run."""
    return next(number for number in count() if not path_of(folder, run_id, number + 1).exists())


def parse(raw: bytes | str, run_id: str, attempt: int) -> dict[str, Any] | None:
    """The failure in a text, or None where it is no failure of that run and number."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        failure = json.loads(raw)
        if (failure["run_id"], failure["attempt"]) == (run_id, attempt):
            return failure
    return None


def read_all(folder: Path, of: str = "*") -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    """Run, number and failure (None: it cannot be read) of every attempt (of one run), in that order."""
    names = ((path, *path.stem.rpartition("-")) for path in json_files(folder, f"{of}-*"))
    found = sorted((run_id, int(end), path) for path, run_id, _, end in names if end.isdecimal())
    for run_id, attempt, path in found:
        with contextlib.suppress(FileNotFoundError):
            yield run_id, attempt, parse(path.read_bytes(), run_id, attempt)


def set_aside(folder: Path, run_id: str) -> None:
    """Move a run's failures to `given_up/`, which nothing counts: its cells are asked for with other
    settings."""
    for _, attempt, failure in read_all(folder, run_id):
        if failure is not None:
            keep(folder / "given_up", run_id, failure)
        path_of(folder, run_id, attempt).unlink()


def copy(source: Path, target: Path) -> int:
    """Copy failures that the target lacks, under new numbers where theirs are taken; gives back how many."""
    texts = [Counter((run_id, canonical({**(failure or {}), "attempt": None}))
                     for run_id, _, failure in read_all(folder)) for folder in (source, target)]
    new = texts[0] - texts[1]
    for run_id, text in new.elements():
        keep(target, run_id, json.loads(text))
    return new.total()
