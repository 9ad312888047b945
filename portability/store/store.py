"""A study's folder: what is read from it and written to it, run by run and as a whole."""

import datetime
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.errors import UserError
from portability.core.specs import Cell
from portability.store import cleanup, failures, host_pairs, manifests
from portability.store.atomic import pretty, replacing, replacing_folder, sealed, write_json
from portability.store.folders import RunFolders, folder_of
from portability.store.integrity import REMEDY, Checked, load_bytes
from portability.store.records import RECORD, Arrays, Result, evaluated, seal

if TYPE_CHECKING:
    import numpy as np
    import torch

    from portability.store.published import Published

log = logging.getLogger(__name__)


class Store:
    """A study's folder, or the published copy of one, which is read in the same way and never written."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    @property
    def published(self) -> bool:
        """Whether this is a published copy: packed records and predictions, no modules."""
        return (self.root / "published").is_dir() and not (self.root / "runs").exists()

    @property
    def reader(self) -> "RunFolders | Published":
        """Reads the runs and failures of a study of this kind."""
        return self._copy if self.published else RunFolders(self.root)

    @cached_property
    def _copy(self) -> "Published":
        from portability.store.published import Published

        return Published(self.root)

    def _refuse_published(self) -> None:
        if self.published:
            raise UserError(f"{self.root} is a published copy without modules; choose another study=NAME")

    # ---- one run

    def folder(self, run_id: str) -> Path:
        """Where the run is, or will be."""
        return folder_of(self.root, run_id)

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The run's record, or None where there is none that can be used (one that is there is warned of)."""
        return self._usable(run_id, *self.reader.parsed(run_id))

    @staticmethod
    def _usable(run_id: str, record: dict[str, Any] | None, fault: str | None) -> dict[str, Any] | None:
        if fault:
            log.warning("run %s: %s; the run counts as not done", run_id, fault)
            return None
        return record

    def has(self, run_id: str, marks: Iterable[int] = ()) -> bool:
        """Whether the run is done and was evaluated at all `marks` (optimiser updates)."""
        record = self.read(run_id)
        return record is not None and evaluated(record).issuperset(marks)

    def evaluated(self, run_id: str) -> frozenset[int]:
        """The updates at which the run was evaluated; none where it is not done."""
        record = self.read(run_id)
        return frozenset() if record is None else evaluated(record)

    def inspect(self, run_id: str) -> Checked:
        """Read every file of a run and compare it with the run's record."""
        return self.reader.check(run_id)

    def sound(self, run_id: str) -> str | None:
        """What is wrong with a run's files, or None: its record missing, corrupt or changed, or a file that
        is missing, of another size, or of other bytes than the record says (of format 1: that does not
        open)."""
        return self.inspect(run_id).fault

    def tensors(self, run_id: str, name: str) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
        """Tensors of one file of a run (module, start or head), and the file's metadata.

        Raises:
            UserError: the run has no such file, or the file is broken, or differs from its record's digest.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        self._refuse_published()
        file = f"{name}.safetensors"
        raw = load_bytes(self.folder(run_id), run_id, file)
        try:
            tensors = load(raw)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{self.folder(run_id) / file} cannot be read ({error}); {REMEDY}") from error
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return tensors, header.get("__metadata__", {})

    def predictions(self, run_id: str) -> dict[str, "np.ndarray"]:
        """Predictions of M marks and N test examples: `updates` (M,) int, `invalid` (M, N) bool; of texts
        with labels `margin` (M, N), the log-odds of label 1, and `label` (N,) 0 or 1; of prompts `score` (M,
        N) in [0, 1], of choices `margin` too, against the best wrong choice.

        Raises:
            UserError: the run has none, or they differ from its record's digest.
        """
        return self.reader.predictions(run_id)

    # ---- all runs

    def entries(self) -> Iterator[tuple[str, dict[str, Any] | None, str | None]]:
        """Id, record and fault of every run folder in the order of ids: a record or a fault, or both where
        the record is of a newer format than this version reads."""
        return ((run_id, *parsed) for run_id, parsed in self.reader.entries())

    def records(self) -> Iterator[dict[str, Any]]:
        """All records that can be used, in the order of their ids; the others are warned of."""
        return (record for entry in self.entries() if (record := self._usable(*entry)) is not None)

    def marks(self) -> dict[str, frozenset[int]]:
        """Every finished run's evaluated updates, in one pass."""
        found = ((entry[0], self._usable(*entry)) for entry in self.entries())
        return {run_id: evaluated(record) for run_id, record in found if record is not None}

    def compact(self) -> int:
        """Bring `index.parquet` up to date, so that reading many runs is fast; gives back how many records
        were read.

        Raises:
            OSError: the disk is full or not writable; the old index stays.
        """
        from portability.store import index

        return 0 if self.published else index.compact(self.root)

    # ---- writing runs

    def commit(self, run_id: str, result: Result) -> None:
        """Publish a finished run; the rename is the only thing that marks it done. Every file is flushed to
        the disk first, and last the record that names them.

        Raises:
            OSError: the disk is full or not writable; nothing half-written stays behind.
            UserError: a run of a newer format is there, or this is a published copy.
            ValueError: a number of the record is not finite.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self._refuse_published()
        self.refuse_newer(run_id)
        try:
            with replacing_folder(self.folder(run_id)) as draft:
                for name, tensors in result.tensors.items():
                    contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
                    save_file(contiguous, draft / f"{name}.safetensors", metadata=result.metadata.get(name))
                    (draft / f"{name}.safetensors").chmod(0o644)  # as the other files
                if result.port_report is not None:
                    (draft / "port_report.json").write_text(pretty(result.port_report))
                files = {path.name: sealed(path) for path in sorted(draft.iterdir())}
                write_json(draft / RECORD, seal(result.record, files))
        except SafetensorError as error:  # safetensors' error of a full disk
            raise OSError(f"cannot write run {run_id}: {error}") from error

    def refuse_newer(self, run_id: str) -> None:
        """Leave a run alone that a newer version of the project wrote.

        Raises:
            UserError: there is one.
        """
        record, fault = self.reader.parsed(run_id)
        if record is not None and fault:
            raise UserError(f"run {run_id} of {self.root} is of a newer version ({fault}); "
                            "choose another study=NAME")

    def set_aside(self, run_id: str) -> Path:
        """Move a run's folder to `discarded/`, so that the run counts as not done; gives back where it is."""
        return cleanup.set_aside(self.root, self.folder(run_id))

    def tidy_up(self, older_than_seconds: float = 86400) -> int:
        """Remove drafts that killed processes left longer ago than that; a run that a kill caught between the
        two renames of its second evaluation is put back. Gives back how many were removed or put back."""
        return cleanup.tidy_up(self.root, older_than_seconds)

    # ---- checkpoints of runs in training: one file a run, replaced whole, dropped when the run is done

    def _checkpoint_path(self, run_id: str) -> Path:
        return self.root / "checkpoints" / f"{run_id}.safetensors"

    def save_checkpoint(self, run_id: str, tensors: Arrays) -> None:
        """Keep what a run in training needs to go on. Not flushed to the disk: a lost checkpoint costs time
        only.

        Raises:
            OSError: the disk is full or not writable.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            with replacing(self._checkpoint_path(run_id), flush=False) as draft:
                save_file({key: value.contiguous() for key, value in tensors.items()}, draft)
        except SafetensorError as error:
            raise OSError(f"cannot write a checkpoint of run {run_id}: {error}") from error

    def checkpoint(self, run_id: str) -> dict[str, "torch.Tensor"] | None:
        """A run's checkpoint, or None where there is none that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self._checkpoint_path(run_id))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("checkpoint of run %s cannot be read (%s); it starts anew", run_id, error)
            return None

    def drop_checkpoint(self, run_id: str) -> None:
        """Remove a run's checkpoint, and drafts of it that a killed process left, because the run is done."""
        for path in (self._checkpoint_path(run_id), *(self.root / "checkpoints").glob(f".{run_id}.*")):
            path.unlink(missing_ok=True)

    # ---- failures

    def fail(self, run_id: str, failure: Mapping[str, Any]) -> int:
        """Record a failed attempt with the time (`at`, UTC), and give back its number (from 1).

        Raises:
            UserError: this is a published copy.
        """
        self._refuse_published()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return failures.keep(self.root / "failures", run_id, {"at": now, **failure})

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        return self.reader.attempts(run_id)

    def failures(self, marks: Mapping[str, Iterable[int]] | None = None) -> dict[str, dict[str, Any]]:
        """The latest failure of each run that is not done: run_id, attempt, at, error, and updates where
        known.

        Args:
            marks: the updates at which a run must have been evaluated to count as done.
        """
        latest = {}
        for run_id, attempt, failure in self.reader.failures():
            if failure is None:
                log.warning("failure %s-%d cannot be read; it is passed over", run_id, attempt)
            else:
                latest[run_id] = failure
        wanted = marks or {}
        return {run_id: one for run_id, one in latest.items() if not self.has(run_id, wanted.get(run_id, ()))}

    # ---- cells

    def expect(self, cells: Iterable[Cell], facts: Mapping[str, Any]) -> None:
        """Remember which cells were asked for, so that tables can show what is missing.

        `facts` are the sweep's name, its data sets with the counts of the leak guard, and the like.

        Raises:
            UserError: the study already holds one of these cells under another run, that is, with other
                settings; nothing is written, because a table could not tell the two numbers apart. Or this is
                a published copy. A cell whose run only ever failed is no longer that run's.
        """
        self._refuse_published()
        manifests.expect(self.root, cells, facts, cache(self._only_failed))

    def refuse_other_settings(self, cells: Iterable[Cell]) -> None:
        """See that `expect` would take these cells, without writing anything.

        Raises:
            UserError: as `expect`.
        """
        self._refuse_published()
        rows, known = [asdict(cell) for cell in cells], manifests.held(self.root)
        manifests.refuse_other_settings(self.root.name, known, rows, cache(self._only_failed))

    def _only_failed(self, run_id: str) -> bool:
        return self.attempts(run_id) > 0 and not self.has(run_id)

    def host_pairs(self) -> list[dict[str, Any]]:
        """How alike the hosts of each pair are (similarity.compare_hosts); one that cannot be used is warned
        of."""
        return list(host_pairs.held(self.root).values())

    def manifests(self) -> list[dict[str, Any]]:
        """Every manifest of the study: its facts, and `cells` as a list of rows (see specs.Cell).

        Raises:
            UserError: the folder holds no study.
        """
        return manifests.load_all(self.root)


def studies(results: Path | str) -> list[Store]:
    """The studies below a results folder; the folder itself may be a study.

    Raises:
        UserError: there is none.
    """
    root = Path(results)
    if (root / "manifests").is_dir():
        return [Store(root)]
    if found := [Store(path.parent) for path in sorted(root.glob("*/manifests")) if path.is_dir()]:
        return found
    raise manifests.no_study(root)
