"""Writing that a kill or a full disk cannot leave half done: beside the place, flushed to the disk, renamed
last."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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


def json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder, drafts left out; none where it is not there."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


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
    stays.

    Raises:
        OSError: the disk is full or not writable.
    """
    draft = draft_folder(final)
    try:
        yield draft
        _place(draft, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_folder(final: Path) -> Path:
    """A new folder beside `final` that no reader looks at."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".draft-{final.name}-{os.getpid()}-", dir=final.parent))
    draft.chmod(0o755)
    return draft


def _place(draft: Path, final: Path) -> None:
    """Rename a draft folder into place; a run evaluated again at more marks, or a broken one, makes room
    first."""
    old = final.parent / f".old-{draft.name}"
    if final.exists():
        final.rename(old)
    try:
        draft.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
