"""Check every file of a study against what names it; each finding says what is wrong, where, and what to
do."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.specs import PROTOCOLS, SCHEMA, RunSpec, from_dict
from portability.core.wording import counted
from portability.store import host_pairs, index, manifests
from portability.store.admin.archive import cells_of
from portability.store.atomic import leftovers
from portability.store.published import FETCH, FOLDER, Published
from portability.store.records import Checked, check
from portability.store.store import Store

DISCARD = "discard it (--discard) and repeat the command that ran it"
REPEAT = "remove it and repeat the command that wrote it"
DAY = 86400  # seconds; a younger draft may be of a process that is alive
Finding = tuple[str, str, str]  # path below the study, what is wrong, what to do
Unsound = dict[Path, str]  # folder to move away, and its run


def lines(stores: Iterable[Store], away: bool) -> Iterator[str]:
    """Findings of all studies as lines, folders being moved away where that is asked for, and last the
    count."""
    tally: Counter[str] = Counter()
    for store in stores:
        unsound: Unsound = {}
        for finding in findings(store, tally, unsound):
            tally["finding"] += 1
            yield "{}/{}: {}; {}".format(store.root.name, *finding)
        for folder, run_id in unsound.items() if away else ():
            old, new = (path.relative_to(store.root) for path in (folder, store.set_aside(run_id, folder)))
            yield f"{store.root.name}: moved {old} to {new}"
    runs, files, found = (counted(tally[what], what) for what in ("run", "file", "finding"))
    yield f"{runs}, {files} checked: {found}"


def findings(store: Store, tally: Counter[str], unsound: Unsound) -> Iterator[Finding]:
    """Everything that is wrong with a study, as it is found."""
    root = store.root
    try:
        yield from _runs(store, tally, unsound)
        for run_id, attempt, failure in store.failed():
            tally["file"] += not store.published
            if failure is None:
                yield (f"failures/{run_id}-{attempt}.json", "it is no failure of that run and number",
                       FETCH if store.published else "remove it")
        yield from _packed(store, tally) if isinstance(store, Published) else _around(store, tally)
    except UserError as error:
        yield FOLDER, str(error), FETCH
    others = [*manifests.faults(root, root.name, {}),
              *((path, host_pairs.load(path)[1]) for path in host_pairs.paths(root))]
    tally["file"] += len(others)
    yield from ((str(path.relative_to(root)), fault, REPEAT) for path, fault in others if fault)


def _runs(store: Store, tally: Counter[str], unsound: Unsound) -> Iterator[Finding]:
    ids: Iterable[tuple[str, Path | None]] = ((run_id, None) for run_id in store.ids())
    if not store.published:
        ids = ((folder.name, folder) for folder in store.run_folders())
    origins: dict[str, str] = {}  # run, and the run whose module it starts from
    sound = set()
    for run_id, folder in tqdm([*ids], store.root.name, unit="run", disable=None):
        found = check(folder, run_id) if folder else store.inspect(run_id)
        where, of_run = (str(folder.relative_to(store.root)), "") if folder else (FOLDER, f"run {run_id}: ")
        tally["run"] += 1
        tally["file"] += (len(found.digests) + (found.record is not None)) if folder else 0
        if folder and folder != store.folder(run_id):
            found.faults.append(f"its folder belongs into runs/{run_id[:2]}")
        _check_spec(run_id, found, origins)
        for fault in found.faults:
            yield where, of_run + fault, DISCARD if folder else FETCH
        if folder and found.faults:
            unsound[folder] = run_id
        if found.unsupported_version:
            yield where, of_run + found.unsupported_version, "read it with the version that wrote it"
        if found.fault is None:
            sound.add(run_id)
        for name in found.strays:
            yield where, f"{name} is not named by the record", "remove that file"
    for run_id, origin in origins.items():
        if origin not in sound:
            yield (str(store.folder(run_id).relative_to(store.root)),
                   f"run {run_id} starts from run {origin}, which is not there or not sound",
                   "repeat the command that ran it")


def _check_spec(run_id: str, found: Checked, origins: dict[str, str]) -> None:
    """Add what is wrong with a record's names to what was found, and a run's origin to the others. A record
    is that of the run it is kept as when its id is the digest of its own spec (of an older schema, whose ids
    are no longer made, when it has its name).
    """
    record = found.record
    schema = (record or {}).get("schema")
    if record is not None and schema not in PROTOCOLS and not found.unsupported_version:
        found.unsupported_version = f"schema {schema}, this version reads {', '.join(map(str, PROTOCOLS))}"
    if record is None or found.unsupported_version:
        return
    own = record.get("run_id")
    if schema != SCHEMA:
        if own != run_id:
            found.faults.append(f"the name of its folder is {run_id}, its record's is {own}")
        return
    try:
        run = from_dict(RunSpec, record["spec"])
        names = {"name of its folder": run_id, "run_id of its record": own}
        found.faults += [f"the {what} is {name}, the digest of its spec is {run.run_id}"
                         for what, name in names.items() if name != run.run_id]
        if run.origin is not None:
            origins[run_id] = run.origin
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.faults.append(f"its spec cannot be read ({error!r})")


def _around(store: Store, tally: Counter[str]) -> Iterator[Finding]:
    """What else lies in the folder of an ordinary study: strays, drafts that a kill left, and the index."""
    root = store.root
    for path in sorted(root.glob("runs/*")):
        if len(path.name) != 2 or not path.is_dir():
            yield f"runs/{path.name}", "it is no run's folder", "remove it"
    for path in sorted(root.glob("runs/??/*")):
        if len(path.name) != 16 and not path.name.startswith("."):
            yield str(path.relative_to(root)), "it is no run's folder", "remove it"
    for path in leftovers(root, DAY):
        yield (str(path.relative_to(root)), "a killed process left it",
               f"portability store tidy {root}")
    if (root / index.NAME).exists():
        tally["file"] += 1
        remedy = f"remove it, then portability store compact {root}"
        try:
            for run_id in index.stale(store):
                yield index.NAME, f"its row of run {run_id} differs from the record", remedy
        except UserError as error:
            yield index.NAME, str(error), remedy


def _packed(store: Published, tally: Counter[str]) -> Iterator[Finding]:
    """What else the files of a published study hold: predictions without a record, and the table of cells."""
    tally["file"] += 3
    for run_id in store.without_record():
        yield FOLDER, f"run {run_id}: there are predictions without a record", FETCH
    try:
        follow = pd.read_parquet(store.root / FOLDER / "cells.parquet").equals(cells_of(store))
    except (OSError, ValueError):
        follow = False
    if not follow:
        yield FOLDER, "cells.parquet is not what the records and manifests say", FETCH
