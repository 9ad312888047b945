"""A study's folder: what is read from it and written to it, run by run and as a whole."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.errors import UserError
from portability.core.specs import Cell
from portability.store import checkpoints, failures, index, manifests
from portability.store import cleanup as leftovers
from portability.store import host_pairs as pairs
from portability.store import integrity as soundness
from portability.store.atomic import draft_folder, fill, place
from portability.store.published import FAILURE, FOLDER, RUN, Published
from portability.store.records import TORN, Arrays, Parsed, Result, evaluated, parse

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger(__name__)


class Store:
    """A study's folder, or the published copy of one, which is read in the same way and never written."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    @property
    def published(self) -> bool:
        """Whether this is a published copy: packed records and predictions, no modules."""
        return (self.root / FOLDER).is_dir() and not (self.root / "runs").exists()

    @cached_property
    def _copy(self) -> Published:
        return Published(self.root)

    def _refuse_published(self) -> None:
        if self.published:
            raise UserError(f"{self.root} is a published copy without modules; choose another study=NAME")

    # ---- one run

    def folder(self, run_id: str) -> Path:
        """Where the run is, or will be."""
        return self.root / "runs" / run_id[:2] / run_id

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The run's record, or None where there is none that can be used (a torn or changed one is warned of)."""
        record, fault = self._parsed(run_id)
        return None if fault and self._warn(run_id, fault) else record

    def _parsed(self, run_id: str) -> Parsed:
        """A run's record, its fault, or neither where it has no record."""
        if self.published:
            return self._copy.parsed(run_id)
        try:
            raw = (self.folder(run_id) / "record.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None, None
        return parse(raw, run_id)

    @staticmethod
    def _warn(run_id: str, fault: str) -> bool:
        log.warning("run %s: %s; the run counts as not done", run_id, fault)
        return True

    def has(self, run_id: str, marks: Iterable[int] = ()) -> bool:
        """Whether the run is done and was evaluated at all `marks` (optimiser updates)."""
        record = self.read(run_id)
        return record is not None and evaluated(record).issuperset(marks)

    def evaluated(self, run_id: str) -> frozenset[int]:
        """The updates at which the run was evaluated; none where it is not done."""
        record = self.read(run_id)
        return frozenset() if record is None else evaluated(record)

    def sound(self, run_id: str) -> str | None:
        """What is wrong with a run's files, or None: its record missing, torn or changed, or a file that is missing, of
        another size, or of other bytes than the record says (of format 1: that does not open)."""
        if self.published:
            record, fault = self._copy.parsed(run_id)
            return fault or (None if record else TORN)
        found = soundness.check(self.folder(run_id), run_id)
        return next(iter(found.faults), None) or found.foreign

    def tensors(self, run_id: str, name: str) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
        """Tensors of one file of a run (module or head), and the file's metadata.

        Raises:
            UserError: the run has no such file, or the file is broken, or differs from its record's digest.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        self._refuse_published()
        raw = self._bytes(run_id, name)
        try:
            tensors = load(raw)
        except (SafetensorError, ValueError) as error:
            path = self.folder(run_id) / f"{name}.safetensors"
            raise UserError(f"{path} cannot be read ({error}); {soundness.REMEDY}") from error
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return tensors, header.get("__metadata__", {})

    def predictions(self, run_id: str) -> dict[str, "np.ndarray"]:
        """Per-example predictions, of M marks and N test examples: `updates` (M,), `invalid` (M, N) bool; of texts with labels
        `margin` (M, N) (see scorer.Predictions) and `label` (N,) 0 or 1; of prompts `score` (M, N), of choices `margin` too.

        Raises:
            UserError: the run has none, or they differ from its record's digest.
        """
        if self.published:
            return self._copy.predictions(run_id)
        from safetensors.numpy import load

        return load(self._bytes(run_id, "predictions"))

    def _bytes(self, run_id: str, name: str) -> bytes:
        return soundness.load_bytes(self.folder(run_id), self.read(run_id), f"{name}.safetensors")

    # ---- all runs

    def entries(self) -> Iterator[tuple[str, dict[str, Any] | None, str | None]]:
        """Id, record and fault of every run folder in the order of ids: a record or a fault, or both where the record
        is of a newer format than this version reads (foreign)."""
        if self.published:
            for row in self._copy.rows(RUN):
                yield row["run_id"], *parse(row["record"], row["run_id"])
            return
        for row in index.rows(self.root, ["record"]):
            if row.kept is not None:
                yield row.run_id, json.loads(row.kept[0]), None
            else:
                record, fault = self._parsed(row.run_id)
                yield row.run_id, record, fault or (None if record else TORN)

    def records(self) -> Iterator[dict[str, Any]]:
        """All records that can be used, in the order of their ids."""
        for run_id, record, fault in self.entries():
            if fault:
                self._warn(run_id, fault)
            elif record is not None:
                yield record

    def marks(self) -> dict[str, frozenset[int]]:
        """Every finished run's evaluated updates, in one pass."""
        if self.published:
            return {run_id: evaluated(record) for run_id, record, fault in self.entries() if record and not fault}
        found = {}
        for row in index.rows(self.root, ["marks"]):
            if row.kept is not None:
                found[row.run_id] = frozenset(row.kept[0])
            elif (record := self.read(row.run_id)) is not None:
                found[row.run_id] = evaluated(record)
        return found

    def broken(self) -> list[str]:
        """Ids of the run folders whose record is missing, does not parse, or was changed."""
        if self.published:
            return [run_id for run_id, record, _ in self.entries() if record is None]
        return [row.run_id for row in index.rows(self.root, [])
                if row.kept is None and (row.seen is None or self._parsed(row.run_id)[0] is None)]

    def compact(self) -> int:
        """Bring `index.parquet` up to date, so that reading many runs is fast; gives back how many records were read.

        Raises:
            OSError: the disk is full or not writable; the old index stays.
        """
        return 0 if self.published else index.compact(self.root)

    # ---- writing runs

    def commit(self, run_id: str, result: Result) -> None:
        """Publish a finished run; the rename is the only thing that marks it done.

        Raises:
            OSError: the disk is full or not writable; nothing half-written stays behind.
            UserError: a run of a newer format is there, or this is a published copy.
        """
        from safetensors import SafetensorError

        self._refuse_published()
        self.refuse_newer(run_id)
        final = self.folder(run_id)
        draft = draft_folder(final)
        try:
            fill(draft, result)
            place(draft, final)
        except SafetensorError as error:  # what safetensors makes of a full disk
            shutil.rmtree(draft, ignore_errors=True)
            raise OSError(f"cannot write run {run_id}: {error}") from error
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def refuse_newer(self, run_id: str) -> None:
        """Leave a run alone that a newer version of the project wrote.

        Raises:
            UserError: there is one.
        """
        record, fault = self._parsed(run_id)
        if record is not None and fault:
            raise UserError(f"run {run_id} of {self.root} is of a newer version ({fault}); choose another study=NAME")

    def set_aside(self, run_id: str) -> Path:
        """Move an unsound run's folder to `discarded/`, so that the run counts as not done; gives back where it is."""
        return leftovers.set_aside(self.root, self.folder(run_id))

    def tidy_up(self, older_than_seconds: float = 86400) -> int:
        """Remove drafts that killed processes left longer ago than that; a run that a kill caught between the two
        renames of its second evaluation is put back. Gives back how many were removed or put back."""
        return leftovers.tidy_up(self.root, older_than_seconds)

    # ---- checkpoints of runs in training

    def save_checkpoint(self, run_id: str, tensors: Arrays) -> None:
        """Keep what a run in training needs to go on (engine.Trainer.snapshot and the predictions so far).

        Raises:
            OSError: the disk is full or not writable.
        """
        checkpoints.save(self.root, run_id, tensors)

    def checkpoint(self, run_id: str) -> dict[str, "torch.Tensor"] | None:
        """What was kept of a run in training, or None where nothing was, or nothing that can be read."""
        return checkpoints.load(self.root, run_id)

    def drop_checkpoint(self, run_id: str) -> None:
        """Forget a run's checkpoint, and what a killed process left of one, because the run is done."""
        checkpoints.drop(self.root, run_id)

    # ---- failures

    def fail(self, run_id: str, failure: Mapping[str, Any]) -> int:
        """Record a failed attempt with the time (`at`, UTC), and give back its number (from 1).

        Raises:
            UserError: this is a published copy.
        """
        self._refuse_published()
        return failures.fail(self.root / "failures", run_id, failure)

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        if self.published:
            return self._copy.attempts(run_id)
        return failures.attempts(self.root / "failures", run_id)

    def failures(self, marks: Mapping[str, Iterable[int]] | None = None) -> dict[str, dict[str, Any]]:
        """The latest failure of each run that is not done: run_id, attempt, at, error, and updates where known.

        `marks` says at which updates a run must have been evaluated to count as done.
        """
        wanted = marks or {}
        if self.published:  # rows come by run and attempt: the last one stays
            latest = {row["run_id"]: json.loads(row["record"]) for row in self._copy.rows(FAILURE)}
        else:
            latest = {failure["run_id"]: failure for failure in failures.latest(self.root / "failures")}
        return {run_id: failure for run_id, failure in latest.items() if not self.has(run_id, wanted.get(run_id, ()))}

    # ---- cells

    def expect(self, cells: Iterable[Cell], facts: Mapping[str, Any]) -> None:
        """Remember which cells were asked for, so that tables can show what is missing.

        `facts` are the sweep's name, its data sets with the counts of the leak guard, and the like.

        Raises:
            UserError: the study already holds one of these cells under another run, that is, with other settings;
                nothing is written, because a table could not tell the two numbers apart. Or this is a published copy.
                A cell whose run only ever failed is no longer that run's.
        """
        self._refuse_published()
        manifests.expect(self.root, cells, facts, cache(self._only_failed))

    def refuse_other_settings(self, cells: Iterable[Cell]) -> None:
        """See that `expect` would take these cells, without writing anything.

        Raises:
            UserError: as `expect`.
        """
        self._refuse_published()
        rows = [asdict(cell) for cell in cells]
        manifests.refuse_other_settings(self.root.name, manifests.held(self.root), rows, cache(self._only_failed))

    def _only_failed(self, run_id: str) -> bool:
        return self.attempts(run_id) > 0 and not self.has(run_id)

    def host_pairs(self) -> list[dict[str, Any]]:
        """How alike the hosts of each pair are (similarity.compare_hosts); one that cannot be used is warned of."""
        return list(pairs.held(self.root).values())

    def manifests(self) -> list[dict[str, Any]]:
        """Every manifest of the study: its facts, and `cells` as a list of rows (see spec.Cell).

        Raises:
            UserError: the folder holds no study.
        """
        return manifests.load_all(self.root)
