"""The cells that were asked for: a file for each command, named by its content, and one run for each cell."""

import json
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

# the coordinates that name a cell; the other fields say which runs it reads
PLACE = tuple(f.name for f in fields(Cell) if f.name not in ("run_id", "mark", "native_id", "bare_id"))
Rows = list[dict[str, Any]]
place_of = itemgetter(*PLACE)


GivenUp = Callable[[str], bool]  # whether a run only ever failed


def expect(root: Path, cells: Iterable[Cell], facts: Mapping[str, Any], given_up: GivenUp) -> None:
    """Write a manifest unless the study has it (see `Store.expect`). Cells that are asked for with other
    settings leave the older manifests first, so that no cell is ever of two runs."""
    rows = [asdict(cell) for cell in cells]
    known = held(root)
    if refuse_other_settings(root.name, known, rows, given_up):
        for path in paths(root):
            _withdraw(path, {place_of(row): row for row in rows})
        for run_id in set(known.values()) - set(held(root).values()) - {row["run_id"] for row in rows}:
            failures.set_aside(root / "failures", run_id)
    write(root, {**facts, "cells": rows})


def write(root: Path, manifest: Mapping[str, Any]) -> bool:
    """Write a manifest under its own name unless it is there; whether it was written."""
    path = root / "manifests" / f"{name_of(manifest)}.json"
    if path.exists():
        return False
    write_json(path, manifest)
    return True


def _withdraw(path: Path, anew: Mapping[tuple, Mapping[str, Any]]) -> None:
    """Take those cells out of a manifest that are asked for otherwise now; without a cell the file goes."""
    manifest = load(path)
    left = [row for row in manifest["cells"] if anew.get(place_of(row), row) == row]
    if len(left) < len(manifest["cells"]):
        if left:
            write(path.parents[1], {**manifest, "cells": left})
        path.unlink()


def name_of(manifest: Mapping[str, Any]) -> str:
    """The digest that names a manifest's file."""
    return digest([manifest["cells"], {key: value for key, value in manifest.items() if key != "cells"}])


def held(root: Path) -> dict[tuple, str]:
    """Which run each cell of a study is, by the cell's coordinates."""
    return {place_of(row): row["run_id"] for path in paths(root) for row in load(path)["cells"]}


def refuse_other_settings(
    study: str, known: Mapping[tuple, str], rows: Rows, given_up: GivenUp = lambda run_id: False
) -> bool:
    """Raise where a cell is another run than is known; gives back whether there are such cells, all of them
    given up.

    Args:
        given_up: whether a run only ever failed, so that its cells may be asked for anew.

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
            refuse_other_settings(study, known, manifest["cells"])
        except UserError as error:
            yield path, str(error)
            continue
        known.update((place_of(row), row["run_id"]) for row in manifest["cells"])
        own = name_of(manifest)
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


def load_all(root: Path) -> list[dict[str, Any]]:
    """All manifests of a study (see `Store.manifests`).

    Raises:
        UserError: the folder holds no study, or a file is no manifest.
    """
    if found := [load(path) for path in paths(root)]:
        return found
    raise no_study(root)


def no_study(root: Path) -> UserError:
    """The error for a folder that holds no study."""
    return UserError(f"no study in {root}: nothing was run there yet (python -m portability.run +sweep=demo)")
