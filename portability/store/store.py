"""A study's folder: what is read from it and written to it, run by run and as a whole."""

import contextlib
import datetime
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.errors import UnknownName, UserError, closest
from portability.core.specs import Cell
from portability.store import atomic, failures, host_pairs, manifests
from portability.store import records as run_files
from portability.store.records import Arrays, Checked, Parsed, Result

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger(__name__)


class Store:
    """A study's folder, or the published copy of one, which is read in the same way and never written: it is
    a `published.Published`.

    Attributes:
        published: whether this is a published copy: packed records and predictions, no modules.
    """

    published = False

    def __new__(cls, root: Path | str) -> "Store":
        """A store of the kind that the folder is."""
        if (Path(root) / "published").is_dir() and not (Path(root) / "runs").exists():
            from portability.store.published import Published

            cls = Published
        return object.__new__(cls)

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def _refuse_published(self) -> None:
        if self.published:
            raise UserError(f"{self.root} is a published copy without modules; choose another study=NAME")

    # ---- what a published copy reads in another way

    def ids(self) -> list[str]:
        """Ids of the run folders, sorted."""
        return list(self.scan())

    def parsed(self, run_id: str) -> Parsed:
        """A run's record, its fault, or neither where it has no record."""
        return run_files.read_record(self.folder(run_id), run_id)

    def entries(self) -> Iterator[tuple[str, dict[str, Any] | None, str | None]]:
        """Id, record and fault of every run folder in the order of ids: a record or a fault, or both where
        the record is of a newer format than this version reads."""
        from portability.store import index

        for run_id, text in index.texts(self).items():
            record, fault = (json.loads(text), None) if text else self.parsed(run_id)
            yield run_id, record, fault if record or fault else run_files.CORRUPT

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        return failures.attempts(self.root / "failures", run_id)

    def failed(self) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
        """Run, number and failure of every attempt (None: it cannot be read)."""
        return failures.read_all(self.root / "failures")

    def inspect(self, run_id: str) -> Checked:
        """Read every file of a run and compare it with the run's record."""
        return run_files.check(self.folder(run_id), run_id)

    def predictions(self, run_id: str) -> dict[str, "np.ndarray"]:
        """Predictions of M marks and N test examples: `updates` (M,) int, `invalid` (M, N) bool; of texts
        with labels `margin` (M, N), the log-odds of label 1, of C > 2 labels (M, N, C - 1) those of each but
        the first against it, and `label` (N,) from 0; of prompts `score` (M, N) in [0, 1], of choices
        `margin` (M, N) too, against the best wrong choice.

        Raises:
            UserError: the run has none, or they differ from its record's digest.
        """
        from safetensors.numpy import load

        return load(run_files.load_bytes(self.folder(run_id), run_id, "predictions.safetensors"))

    def compact(self) -> int:
        """Bring `index.parquet` up to date, so that reading many runs is fast; gives back how many records
        were read.

        Raises:
            OSError: the disk is full or not writable; the old index stays.
        """
        from portability.store import index

        return index.compact(self)

    # ---- run folders

    def folder(self, run_id: str) -> Path:
        """Where the run is, or will be."""
        return self.root / "runs" / run_id[:2] / run_id

    def run_folders(self) -> list[Path]:
        """The run folders in the order of their ids, drafts left out."""
        found = (path for path in self.root.glob(f"runs/??/{'?' * 16}") if not path.name.startswith("."))
        return sorted(found, key=lambda path: (path.name, path))

    def scan(self) -> dict[str, tuple[str, int, int] | None]:
        """Run id -> (run id, mtime_ns, size) of its record.json, or None where there is none, or not in its
        own shard."""
        found: dict[str, tuple[str, int, int] | None] = {}
        for folder in self.run_folders():
            found.setdefault(folder.name, None)
            if folder == self.folder(folder.name):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    seen = (folder / run_files.RECORD).stat()
                    found[folder.name] = (folder.name, seen.st_mtime_ns, seen.st_size)
        return found

    # ---- reading runs

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The run's record, or None where there is none that can be used (one that is there is warned of)."""
        return _usable(run_id, *self.parsed(run_id))

    def has(self, run_id: str, marks: Iterable[int] = ()) -> bool:
        """Whether the run is done and was evaluated at all `marks` (optimiser updates)."""
        record = self.read(run_id)
        return record is not None and run_files.evaluated(record).issuperset(marks)

    def evaluated(self, run_id: str) -> frozenset[int]:
        """The updates at which the run was evaluated; none where it is not done."""
        record = self.read(run_id)
        return frozenset() if record is None else run_files.evaluated(record)

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
        raw = run_files.load_bytes(self.folder(run_id), run_id, file)
        try:
            tensors = load(raw)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{self.folder(run_id) / file} cannot be read ({error}); "
                            f"{run_files.REMEDY}") from error
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return tensors, header.get("__metadata__", {})

    def records(self) -> Iterator[dict[str, Any]]:
        """All records that can be used, in the order of their ids; the others are warned of."""
        return (record for entry in self.entries() if (record := _usable(*entry)) is not None)

    def marks(self) -> dict[str, frozenset[int]]:
        """Every finished run's evaluated updates, in one pass."""
        found = ((entry[0], _usable(*entry)) for entry in self.entries())
        return {run_id: run_files.evaluated(record) for run_id, record in found if record is not None}

    # ---- writing runs

    def commit(self, run_id: str, result: Result) -> None:
        """Publish a finished run; the rename is the only thing that marks it done. Every file is flushed to
        the disk first, and last the record that names them.

        Raises:
            OSError: the disk is full or not writable; nothing half-written stays behind.
            UserError: a run of a newer format is there, or this is a published copy.
            ValueError: a number of the record is not finite.
        """
        self._refuse_published()
        self.refuse_newer(run_id)
        with atomic.replacing_folder(self.folder(run_id)) as draft:
            for name, tensors in result.tensors.items():
                _save(draft / f"{name}.safetensors", tensors, result.metadata.get(name))
            if result.port_report is not None:
                (draft / "port_report.json").write_text(atomic.pretty(result.port_report))
            files = {path.name: atomic.sealed(path) for path in sorted(draft.iterdir())}
            atomic.write_json(draft / run_files.RECORD, run_files.seal(result.record, files))

    def refuse_newer(self, run_id: str) -> None:
        """Leave a run alone that a newer version of the project wrote.

        Raises:
            UserError: there is one.
        """
        record, fault = self.parsed(run_id)
        if record is not None and fault:
            raise UserError(f"run {run_id} of {self.root} is of a newer version ({fault}); "
                            "choose another study=NAME")

    def set_aside(self, run_id: str, found: Path | None = None) -> Path:
        """Move a run's folder (`found`, where it is not where it belongs) to `discarded/`, so that the run
        counts as not done; gives back where it is."""
        away = self.root / "discarded"
        away.mkdir(exist_ok=True)
        names = (away / f"{run_id}-{number}" for number in range(1, 1 << 30))
        free = next(path for path in names if not path.exists())
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            (found or self.folder(run_id)).rename(free)
        return free

    def tidy_up(self, older_than_seconds: float = 86400) -> int:
        """Remove drafts that killed processes left longer ago than that; a run that a kill caught between the
        two renames of its second evaluation is put back. Gives back how many were removed or put back."""
        return atomic.tidy_up(self.root, older_than_seconds)

    # ---- checkpoints of runs in training: one file a run, replaced whole, dropped when the run is done

    def _checkpoint_path(self, run_id: str) -> Path:
        return self.root / "checkpoints" / f"{run_id}.safetensors"

    def save_checkpoint(self, run_id: str, tensors: Arrays) -> None:
        """Keep what a run in training needs to go on. Not flushed to the disk: a lost checkpoint costs time
        only.

        Raises:
            OSError: the disk is full or not writable.
        """
        with atomic.replacing(self._checkpoint_path(run_id), flush=False) as draft:
            _save(draft, tensors)

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

    def failures(self, marks: Mapping[str, Iterable[int]] | None = None) -> dict[str, dict[str, Any]]:
        """The latest failure of each run that is not done: run_id, attempt, at, error, and updates where
        known.

        Args:
            marks: the updates at which a run must have been evaluated to count as done.
        """
        latest, wanted = {}, marks or {}
        for run_id, attempt, failure in self.failed():
            if failure is None:
                log.warning("failure %s-%d cannot be read; it is passed over", run_id, attempt)
            else:
                latest[run_id] = failure
        return {run_id: one for run_id, one in latest.items() if not self.has(run_id, wanted.get(run_id, ()))}

    # ---- cells

    def expect(self, cells: Iterable[Cell], facts: Mapping[str, Any] | None) -> None:
        """Remember which cells were asked for, so that tables can show what is missing.

        `facts` are the sweep's name, its data sets with the counts of the leak guard, and the like; None
        only sees that the cells would be taken, and writes nothing.

        Raises:
            UserError: the study already holds one of these cells under another run, that is, with other
                settings; nothing is written, because a table could not tell the two numbers apart. Or this is
                a published copy. A cell whose run only ever failed is no longer that run's.
        """
        self._refuse_published()
        given_up = cache(lambda run_id: self.attempts(run_id) > 0 and not self.has(run_id))
        manifests.expect(self.root, cells, facts, given_up)

    def host_pairs(self) -> list[dict[str, Any]]:
        """How alike the hosts of each pair are (similarity.compare_hosts); one that cannot be used is warned
        of."""
        return list(host_pairs.held(self.root).values())

    def manifests(self) -> list[dict[str, Any]]:
        """Every manifest of the study: its facts, and `cells` as a list of rows (see specs.Cell).

        Raises:
            UserError: the folder holds no study.
        """
        if found := [manifests.load(path) for path in manifests.paths(self.root)]:
            return found
        raise no_study(self.root)


def no_study(root: Path) -> UserError:
    """What is said of a folder that holds no study; of one that is not there, which was probably meant."""
    near = [path.name for path in root.parent.glob("*") if path.is_dir()] if not root.exists() else []
    if close := closest(root.name, near):
        meant = str(root.with_name(close))
        return UnknownName(f"there is no folder {root}; did you mean '{meant}'?", str(root), meant)
    return UserError(f"no study in {root}: nothing was run there yet (portability run +sweep=demo)")


def _usable(run_id: str, record: dict[str, Any] | None, fault: str | None) -> dict[str, Any] | None:
    """A record that has no fault; one that has is warned of."""
    if fault:
        log.warning("run %s: %s; the run counts as not done", run_id, fault)
    return None if fault else record


def _save(path: Path, tensors: Arrays, metadata: dict[str, str] | None = None) -> None:
    """Write tensors; what safetensors says of a full disk is an OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    path.chmod(0o644)  # as the other files


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
    raise no_study(root)
