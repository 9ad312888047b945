"""What was asked of a study: one file a command, named by its content, and one run for each cell."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from portability.errors import UserError
from portability.spec import Cell, digest
from portability.store.writing import write_json

PLACE = tuple(f.name for f in fields(Cell) if f.name not in ("run_id", "mark", "native_id", "bare_id"))  # of a cell
Rows = list[dict[str, Any]]
place_of = itemgetter(*PLACE)


def expect(root: Path, cells: Iterable[Cell], facts: Mapping[str, Any]) -> None:
    """Write a manifest unless the study has it (see `Store.expect`)."""
    rows = [asdict(cell) for cell in cells]
    refuse_other_settings(root.name, held(root), rows)
    path = root / "manifests" / f"{name_of({**facts, 'cells': rows})}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**facts, "cells": rows})


def name_of(manifest: Mapping[str, Any]) -> str:
    """The digest that names a manifest's file."""
    return digest([manifest["cells"], {key: value for key, value in manifest.items() if key != "cells"}])


def held(root: Path) -> dict[tuple, str]:
    """Which run each cell of a study is, by the cell's place."""
    return {place_of(row): row["run_id"] for path in paths(root) for row in load(path)["cells"]}


def refuse_other_settings(study: str, known: Mapping[tuple, str], rows: Rows) -> None:
    """Raise where a cell is another run than is known.

    Raises:
        UserError: names the cell and both runs.
    """
    for row in rows:
        if known.get(place_of(row), row["run_id"]) != row["run_id"]:
            where = ", ".join(f"{key} {row[key]}" for key in PLACE)
            raise UserError(f"study {study} already holds the cell ({where}) with other settings (run "
                            f"{known[place_of(row)]}, now {row['run_id']}); choose another study=NAME for these settings")


def paths(root: Path) -> list[Path]:
    """The study's manifests."""
    return sorted(path for path in (root / "manifests").glob("*.json") if not path.name.startswith("."))


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
        raise UserError(f"{path} is no manifest ({error}); remove it and repeat the command that wrote it") from error
    return manifest


def load_all(root: Path) -> list[dict[str, Any]]:
    """All manifests of a study (see `Store.manifests`)."""
    found = [load(path) for path in paths(root)]
    if not found:
        raise no_study(root)
    return found


def no_study(root: Path) -> UserError:
    """The error for a folder that holds no study."""
    return UserError(f"no study in {root}: nothing was run there yet (python -m portability.run +sweep=demo)")
