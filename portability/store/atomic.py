"""Writing that a kill or a full disk cannot leave half done: beside the place, flushed to the disk, renamed
last; and what a kill leaves all the same: drafts, which are removed, and runs moved aside, which are put
back."""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from portability.store.records import check

log = logging.getLogger(__name__)
OLD = re.compile(r"\.old-\.draft-([^-]+)-.*")  # as `replacing_folder` names it
PATTERNS = ("runs/??/.draft-*", "runs/??/.old-*", "manifests/.*", "failures/.*", "checkpoints/.*", "hosts/.*",
            ".index.parquet.*")


@contextlib.contextmanager
def replacing(path: Path, flush: bool = True, anew: bool = False) -> Iterator[Path]:
    """A draft to write to, beside `path`; when the block ends well it takes that place.

    Args:
        flush: whether the draft is flushed to the disk first.
        anew: whether `path` must not be there yet; of two processes at once exactly one has its way.

    Raises:
        FileExistsError: it is there.
        OSError: the disk is full or not writable. No draft stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")  # readers skip such names
    try:
        yield draft
        if flush:
            sealed(draft)
        os.link(draft, path) if anew else draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def json_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The JSON files of a folder, drafts left out; none where it is not there."""
    return sorted(path for path in folder.glob(f"{pattern}.json") if not path.name.startswith("."))


def write_json(path: Path, value: Mapping[str, Any], anew: bool = False) -> None:
    """Write a value as JSON that people can read, in place of what is there, or where nothing is (`anew`).

    Raises:
        FileExistsError: something is there.
        OSError: the disk is full or not writable.
        ValueError: a number is not finite.
    """
    with replacing(path, anew=anew) as draft:
        draft.write_text(pretty(value))


def pretty(value: Mapping[str, Any]) -> str:
    """JSON that people can read.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False)


def sealed(path: Path) -> dict[str, Any]:
    """Flush a file to the disk; its SHA-256 (hex) and bytes."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"sha256": found, "bytes": os.fstat(file.fileno()).st_size}


@contextlib.contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """A draft folder to fill; when the block ends well it takes the place of `final`, else nothing of it
    stays. A run evaluated again at more marks, or a broken one, makes room first.

    Raises:
        OSError: the disk is full or not writable.
    """
    draft = draft_folder(final)
    old = final.parent / f".old-{draft.name}"
    try:
        yield draft
        if final.exists():
            final.rename(old)
        draft.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    else:
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_folder(final: Path) -> Path:
    """A new folder beside `final` that no reader looks at."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".draft-{final.name}-{os.getpid()}-", dir=final.parent))
    draft.chmod(0o755)
    return draft


def tidy_up(root: Path, older_than_seconds: float) -> int:
    """Remove or put back what killed processes left (see `Store.tidy_up`); gives back how many paths it dealt
    with."""
    count = 0
    for path in leftovers(root, older_than_seconds):
        moved = OLD.fullmatch(path.name)
        final = path.with_name(moved[1]) if moved else path
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if moved and not final.exists() and not check(path, moved[1]).faults:
                path.rename(final)
                log.warning("run %s was put back: a process was killed while it was replaced", final.name)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
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
