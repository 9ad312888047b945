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
from portability.store import failures, host_pairs, index, manifests
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
    if store.published:
        tally.files += 3
        try:
            yield from _published(store, tally)
        except UserError as error:
            yield Finding(str(error), FOLDER, FETCH)
    else:
        yield from _folders(store, tally)
    yield from _manifests(store.root, tally)
    yield from _host_pairs(store.root, tally)
    for run_id, origin in tally.origins.items():
        if origin not in tally.sound:
            where = str(store.folder(run_id).relative_to(store.root))
            yield Finding(f"run {run_id} starts from run {origin}, which is not there or not sound", where,
                          "repeat the command that ran it")


def _folders(store: Store, tally: Tally) -> Iterator[Finding]:
    """An ordinary study: its run folders, failures and index, and what belongs to none of them."""
    root = store.root
    for folder in tqdm(run_folders(root), desc=root.name, unit="run", disable=None):
        found, shard, where = check(folder, folder.name), folder.name[:2], str(folder.relative_to(root))
        tally.files += len(found.digests) + (found.record is not None)
        if folder.parent.name != shard:
            found.faults.append(f"its folder belongs into runs/{shard}")
        yield from (Finding(fault, where, DISCARD, folder) for fault in _faults(folder.name, found, tally))
        if found.unsupported_version:
            yield Finding(found.unsupported_version, where, "read it with the version that wrote it")
        for name in found.strays:
            yield Finding(f"{name} is not named by the record", where, "remove that file")
    for run_id, attempt, failure in store.reader.failures():
        tally.files += 1
        if failure is None:
            where = str(failures.path_of(root / "failures", run_id, attempt).relative_to(root))
            yield Finding("it is no failure of that run and number", where, "remove it")
    for path in _strays(root):
        yield Finding("it is no run's folder", str(path.relative_to(root)), "remove it")
    for path in leftovers(root, DAY):
        where = str(path.relative_to(root))
        yield Finding("a killed process left it", where, f"python -m portability.store tidy {root}")
    yield from _index(root, tally)


def _strays(root: Path) -> list[Path]:
    """Paths below runs/ that are no run's folder, no shard and no draft."""
    shards = sorted((root / "runs").glob("*"))
    runs = [path for shard in shards if len(shard.name) == 2 for path in sorted(shard.glob("*"))]
    return [*(path for path in shards if len(path.name) != 2 or not path.is_dir()),
            *(path for path in runs if len(path.name) != 16 and not path.name.startswith("."))]


def _index(root: Path, tally: Tally) -> Iterator[Finding]:
    remedy = f"remove it, then python -m portability.store compact {root}"
    if (root / index.NAME).exists():
        tally.files += 1
        try:
            for run_id in index.stale(root):
                yield Finding(f"its row of run {run_id} differs from the record", index.NAME, remedy)
        except ValueError as error:
            yield Finding(f"it cannot be read ({error})", index.NAME, remedy)


def _published(store: Store, tally: Tally) -> Iterator[Finding]:
    """A published study: its packed records, failures, predictions and cells."""
    copy = Published(store.root)
    for run_id in tqdm(copy.ids(), desc=FOLDER, unit="run", disable=None):
        found = copy.check(run_id)
        faults = _faults(run_id, found, tally)
        for fault in [*faults, found.unsupported_version] if found.unsupported_version else faults:
            yield Finding(f"run {run_id}: {fault}", FOLDER, FETCH)
    for run_id in copy.without_record():
        yield Finding(f"run {run_id}: there are predictions without a record", FOLDER, FETCH)
    for run_id, attempt, failure in copy.failures():
        if failure is None:
            yield Finding(f"run {run_id}: its failure {attempt} cannot be read", FOLDER, FETCH)
    if not _cells_follow(store):
        yield Finding("cells.parquet is not what the records and manifests say", FOLDER, FETCH)


def _cells_follow(store: Store) -> bool:
    """Whether the table of cells is what the records and manifests say."""
    try:
        return pd.read_parquet(store.root / FOLDER / "cells.parquet").equals(cells_of(store))
    except (OSError, ValueError):
        return False


# ---- what both kinds of study have


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
