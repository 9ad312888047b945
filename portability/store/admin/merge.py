"""Merge studies that were run in parts: everything is checked first, then whole runs are copied, or nothing
is."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.wording import counted
from portability.store import failures, host_pairs, manifests
from portability.store.atomic import replacing_folder, sealed
from portability.store.records import KNOWN, RECORD, evaluated
from portability.store.store import Store

REPORT = "port_report.json"
NAMED = 5  # runs that an error names; `verify` names all


def merge(target: Store, shards: Sequence[Store]) -> Iterator[str]:
    """Copy what the target lacks, and say of each shard what was copied. A second merge copies nothing.

    Raises:
        UserError: a shard's run or manifest is unsound; two runs of one id differ in their numbers; or two
            studies hold one cell under two runs. Nothing is copied then.
    """
    for shard, new in _checked(target, shards):
        for run_id in tqdm(new, desc=f"copy {shard.root.name}", unit="run", disable=None):
            with replacing_folder(target.folder(run_id)) as draft:
                files = sorted(shard.folder(run_id).iterdir(), key=lambda path: path.name == RECORD)
                for path in files:  # the record last
                    shutil.copyfile(path, draft / path.name)
                    sealed(draft / path.name)
        failed = failures.copy(shard.root / "failures", target.root / "failures")
        pairs = host_pairs.copy(shard.root, target.root)
        asked = sum(manifests.write(target.root, manifest) for manifest in shard.manifests())
        there = len(shard.ids()) - len(new)
        yield (f"{shard.root.name}: {counted(len(new), 'run')} copied, {there:,} already there; "
               f"{counted(asked, 'manifest')} and {counted(failed, 'failure')} copied"
               + (f", {counted(pairs, 'pair')} of hosts" if pairs else ""))


def _checked(target: Store, shards: Sequence[Store]) -> list[tuple[Store, list[str]]]:
    """The runs to copy from each shard, after everything was checked."""
    seen: set[Path] = set()
    known = manifests.held(target.root)
    for store in (target, *shards):
        if store.published:
            raise UserError(f"{store.root} is a published copy without modules; "
                            "merge the study that it was packed from")
        if store.root.resolve() in seen:
            raise UserError(f"{store.root} is given twice; name each study once")
        seen.add(store.root.resolve())
    for shard in shards:
        shard.manifests()  # is it a study?
        for path, fault in manifests.faults(shard.root, target.root.name, known):
            if fault:
                raise UserError(f"{path}: {fault}")
    holder = dict.fromkeys(target.ids(), target)
    plans = []
    for shard in shards:
        _refuse_unsound(shard)
        plans.append((shard, [run_id for run_id in shard.ids() if run_id not in holder]))
        for run_id in tqdm(shard.ids(), desc=f"check {shard.root.name}", unit="run", disable=None):
            if holder.setdefault(run_id, shard) is not shard:
                _refuse_other_numbers(holder[run_id], shard, run_id)
    return plans


def _refuse_unsound(shard: Store) -> None:
    """Read every file of a study's runs and failures.

    Raises:
        UserError: names the unsound ones.
    """
    faults = [f"run {run_id}: {fault}" for run_id in shard.ids() if (fault := shard.sound(run_id))]
    faults += [f"failure {run_id}-{attempt} cannot be read" for run_id, attempt, failure in shard.failed()
               if failure is None]
    if faults:
        more = f", and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise UserError(f"{shard.root} is not sound ({'; '.join(faults[:NAMED])}{more}); nothing was copied; "
                        f"see `portability store verify {shard.root}` (--discard and repeat its "
                        "command), then merge again")


def _refuse_other_numbers(one: Store, other: Store, run_id: str) -> None:
    """Compare what two trainings of one run must share; times, machine, versions and the metrics that were
    asked for may differ.

    Raises:
        UserError: their numbers differ, or the first is not sound.
    """
    here, there = (store.inspect(run_id) for store in (one, other))
    if here.fault:
        raise UserError(f"run {run_id} of {one.root} is not sound ({here.fault}); nothing was copied; "
                        f"run `portability store verify {one.root} --discard` and merge again")
    ours, theirs = here.record or {}, there.record or {}
    marks = [sorted(evaluated(record)) for record in (ours, theirs)]
    if marks[0] != marks[1]:
        raise UserError(f"run {run_id} was evaluated at updates {marks[0]} in {one.root} and at {marks[1]} "
                        f"in {other.root}; nothing was copied; repeat one command with the budgets of both, "
                        "then merge again")
    train, again = ours["train_info"], theirs["train_info"]
    same = {
        "spec": ours.get("spec") == theirs.get("spec"),
        "train_info.metrics": all(mark[name] == twin[name]
                                  for mark, twin in zip(train["metrics"], again["metrics"], strict=True)
                                  for name in mark.keys() & twin.keys()),
        "train_info.train_loss": train.get("train_loss") == again.get("train_loss"),
        REPORT: _report(one.folder(run_id)) == _report(other.folder(run_id)),
        **{name: here.digests.get(name) == there.digests.get(name) for name in KNOWN if name != REPORT},
    }
    if different := [name for name, equal in same.items() if not equal]:
        raise UserError(f"run {run_id} of {one.root} and of {other.root} differ in {', '.join(different)}; "
                        "nothing was copied; find out which is right (precision, device, package versions) "
                        "and discard the other")


def _report(folder: Path) -> dict[str, Any]:
    """The report of a run's port, without its time."""
    report = json.loads((folder / REPORT).read_bytes()) if (folder / REPORT).exists() else {}
    return {key: value for key, value in report.items() if key != "seconds"}
