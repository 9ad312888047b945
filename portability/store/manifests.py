"""The cells that were asked for: a file for each command, named by its content, and one run for each cell."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from portability.core.errors import UserError
from portability.core.specs import Cell, digest
from portability.core.wording import counted
from portability.store import failures
from portability.store.atomic import json_files, write_json

LIMITED = re.compile(r".+-limit-(\d+)")  # a study's name, of `limited_name`
# the coordinates that name a cell; the other fields say which runs it reads
PLACE = tuple(f.name for f in fields(Cell) if f.name not in ("run_id", "mark", "native_id", "bare_id"))
Rows = list[dict[str, Any]]
place_of = itemgetter(*PLACE)


def expect(
    root: Path, cells: Iterable[Cell], facts: Mapping[str, Any] | None, given_up: Callable[[str], bool]
) -> None:
    """Write a manifest unless the study has it (see `Store.expect`). Cells that are asked for with other
    settings leave the older manifests first, so that no cell is ever of two runs.

    Args:
        given_up: whether a run only ever failed, so that its cells may be asked for anew.
    """
    rows = [asdict(cell) for cell in cells]
    known = held(root)
    others = _refuse_other_settings(root.name, known, rows, given_up)
    if facts is None:
        return
    if others:
        anew = {place_of(row): row for row in rows}
        for path in paths(root):
            manifest = load(path)
            left = [row for row in manifest["cells"] if anew.get(place_of(row), row) == row]
            if len(left) < len(manifest["cells"]):
                if left:
                    write(root, {**manifest, "cells": left})
                path.unlink()
        for run_id in set(known.values()) - set(held(root).values()) - {row["run_id"] for row in rows}:
            failures.set_aside(root / "failures", run_id)
    write(root, {**facts, "cells": rows})


def write(root: Path, manifest: Mapping[str, Any]) -> bool:
    """Write a manifest under its own name unless it is there; whether it was written."""
    path = root / "manifests" / f"{_name_of(manifest)}.json"
    if new := not path.exists():
        write_json(path, manifest)
    return new


def _name_of(manifest: Mapping[str, Any]) -> str:
    """The digest that names a manifest's file."""
    return digest([manifest["cells"], {key: value for key, value in manifest.items() if key != "cells"}])


def limited_name(study: str, count: int) -> str:
    """What a study is called that is tried with `--limit`, on so many examples of each set."""
    return f"{study}-limit-{count}"


def is_limited(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is of a study that was tried with `--limit N`: it is called so, and is evaluated on
    at most N examples of each set.

    Example:
        >>> is_limited({"study": "mine-limit-20", "data": [{"name": "sst2", "eval": 20}]})
        True
        >>> is_limited({"study": "rank-limit-8", "data": [{"name": "sst2", "eval": 872}]})
        False
    """
    found = LIMITED.fullmatch(manifest.get("study") or "")
    rows = manifest.get("data") or [{}]
    return found is not None and all(row.get("eval", math.inf) <= int(found[1]) for row in rows)


def held(root: Path) -> dict[tuple, str]:
    """Which run each cell of a study is, by the cell's coordinates."""
    return {place_of(row): row["run_id"] for path in paths(root) for row in load(path)["cells"]}


def _refuse_other_settings(
    study: str, known: Mapping[tuple, str], rows: Rows, given_up: Callable[[str], bool] = lambda _: False
) -> bool:
    """Raise where a cell is another run than is known; gives back whether there are such cells, all of them
    given up.

    Raises:
        UserError: names the first such cell and both runs.
    """
    others = [row for row in rows if known.get(place_of(row), row["run_id"]) != row["run_id"]]
    kept = [row for row in others if not given_up(known[place_of(row)])]
    if kept:
        first, free = kept[0], len(others) - len(kept)
        where = ", ".join(f"{key} {first[key]}" for key in PLACE)
        more = f", and {counted(len(kept) - 1, 'more cell')}" if len(kept) > 1 else ""
        rest = (f", or leave them out: {counted(free, 'other cell')} only failed so far and may be asked for "
                "anew") if free else ""
        raise UserError(f"study {study} already holds the cell ({where}) with other settings "
                        f"(run {known[place_of(first)]}, now {first['run_id']}){more}; "
                        f"choose another study=NAME for these settings{rest}")
    return bool(others)


def faults(root: Path, study: str, known: dict[tuple, str]) -> Iterator[tuple[Path, str | None]]:
    """Each manifest of a study and what is wrong with it, or None.

    Args:
        study: the name to give in a fault.
        known: which run each cell is; the cells of good manifests are added.
    """
    for path in paths(root):
        try:
            manifest = load(path)
            _refuse_other_settings(study, known, manifest["cells"])
        except UserError as error:
            yield path, str(error)
            continue
        known.update((place_of(row), row["run_id"]) for row in manifest["cells"])
        own = _name_of(manifest)
        yield path, None if own == path.stem else f"it was changed: the digest of its content is {own}"


def paths(root: Path) -> list[Path]:
    """The study's manifests."""
    return json_files(root / "manifests")


def load(path: Path) -> dict[str, Any]:
    """One manifest.

    Raises:
        UserError: it is none.
    """
    try:
        manifest = json.loads(path.read_bytes())
        for row in manifest["cells"]:
            place_of(row), row["run_id"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no manifest ({error}); "
                        "remove it and repeat the command that wrote it") from error
    return manifest
