"""Hosts that were converted into safetensors from another format: made once, and known by what they were made
of.

In the fingerprint of such a host the original files stand for the weights, whatever numbers a library makes
of them, and the converted ones are seen to be those that were written. Tokenizer and config.json that were
made with them count as they are (D-134).
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from portability.core.errors import UserError
from portability.core.hashing import file_digest

log = logging.getLogger(__name__)
WHOLE = ("model.safetensors", "pytorch_model.bin")  # as transformers looks for weights
RECORD = "converted.json"  # of a folder made here: what it was made of, and what was made


def converted(name: str, place: Path, originals: Mapping[str, str], make: Callable[[Path], None]) -> Path:
    """A folder of converted weights: made where it is not there yet, by one process at a time, and whole once
    it has its name.

    Args:
        name: of the host, for messages.
        place: the folder in the cache.
        originals: file name -> SHA-256 of what is converted.
        make: writes the host into a new folder.

    Raises:
        UserError: the cache cannot be written, or as `make`.
    """
    def convert(draft: Path) -> None:
        log.info("converting the weights of %s once; kept as safetensors in %s", name, place)
        make(draft)
        record = {"from": dict(originals), "made": digests_of(name, draft)}
        (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n")

    try:
        return once(place, convert)
    except OSError as error:
        raise UserError(f"host '{name}': its weights cannot be kept as safetensors in {place.parent}: "
                        f"{error}; make room, or set PORTABILITY_CACHE to another folder") from error


def once(place: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made where it is not there yet, by one process at a time, and whole once it has its
    name.

    Args:
        make: fills a new folder.

    Raises:
        OSError: it cannot be written; or as `make`.
    """
    if place.is_dir():
        return place
    from filelock import FileLock

    draft = place.with_name(f"{place.name}.draft")
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return place
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        try:
            make(draft)
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place


def weight_names(folder: Path, names: Collection[str]) -> list[str]:
    """Which of these files transformers takes for a host's weights: model.safetensors, else those that its
    index names, else the same of pytorch_model.bin. None where there is neither, or an index that is none;
    other files, such as consolidated.safetensors or an adapter's, are no weights of the host.

    Args:
        folder: holds the index.
    """
    for whole in WHOLE:
        if whole in names:
            return [whole]
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            return sorted({*json.loads((folder / f"{whole}.index.json").read_text())["weight_map"].values()})
    return []


def digests_of(name: str, folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file of a folder, by name, of all safetensors where it is not known which are
    weights (`sources.weight_files` refuses such a folder); of a converted one, those of the original files.

    Raises:
        UserError: its weights are no longer those that were made.
    """
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    wanted = [one for one in weight_names(folder, there) if one in there]
    own = {one: file_digest(folder / one) for one in wanted or there}
    if not (folder / RECORD).is_file():
        return own
    try:
        record = json.loads((folder / RECORD).read_text())
        made, originals = {**record["made"]}, {**record["from"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"host '{name}': {folder / RECORD} cannot be read ({error!r}); delete its folder, "
                        "and run the command again") from error
    if own != made:
        raise UserError(f"host '{name}': the weights in {folder} are not those that were made of "
                        f"{', '.join(originals)}; delete the folder, and run the command again")
    return originals
