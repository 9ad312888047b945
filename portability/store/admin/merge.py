"""Merge studies that were run in parts: everything is checked first, then whole runs are copied, or nothing is."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portability.core.errors import UserError
from portability.core.wording import counted
from portability.store import failures, index, manifests
from portability.store import host_pairs as pairs
from portability.store.atomic import draft_folder, place, sealed, write_json
from portability.store.integrity import KNOWN, Checked, check
from portability.store.records import canonical, evaluated
from portability.store.study import Store

REPORT = "port_report.json"
NAMED = 5  # runs that an error names; `verify` names all


@dataclass
class Merged:
    """What came from one shard."""

    name: str
    runs: int = 0
    there: int = 0
    manifests: int = 0
    failures: int = 0
    pairs: int = 0

    def __str__(self) -> str:
        return (f"{self.name}: {counted(self.runs, 'run')} copied, {self.there:,} already there; "
                f"{counted(self.manifests, 'manifest')} and {counted(self.failures, 'failure')} copied"
                + (f", {counted(self.pairs, 'pair')} of hosts" if self.pairs else ""))


def merge(target: Store, shards: Sequence[Store]) -> Iterator[Merged]:
    """Copy what the target lacks. A second merge copies nothing.

    Raises:
        UserError: a shard's run or manifest is unsound; two runs of one id differ in their numbers; or two studies hold
            one cell under two runs. Nothing is copied then.
    """
    from tqdm import tqdm

    for store in (target, *shards):
        if store.published:
            raise UserError(f"{store.root} is a published copy without modules; merge the study that it was packed from")
    for place_, shard in enumerate(shards):
        if shard.root.resolve() in {other.root.resolve() for other in (target, *shards[:place_])}:
            raise UserError(f"{shard.root} is given twice; name each study once")
    _check_manifests(target, shards)
    plans = _check_runs(target, shards)
    for shard, runs in zip(shards, plans, strict=True):
        done = Merged(shard.root.name, runs=len(runs), there=len(index.scan(shard.root)) - len(runs))
        for run_id in tqdm(runs, desc=f"copy {shard.root.name}", unit="run", disable=None):
            _copy_run(shard.folder(run_id), target.folder(run_id))
        done.failures = sum(_copy_failures(shard.root / "failures", target.root / "failures"))
        done.pairs = pairs.copy(shard.root, target.root)
        done.manifests = sum(_copy_manifest(path, target.root / "manifests") for path in manifests.paths(shard.root))
        yield done


# ---- what is checked before anything is copied


def _check_manifests(target: Store, shards: Sequence[Store]) -> None:
    known = manifests.held(target.root)
    for shard in shards:
        shard.manifests()
        for path in manifests.paths(shard.root):
            manifest = manifests.load(path)
            if manifests.name_of(manifest) != path.stem:
                raise UserError(f"{path} was changed since it was written; remove it and repeat the command that wrote it")
            manifests.refuse_other_settings(target.root.name, known, manifest["cells"])
            known.update((manifests.place_of(row), row["run_id"]) for row in manifest["cells"])


def _check_runs(target: Store, shards: Sequence[Store]) -> list[list[str]]:
    """The runs to copy from each shard."""
    from tqdm import tqdm

    here = {run_id: target for run_id in index.scan(target.root)}
    plans: list[list[str]] = []
    for shard in shards:
        new: list[str] = []
        for run_id in tqdm(_sound_runs(shard), desc=f"check {shard.root.name}", unit="run", disable=None):
            if run_id in here:
                _refuse_other_numbers(here[run_id], shard, run_id)
            else:
                new.append(run_id)
                here[run_id] = shard
        plans.append(new)
    return plans


def _sound_runs(shard: Store) -> list[str]:
    """All runs of a shard, every file of which was read.

    Raises:
        UserError: names the unsound ones.
    """
    runs = list(index.scan(shard.root))
    faults = [f"run {run_id}: {fault}" for run_id in runs if (fault := shard.sound(run_id)) is not None]
    folder = shard.root / "failures"
    faults += [f"failure {run_id}-{number} cannot be read" for run_id, numbers in failures.names(folder).items()
               for number in numbers if failures.load(folder, run_id, number) is None]
    if faults:
        more = f", and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise UserError(f"{shard.root} is not sound ({'; '.join(faults[:NAMED])}{more}); nothing was copied; see `python -m "
                        f"portability.store verify {shard.root}` (--discard and repeat its command), then merge again")
    return runs


def _refuse_other_numbers(one: Store, other: Store, run_id: str) -> None:
    here, there = (check(store.folder(run_id), run_id) for store in (one, other))
    if here.faults or here.foreign:
        raise UserError(f"run {run_id} of {one.root} is not sound ({[*here.faults, here.foreign][0]}); nothing was copied; "
                        f"run `python -m portability.store verify {one.root} --discard` and merge again")
    marks = [evaluated(found.record or {}) for found in (here, there)]
    if marks[0] != marks[1]:
        raise UserError(f"run {run_id} was evaluated at updates {sorted(marks[0])} in {one.root} and at {sorted(marks[1])} in "
                        f"{other.root}; nothing was copied; repeat one command with the budgets of both, then merge again")
    held = [set(mark) for found in (here, there) for mark in (found.record or {})["train_info"]["metrics"]]
    names = set.intersection(*held) if held else set()
    if different := [name for name, value in _science(one, here, run_id, names).items()
                     if value != _science(other, there, run_id, names)[name]]:
        raise UserError(f"run {run_id} of {one.root} and of {other.root} differ in {', '.join(different)}; nothing was "
                        "copied; find out which is right (precision, device, package versions) and discard the other")


def _science(store: Store, found: Checked, run_id: str, names: Set[str]) -> dict[str, Any]:
    """What two trainings of one run must share; times, machine, versions and the metrics that were asked for may differ.

    Args:
        names: metrics that both hold.
    """
    record = found.record or {}
    train = record.get("train_info", {})
    report = json.loads((store.folder(run_id) / REPORT).read_bytes()) if REPORT in found.digests else {}
    return {
        "spec": record.get("spec"),
        "train_info.metrics": [{name: mark[name] for name in sorted(names)} for mark in train.get("metrics", [])],
        "train_info.train_loss": train.get("train_loss"),
        REPORT: {key: value for key, value in report.items() if key != "seconds"},
        **{name: found.digests.get(name) for name in KNOWN if name != REPORT},
    }


# ---- copying


def _copy_run(source: Path, final: Path) -> None:
    draft = draft_folder(final)
    try:
        for path in sorted(source.iterdir(), key=lambda path: path.name == "record.json"):
            shutil.copyfile(path, draft / path.name)
            sealed(draft / path.name)
        place(draft, final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _copy_manifest(path: Path, folder: Path) -> bool:
    if (folder / path.name).exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / path.name, manifests.load(path))
    return True


def _copy_failures(source: Path, target: Path) -> Iterator[int]:
    """Copy failures that the target lacks, under new numbers where theirs are taken; yields 1 for each."""
    for run_id, numbers in failures.names(source).items():
        held = Counter(_body(target, run_id, number) for number in range(1, 1 + failures.attempts(target, run_id)))
        for number in numbers:
            body = _body(source, run_id, number)
            if held[body]:
                held[body] -= 1
            else:
                failures.keep(target, run_id, json.loads(body))
                yield 1


def _body(folder: Path, run_id: str, number: int) -> str:
    """A failure without its number."""
    failure = failures.load(folder, run_id, number) or {}
    return canonical({key: value for key, value in failure.items() if key != "attempt"})
