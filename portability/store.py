"""The results store: one folder a run, written beside its final place and renamed into it last.

A run is done when its `record.json` is there and parses; there are no locks, so the store works under any engine and
on network file systems. Failures are records of their own and never mask a result. Nothing here needs torch to read.

    <study>/manifests/<digest>.json    the cells a command asked for
    <study>/runs/<2 hex>/<run_id>/     record.json, module.safetensors, head.safetensors,
                                       predictions.safetensors, port_report.json
    <study>/failures/<run_id>-<attempt>.json
    <study>/checkpoints/<run_id>.safetensors   of runs in training, so that a killed stack goes on where it was
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.errors import UserError
from portability.spec import Cell, digest

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger(__name__)
PLACE = tuple(f.name for f in fields(Cell) if f.name not in ("run_id", "mark", "native_id", "bare_id"))  # of a cell
Arrays = Mapping[str, "torch.Tensor"]


@dataclass
class Result:
    """What a finished run leaves behind: its record, and tensors by file name (module, head, predictions)."""

    record: dict[str, Any]
    tensors: dict[str, Arrays] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)  # safetensors metadata by file name
    port_report: dict[str, Any] | None = None


class Store:
    """A study's folder."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    # ---- runs

    def folder(self, run_id: str) -> Path:
        """Where the run is, or will be."""
        return self.root / "runs" / run_id[:2] / run_id

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The run's record, or None where there is none that parses."""
        try:
            record = json.loads((self.folder(run_id) / "record.json").read_text())
            _ = [mark["updates"] for mark in record["train_info"]["metrics"]]
            return record
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            log.warning("record of run %s is no record; the run counts as not done", run_id)
            return None

    def has(self, run_id: str, marks: Iterable[int] = ()) -> bool:
        """Whether the run is done and was evaluated at all `marks` (optimiser updates)."""
        record = self.read(run_id)
        return record is not None and set(marks) <= {mark["updates"] for mark in record["train_info"]["metrics"]}

    def records(self) -> Iterator[dict[str, Any]]:
        """All records that parse, in the order of their ids."""
        for path in sorted((self.root / "runs").glob("??/*/record.json")):
            if (record := self.read(path.parent.name)) is not None:
                yield record

    def broken(self) -> list[str]:
        """Ids of the run folders whose record is missing or does not parse."""
        folders = sorted((self.root / "runs").glob("??/????????????????"))
        return [path.name for path in folders if self.read(path.name) is None]

    def tensors(self, run_id: str, name: str) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
        """Tensors of one file of a run (module or head), and the file's metadata.

        Raises:
            UserError: the run has no such file, or the file is broken.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder(run_id) / f"{name}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete the run's folder and repeat the command") from error

    def predictions(self, run_id: str) -> dict[str, "np.ndarray"]:
        """Per-example predictions: `updates` (M,), `margin` (M, N) log p(positive) - log p(negative), `invalid`
        (M, N) bool, `label` (N,) 0 or 1; M marks, N test examples."""
        from safetensors.numpy import load_file

        return load_file(self.folder(run_id) / "predictions.safetensors")

    def commit(self, run_id: str, result: Result) -> None:
        """Publish a finished run; the rename is the only thing that marks it done.

        Raises:
            OSError: the disk is full or not writable; nothing half-written stays behind.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        final = self.folder(run_id)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".draft-{run_id}-{os.getpid()}-", dir=final.parent))
        try:
            for name, tensors in result.tensors.items():
                contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
                save_file(contiguous, draft / f"{name}.safetensors", metadata=result.metadata.get(name))
            if result.port_report is not None:
                _write(draft / "port_report.json", result.port_report)
            _write(draft / "record.json", result.record)
            draft.chmod(0o755)
            self._place(draft, final)
        except SafetensorError as error:  # what safetensors makes of a full disk
            shutil.rmtree(draft, ignore_errors=True)
            raise OSError(f"cannot write run {run_id}: {error}") from error
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    @staticmethod
    def _place(draft: Path, final: Path) -> None:
        """Rename a draft into place; a run evaluated again at more marks, or a broken one, makes room first."""
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

    # ---- checkpoints of runs in training

    def save_checkpoint(self, run_id: str, tensors: Arrays) -> None:
        """Keep what a run in training needs to go on (engine.Trainer.snapshot and the predictions so far).

        Raises:
            OSError: the disk is full or not writable.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._checkpoint(run_id)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in tensors.items()}, draft)
            draft.rename(path)
        except SafetensorError as error:
            raise OSError(f"cannot write a checkpoint of run {run_id}: {error}") from error
        finally:
            draft.unlink(missing_ok=True)

    def checkpoint(self, run_id: str) -> dict[str, "torch.Tensor"] | None:
        """What was kept of a run in training, or None where nothing was, or nothing that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self._checkpoint(run_id))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("checkpoint of run %s cannot be read (%s); it starts anew", run_id, error)
            return None

    def drop_checkpoint(self, run_id: str) -> None:
        """Forget a run's checkpoint, and what a killed process left of one, because the run is done."""
        for path in (self._checkpoint(run_id), *(self.root / "checkpoints").glob(f".{run_id}.*")):
            path.unlink(missing_ok=True)

    def _checkpoint(self, run_id: str) -> Path:
        return self.root / "checkpoints" / f"{run_id}.safetensors"

    # ---- failures

    def fail(self, run_id: str, failure: Mapping[str, Any]) -> int:
        """Record a failed attempt, and give back its number (from 1)."""
        folder = self.root / "failures"
        folder.mkdir(parents=True, exist_ok=True)
        attempt = 1 + len(list(folder.glob(f"{run_id}-*.json")))
        _write(folder / f"{run_id}-{attempt}.json", {"run_id": run_id, "attempt": attempt, **failure})
        return attempt

    def failures(self, marks: Mapping[str, Iterable[int]] | None = None) -> dict[str, dict[str, Any]]:
        """The latest failure of each run that is not done: run_id, attempt, error, and updates where known.

        `marks` says at which updates a run must have been evaluated to count as done.
        """
        latest: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "failures").glob("*.json")):
            try:
                failure = json.loads(path.read_text())
            except json.JSONDecodeError:
                continue
            seen = latest.get(failure["run_id"])
            if seen is None or seen["attempt"] < failure["attempt"]:
                latest[failure["run_id"]] = failure
        wanted = marks or {}
        return {run_id: failure for run_id, failure in latest.items() if not self.has(run_id, wanted.get(run_id, ()))}

    # ---- cells

    def expect(self, cells: Iterable[Cell], facts: Mapping[str, Any]) -> None:
        """Remember which cells were asked for, so that tables can show what is missing.

        `facts` are the sweep's name, its data sets with the counts of the leak guard, and the like.

        Raises:
            UserError: the study already holds one of these cells under another run, that is, with other settings;
                nothing is written, because neither number could be told from the other in a table.
        """
        rows = [asdict(cell) for cell in cells]
        self._refuse_other_settings(rows)
        path = self.root / "manifests" / f"{digest([rows, dict(facts)])}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, {**facts, "cells": rows})

    def _refuse_other_settings(self, rows: list[dict[str, Any]]) -> None:
        place = itemgetter(*PLACE)
        paths = sorted((self.root / "manifests").glob("*.json"))
        held = {place(row): row["run_id"] for path in paths for row in json.loads(path.read_text())["cells"]}
        for row in rows:
            if held.get(place(row), row["run_id"]) != row["run_id"]:
                where = ", ".join(f"{key} {row[key]}" for key in PLACE)
                raise UserError(f"study {self.root.name} already holds the cell ({where}) with other settings (run "
                                f"{held[place(row)]}, now {row['run_id']}); choose another study=NAME for these settings")

    def manifests(self) -> list[dict[str, Any]]:
        """Every manifest of the study: its facts, and `cells` as a list of rows (see spec.Cell).

        Raises:
            UserError: the folder holds no study.
        """
        paths = sorted((self.root / "manifests").glob("*.json"))
        if not paths:
            raise UserError(f"no study in {self.root}: nothing was run there yet (python -m portability.run +sweep=demo)")
        return [json.loads(path.read_text()) for path in paths]


def studies(results: Path | str) -> list[Store]:
    """The studies below a results folder; the folder itself may be a study.

    Raises:
        UserError: there is none.
    """
    root = Path(results)
    if (root / "manifests").is_dir():
        return [Store(root)]
    found = [Store(path.parent) for path in sorted(root.glob("*/manifests")) if path.is_dir()]
    if not found:
        raise UserError(f"no study in {root}: nothing was run there yet (python -m portability.run +sweep=demo)")
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON beside `path`, flush it to the disk, and rename it into place."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as file:
            json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
