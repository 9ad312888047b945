"""Check every file of a study against what names it; each finding says what is wrong, where, and what to
do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.specs import PROTOCOLS, SCHEMA, RunSpec, from_dict
from portability.core.wording import counted
from portability.store import host_pairs, index, manifests
from portability.store.admin.archive import cells_of
from portability.store.cleanup import leftovers, set_aside
from portability.store.folders import run_folders
from portability.store.integrity import Checked, check
from portability.store.published import FOLDER, Published
from portability.store.store import Store

DISCARD = "discard it (--discard) and repeat the command that ran it"
REPEAT = "remove it and repeat the command that wrote it"
FETCH = "fetch the published study again"
DAY = 86400  # seconds; a younger draft may be of a process that is alive


@dataclass(frozen=True)
class Finding:
    """Something wrong: what, at which path below the study, and what to do; `discard` is the run folder to
    move away."""

    what: str
    where: str
    advice: str
    discard: Path | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.advice}"


@dataclass
class Tally:
    """What was checked so far: numbers of all studies, and the runs of the study at hand."""

    runs: int = 0
    files: int = 0
    origins: dict[str, str] = field(default_factory=dict)  # run -> the run whose module it starts from
    sound: set[str] = field(default_factory=set)


def lines(stores: Iterable[Store], tally: Tally, away: bool) -> Iterator[str]:
    """Findings of all studies as lines, folders being moved away where that is asked for, and last the
    count."""
    count = 0
    for store in stores:
        found: list[Finding] = []
        for finding in verify(store, tally):
            found.append(finding)
            yield f"{store.root.name}/{finding}"
        count += len(found)
        for folder in dict.fromkeys(finding.discard for finding in found if finding.discard and away):
            old, new = (path.relative_to(store.root) for path in (folder, set_aside(store.root, folder)))
            yield f"{store.root.name}: moved {old} to {new}"
    yield f"{counted(tally.runs, 'run')}, {counted(tally.files, 'file')} checked: {counted(count, 'finding')}"


def verify(store: Store, tally: Tally) -> Iterator[Finding]:
    """Everything that is wrong with a study, as it is found."""
    tally.origins, tally.sound = {}, set()
    try:
        yield from _runs(store, tally)
        yield from _failures(store, tally)
        yield from _packed(store, tally) if store.published else _around(store.root, tally)
    except UserError as error:
        yield Finding(str(error), FOLDER, FETCH)
    yield from _manifests(store.root, tally)
    yield from _host_pairs(store.root, tally)
    for run_id, origin in tally.origins.items():
        if origin not in tally.sound:
            where = str(store.folder(run_id).relative_to(store.root))
            yield Finding(f"run {run_id} starts from run {origin}, which is not there or not sound", where,
                          "repeat the command that ran it")


# ---- what both kinds of study have


def _runs(store: Store, tally: Tally) -> Iterator[Finding]:
    count = len(store.reader.ids())
    for run_id, found, folder in tqdm(_walk(store), store.root.name, count, unit="run", disable=None):
        where, of_run = (str(folder.relative_to(store.root)), "") if folder else (FOLDER, f"run {run_id}: ")
        if folder:
            tally.files += len(found.digests) + (found.record is not None)
        for fault in _faults(run_id, found, tally):
            yield Finding(of_run + fault, where, DISCARD if folder else FETCH, folder)
        if found.unsupported_version:
            yield Finding(of_run + found.unsupported_version, where, "read it with the version that wrote it")
        for name in found.strays:
            yield Finding(f"{name} is not named by the record", where, "remove that file")


def _walk(store: Store) -> Iterator[tuple[str, Checked, Path | None]]:
    """Every run with what was found in its files, and its folder, which a published study has not."""
    if store.published:
        yield from ((run_id, store.inspect(run_id), None) for run_id in store.reader.ids())
        return
    for folder in run_folders(store.root):
        found, shard = check(folder, folder.name), folder.name[:2]
        if folder.parent.name != shard:
            found.faults.append(f"its folder belongs into runs/{shard}")
        yield folder.name, found, folder


def _faults(run_id: str, found: Checked, tally: Tally) -> list[str]:
    """What is wrong with a run; a sound one and the origin of any are noted. A record is that of the run it
    is kept as when its id is the digest of its own spec (of an older schema, whose ids are no longer made,
    when it has its name).
    """
    tally.runs += 1
    record, faults = found.record, found.faults
    schema = (record or {}).get("schema")
    if record is not None and schema not in PROTOCOLS and not found.unsupported_version:
        found.unsupported_version = f"schema {schema}, this version reads {', '.join(map(str, PROTOCOLS))}"
    if record is None or found.unsupported_version:
        return faults
    if schema != SCHEMA:
        if (own := record.get("run_id")) != run_id:
            faults.append(f"the name of its folder is {run_id}, its record's is {own}")
    else:
        try:
            run = from_dict(RunSpec, record["spec"])
            names = {"name of its folder": run_id, "run_id of its record": record.get("run_id")}
            faults += [f"the {what} is {name}, the digest of its spec is {run.run_id}"
                       for what, name in names.items() if name != run.run_id]
            if run.origin is not None:
                tally.origins[run_id] = run.origin
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            faults.append(f"its spec cannot be read ({error!r})")
    if not faults:
        tally.sound.add(run_id)
    return faults


def _failures(store: Store, tally: Tally) -> Iterator[Finding]:
    for run_id, attempt, failure in store.reader.failures():
        tally.files += not store.published
        if failure is None:
            yield Finding("it is no failure of that run and number", f"failures/{run_id}-{attempt}.json",
                          FETCH if store.published else "remove it")


def _manifests(root: Path, tally: Tally) -> Iterator[Finding]:
    for path, fault in manifests.faults(root, root.name, {}):
        tally.files += 1
        if fault:
            yield Finding(fault, f"manifests/{path.name}", REPEAT)


def _host_pairs(root: Path, tally: Tally) -> Iterator[Finding]:
    for path in host_pairs.paths(root):
        tally.files += 1
        if (fault := host_pairs.load(path)[1]) is not None:
            yield Finding(fault, f"{host_pairs.FOLDER}/{path.name}", REPEAT)


# ---- what one kind has


def _around(root: Path, tally: Tally) -> Iterator[Finding]:
    """What else lies in the folder of an ordinary study: strays, drafts that a kill left, and the index."""
    shards = sorted((root / "runs").glob("*"))
    inside = [path for shard in shards if len(shard.name) == 2 for path in sorted(shard.glob("*"))]
    for path in [*(path for path in shards if len(path.name) != 2 or not path.is_dir()),
                 *(path for path in inside if len(path.name) != 16 and not path.name.startswith("."))]:
        yield Finding("it is no run's folder", str(path.relative_to(root)), "remove it")
    for path in leftovers(root, DAY):
        yield Finding("a killed process left it", str(path.relative_to(root)),
                      f"python -m portability.store tidy {root}")
    if (root / index.NAME).exists():
        tally.files += 1
        remedy = f"remove it, then python -m portability.store compact {root}"
        try:
            for run_id in index.stale(root):
                yield Finding(f"its row of run {run_id} differs from the record", index.NAME, remedy)
        except ValueError as error:
            yield Finding(f"it cannot be read ({error})", index.NAME, remedy)


def _packed(store: Store, tally: Tally) -> Iterator[Finding]:
    """What else the files of a published study hold: predictions without a record, and the table of cells."""
    tally.files += 3
    for run_id in Published(store.root).without_record():
        yield Finding(f"run {run_id}: there are predictions without a record", FOLDER, FETCH)
    try:
        follow = pd.read_parquet(store.root / FOLDER / "cells.parquet").equals(cells_of(store))
    except (OSError, ValueError):
        follow = False
    if not follow:
        yield Finding("cells.parquet is not what the records and manifests say", FOLDER, FETCH)
