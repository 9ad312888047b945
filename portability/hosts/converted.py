"""Hosts that were converted from another format into safetensors: what is kept of their origin.

The fingerprint of such a host is made of the files it was converted from, so that it is the same wherever and
by whatever library that was done, and the converted files are seen to be those that were written.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from portability.core.errors import UserError
from portability.core.hashing import file_digest

RECORD = "converted.json"


def converted(place: Path, originals: Mapping[str, str], make: Callable[[Path], None]) -> Path:
    """A folder of converted weights, made once: a conversion that is cut short leaves nothing that is taken
    for one.

    Args:
        place: the folder in the cache.
        originals: file name -> SHA-256 of what is converted.
        make: writes the host into a new folder.
    """
    if (place / RECORD).is_file():
        return place
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        make(draft)
        weights = {file.name: file_digest(file) for file in sorted(draft.glob("*.safetensors"))}
        (draft / RECORD).write_text(json.dumps({"from": originals, "weights": weights}, indent=2) + "\n")
        try:
            draft.rename(place)
        except OSError:
            if not (place / RECORD).is_file():  # nobody else was faster: half a folder is in the way
                shutil.rmtree(place, ignore_errors=True)
                draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def originals(name: str, folder: Path) -> dict[str, str] | None:
    """File name -> SHA-256 of what a folder's weights were converted from; None where they were not.

    Raises:
        UserError: the weights are not those that were written then.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        found = json.loads((folder / RECORD).read_text())
        own, kept = {**found["from"]}, {**found["weights"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"host '{name}': {folder / RECORD} cannot be read ({error!r}); delete the folder, "
                        "and it is converted again") from error
    if kept != {file.name: file_digest(file) for file in sorted(folder.glob("*.safetensors"))}:
        raise UserError(f"host '{name}': the weights in {folder} are not those that were converted; delete "
                        "the folder, and they are converted again")
    return own
