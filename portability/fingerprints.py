"""Digests of files, remembered by path, size and time, so that planning never re-reads gigabytes."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where derived data may be kept: $PORTABILITY_CACHE, else ~/.cache/portability."""
    return Path(os.environ.get("PORTABILITY_CACHE") or Path.home() / ".cache" / "portability")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, from the cache where path, size and mtime are unchanged."""
    stat = path.stat()
    key = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    entry = cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    try:
        known = entry.read_text()
        if len(known) == 64:
            return known
    except FileNotFoundError:
        pass
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        draft = entry.with_name(f".{entry.name}.{os.getpid()}")
        draft.write_text(found)
        draft.rename(entry)
    except OSError as error:
        log.warning("cannot keep digests in %s (%s); files are read again next time", entry.parent, error.strerror)
    return found


def fingerprint(files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """SHA-256, 64 hex digits, of a host: of its files' names and SHA-256 and of its settings, as canonical JSON; folders do not
    count. A hub knows the files' SHA-256 without a download."""
    content = {"files": {path.name: file_digest(path) for path in files}, "settings": settings}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
