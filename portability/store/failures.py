"""Failed attempts: a file each, numbered from 1, never lost when two processes fail the same run at once."""

import datetime
import json
import logging
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def fail(folder: Path, run_id: str, failure: Mapping[str, Any]) -> int:
    """Keep one failed attempt with the time (`at`, UTC), and give back its number."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return keep(folder, run_id, {"at": now, **failure})


def keep(folder: Path, run_id: str, failure: Mapping[str, Any]) -> int:
    """Write a failure under the first number that is free."""
    from portability.store.atomic import create_json

    folder.mkdir(parents=True, exist_ok=True)
    for attempt in count(1 + attempts(folder, run_id)):
        if create_json(path_of(folder, run_id, attempt), {**failure, "run_id": run_id, "attempt": attempt}):
            return attempt
    raise AssertionError("numbers never end")


def path_of(folder: Path, run_id: str, attempt: int) -> Path:
    """Where an attempt is kept."""
    return folder / f"{run_id}-{attempt}.json"


def attempts(folder: Path, run_id: str) -> int:
    """Number of recorded failures of a run."""
    return next(number for number in count() if not path_of(folder, run_id, number + 1).exists())


def set_aside(folder: Path, run_id: str) -> None:
    """Move a run's failures to `given_up/`, a trail that nothing counts: its cells are asked for with other settings."""
    for attempt in range(1, 1 + attempts(folder, run_id)):
        if (failure := load(folder, run_id, attempt)) is not None:
            keep(folder / "given_up", run_id, failure)
        path_of(folder, run_id, attempt).unlink()


def names(folder: Path) -> dict[str, list[int]]:
    """Run id -> numbers of its attempts, ascending, of all failures in one pass over the folder."""
    found: dict[str, list[int]] = {}
    try:
        for entry in os.scandir(folder):
            run_id, _, number = entry.name.removesuffix(".json").rpartition("-")
            if entry.name.endswith(".json") and not entry.name.startswith(".") and run_id and number.isdecimal():
                found.setdefault(run_id, []).append(int(number))
    except FileNotFoundError:
        return {}
    return {run_id: sorted(found[run_id]) for run_id in sorted(found)}


def load(folder: Path, run_id: str, attempt: int) -> dict[str, Any] | None:
    """One failure, or None where its file is no failure of that run and number."""
    try:
        failure = json.loads(path_of(folder, run_id, attempt).read_bytes())
    except (ValueError, FileNotFoundError):
        return None
    good = isinstance(failure, dict) and failure.get("run_id") == run_id and failure.get("attempt") == attempt
    return failure if good else None


def latest(folder: Path) -> Iterator[dict[str, Any]]:
    """The last failure of each run that can be read."""
    for run_id, numbers in names(folder).items():
        for number in reversed(numbers):
            if (failure := load(folder, run_id, number)) is not None:
                yield failure
                break
            log.warning("failure %s-%d cannot be read; it is passed over", run_id, number)
