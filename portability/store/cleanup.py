"""What killed processes leave behind: drafts, which are removed, and runs moved aside, which are put back."""

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from portability.store.integrity import check

log = logging.getLogger(__name__)
OLD = re.compile(r"\.old-\.draft-([^-]+)-.*")  # as `atomic.replacing_folder` names it
PATTERNS = ("runs/??/.draft-*", "runs/??/.old-*", "manifests/.*", "failures/.*", "checkpoints/.*", "hosts/.*",
            ".index.parquet.*")


def tidy_up(root: Path, older_than_seconds: float) -> int:
    """Remove or put back what killed processes left (see `Store.tidy_up`); gives back how many paths it dealt
    with."""
    count = 0
    for path in leftovers(root, older_than_seconds):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            _tidy(path)
            count += 1
    return count


def leftovers(root: Path, older_than_seconds: float) -> Iterator[Path]:
    """Drafts and runs moved aside that were last changed so long ago that no living process is at work on
    them.

    Of a run moved aside the time of its renaming counts, because its content is as old as the run.
    """
    for path in sorted(path for pattern in PATTERNS for path in root.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):
            seen = path.stat()
            changed = max(seen.st_ctime, seen.st_mtime) if path.name.startswith(".old-") else seen.st_mtime
            if time.time() - changed >= older_than_seconds:
                yield path


def _tidy(path: Path) -> None:
    """Remove a leftover, or put back the run that it is."""
    moved = OLD.fullmatch(path.name)
    final = path.with_name(moved[1]) if moved else path
    if moved and not final.exists() and not check(path, moved[1]).faults:
        path.rename(final)
        log.warning("run %s was put back: a process was killed while it was replaced", final.name)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def set_aside(root: Path, folder: Path) -> Path:
    """Move a run's folder to `discarded/`, so that the run counts as not done; gives back where it is."""
    away = root / "discarded"
    away.mkdir(exist_ok=True)
    number = next(n for n in range(1, 1 << 30) if not (away / f"{folder.name}-{n}").exists())
    with contextlib.suppress(FileNotFoundError):  # another command was faster
        folder.rename(away / f"{folder.name}-{number}")
    return away / f"{folder.name}-{number}"
