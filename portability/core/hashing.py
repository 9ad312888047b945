"""Digests of files, remembered by path, size and time, so that planning never re-reads gigabytes; and other
values that are kept by the content they follow from."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portability.core.specs import digest

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where derived data may be kept: $PORTABILITY_CACHE, else "portability" in $XDG_CACHE_HOME, which is
    ~/.cache where it is not set."""
    if own := os.environ.get("PORTABILITY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portability"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, from the cache where path, size and mtime are unchanged."""
    stat = path.stat()
    entry = digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    found = remembered("digests", entry)
    if found is None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        remember("digests", entry, found)
    return found


def fingerprint(files: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """SHA-256, 64 hex digits, of a host: of its files' names and SHA-256 and of its settings, as canonical
    JSON; folders do not count. A hub knows the files' SHA-256 without a download."""
    content = {"files": files, "settings": settings}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def remembered(kind: str, entry: str) -> Any:
    """A value kept under a name in the folder of its kind, or None where there is none that is intact."""
    try:
        found = json.loads((cache_folder() / kind / f"{entry}.json").read_text())
        value, mark = found["value"], found["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if digest(value) == mark else None


def remember(kind: str, entry: str, value: Any) -> None:
    """Keep a value; a cache that cannot be written costs time, not the study."""
    path = cache_folder() / kind / f"{entry}.json"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"digest": digest(value), "value": value}))
        draft.replace(path)
    except OSError as error:
        log.warning("cannot keep %s in %s (%s); made anew next time", kind, path.parent, error.strerror)
