"""How alike two hosts of a study are: a file for each pair, named by both hosts, the text they read and the
measure."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portability.core.specs import digest
from portability.store.atomic import json_files, write_json
from portability.store.records import self_digest, with_digest

log = logging.getLogger(__name__)
SCHEMA = 1  # raise it when porting/similarity.py changes a number: every pair is then measured anew
FOLDER = "hosts"
DAMAGED = "it differs from its own digest (it was changed, or damaged)"


def name_of(pair: Mapping[str, Any]) -> str:
    """The name of a pair's file, from the fingerprints of its hosts in any order and its `text_digest`."""
    return digest([SCHEMA, sorted((pair["one_fingerprint"], pair["other_fingerprint"])), pair["text_digest"]])


def keep(root: Path, pair: Mapping[str, Any]) -> None:
    """Write a pair (similarity.compare_hosts, with `text` and `text_digest`) whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
        ValueError: a number is not finite.
    """
    write_json(root / FOLDER / f"{name_of(pair)}.json", with_digest({**pair, "schema": SCHEMA}))


def paths(root: Path) -> list[Path]:
    """The study's files of pairs."""
    return json_files(root / FOLDER)


def load(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """A pair, or what keeps it from being used."""
    try:
        pair = json.loads(path.read_bytes())
        own = name_of(pair)
        faults = {
            f"it is of schema {pair['schema']}, this version reads {SCHEMA}": pair["schema"] != SCHEMA,
            DAMAGED: pair["digest"] != self_digest(pair), f"it is the pair {own}": own != path.stem}
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, f"it is no pair of hosts ({error!r})"
    fault = next((words for words, true in faults.items() if true), None)
    return (None if fault else pair), fault


def held(root: Path) -> dict[str, dict[str, Any]]:
    """The study's pairs by name; one that cannot be used is warned of."""
    found = {}
    for path in paths(root):
        pair, fault = load(path)
        if pair is not None:
            found[path.stem] = pair
        else:
            log.warning("%s/%s is passed over: %s", FOLDER, path.name, fault)
    return found


def copy(source: Path, target: Path) -> int:
    """Copy the pairs that the target lacks; gives back how many."""
    there = held(target)
    new = [pair for name, pair in held(source).items() if name not in there]
    for pair in new:
        keep(target, pair)
    return len(new)
