"""Check every file of a study against what names it; each finding says what, where, and what to do."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from portability.core.errors import UserError
from portability.core.specs import PROTOCOLS, SCHEMA, RunSpec, from_dict
from portability.core.wording import counted
from portability.store import failures, index, manifests
from portability.store import host_pairs as pairs
from portability.store.cleanup import leftovers, set_aside
from portability.store.integrity import Checked, check
from portability.store.study import Store

AGAIN = "discard it (--discard) and repeat the command that ran it"
DAY = 86400  # seconds; a younger draft may be of a process that is alive


@dataclass(frozen=True)
class Finding:
    """Something wrong: what, at which path below the study, and what to do; `discard` names the unsound run folder."""

    what: str
    where: str
    advice: str
    discard: Path | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.advice}"


@dataclass
class Tally:
    """What was checked so far."""

    runs: int = 0
    files: int = 0
    origins: dict[str, str] = field(default_factory=dict)  # run -> the run whose module it starts from
    sound: set[str] = field(default_factory=set)


def verify(store: Store, tally: Tally) -> Iterator[Finding]:
    """Everything that is wrong with a study, as it is found."""
    if store.published:
        from portability.store.admin.verify_published import published_findings

        yield from published_findings(store, tally)
    else:
        yield from _runs(store, tally)
        yield from _strays(store)
        yield from _failures(store.root / "failures", tally)
        yield from _index(store, tally)
    yield from _manifests(store, tally)
    yield from _pairs(store, tally)
    origins, sound, tally.origins, tally.sound = tally.origins, tally.sound, {}, set()  # of this study alone
    for run_id, origin in origins.items():
        if origin not in sound:
            yield Finding(f"run {run_id} starts from run {origin}, which is not there or not sound",
                          str(store.folder(run_id).relative_to(store.root)),
                          "repeat the command that ran it")


def discard(store: Store, findings: Iterable[Finding]) -> list[tuple[Path, Path]]:
    """Move the unsound run folders to `discarded/`; gives back what went where."""
    folders = dict.fromkeys(finding.discard for finding in findings if finding.discard)
    return [(folder, set_aside(store.root, folder)) for folder in folders]


# ---- run folders


def _runs(store: Store, tally: Tally) -> Iterator[Finding]:
    from tqdm import tqdm

    shards = [(shard, run_id) for shard in sorted(index.folders(store.root / "runs", 2))
              for run_id in sorted(index.folders(store.root / "runs" / shard, 16))]
    for shard, run_id in tqdm(shards, desc=store.root.name, unit="run", disable=None):
        folder = store.root / "runs" / shard / run_id
        found = check(folder, run_id)
        tally.runs += 1
        tally.files += len(found.digests) + (found.record is not None)
        where = str(folder.relative_to(store.root))
        faults = [*found.faults, *run_faults(run_id, found, tally)]
        if run_id[:2] != shard:
            faults.append(f"its folder belongs into runs/{run_id[:2]}")
        yield from (Finding(fault, where, AGAIN, folder) for fault in faults)
        yield from (Finding(why, where, "read it with the version that wrote it") for why in foreign(found))
        yield from (Finding(f"{name} is not named by the record", where, "remove that file") for name in found.strays)
        if not faults and not foreign(found):
            tally.sound.add(run_id)


def foreign(found: Checked) -> list[str]:
    """Why a record belongs to another version of the project."""
    schema = (found.record or {}).get("schema")
    known = found.record is None or schema in PROTOCOLS
    reads = f"schema {schema}, this version reads {', '.join(map(str, PROTOCOLS))}"
    return [*([found.foreign] if found.foreign else []), *([] if known else [reads])]


def run_faults(run_id: str, found: Checked, tally: Tally) -> list[str]:
    """Whether a record is that of the run it is kept as: its id is the digest of its own spec (of an older schema's, whose ids
    are no longer made, only its name is compared)."""
    record = found.record
    if record is None or foreign(found):
        return []
    if record["schema"] != SCHEMA:
        own = record.get("run_id")
        return [] if own == run_id else [f"the name of its folder is {run_id}, its record's is {own}"]
    try:
        run = from_dict(RunSpec, record["spec"])
        own = run.run_id
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its spec cannot be read ({error!r})"]
    if run.origin is not None:
        tally.origins[run_id] = run.origin
    names = {"name of its folder": run_id, "run_id of its record": record.get("run_id")}
    return [f"the {what} is {name}, the digest of its spec is {own}" for what, name in names.items() if name != own]


def _strays(store: Store) -> Iterator[Finding]:
    """Files and folders that are none of the store's, and what killed processes left."""
    runs = store.root / "runs"
    for shard in sorted(os.listdir(runs)) if runs.is_dir() else []:
        places = [runs / shard] if len(shard) != 2 or not (runs / shard).is_dir() else [
            runs / shard / name for name in sorted(os.listdir(runs / shard)) if len(name) != 16 and not name.startswith(".")]
        for path in places:
            yield Finding("it is no run's folder", str(path.relative_to(store.root)), "remove it")
    for path in leftovers(store.root, DAY):
        yield Finding("a killed process left it", str(path.relative_to(store.root)),
                      f"python -m portability.store tidy {store.root}")


# ---- the rest


def _failures(folder: Path, tally: Tally) -> Iterator[Finding]:
    for run_id, numbers in failures.names(folder).items():
        for number in numbers:
            tally.files += 1
            if failures.load(folder, run_id, number) is None:
                yield Finding("it is no failure of that run and number", f"failures/{run_id}-{number}.json", "remove it")


def _manifests(store: Store, tally: Tally) -> Iterator[Finding]:
    places: dict[tuple, str] = {}
    for path in manifests.paths(store.root):
        tally.files += 1
        where = f"manifests/{path.name}"
        try:
            manifest = manifests.load(path)
            manifests.refuse_other_settings(store.root.name, places, manifest["cells"])
        except UserError as error:
            yield Finding(str(error), where, "remove it and repeat the command that wrote it")
            continue
        places.update((manifests.place_of(row), row["run_id"]) for row in manifest["cells"])
        if (own := manifests.name_of(manifest)) != path.stem:
            yield Finding(f"it was changed: the digest of its content is {own}", where,
                          "remove it and repeat the command that wrote it")


def _pairs(store: Store, tally: Tally) -> Iterator[Finding]:
    for path in pairs.paths(store.root):
        tally.files += 1
        if (fault := pairs.load(path)[1]) is not None:
            yield Finding(fault, f"{pairs.FOLDER}/{path.name}", "remove it and repeat the command that wrote it")


def _index(store: Store, tally: Tally) -> Iterator[Finding]:
    """Rows that claim to hold and do not agree with the record."""
    remedy = f"remove it, then python -m portability.store compact {store.root}"
    path = store.root / index.NAME
    if not path.exists():
        return
    tally.files += 1
    if (fault := index.unreadable(path)) is not None:
        yield Finding(f"it cannot be read ({fault})", index.NAME, remedy)
        return
    for row in index.rows(store.root, index.DERIVED):
        if row.kept is not None and row.kept != index.fresh(store.root, row.run_id):
            yield Finding(f"its row of run {row.run_id} differs from the record", index.NAME, remedy)


def lines(stores: Iterable[Store], tally: Tally, away: bool) -> Iterator[str]:
    """Findings of all studies as lines, folders being moved away where that is asked for, and last the count."""
    count = 0
    for store in stores:
        found: list[Finding] = []
        for finding in verify(store, tally):
            found.append(finding)
            yield f"{store.root.name}/{finding}"
        count += len(found)
        for old, new in discard(store, found) if away else []:
            yield f"{store.root.name}: moved {old.relative_to(store.root)} to {new.relative_to(store.root)}"
    yield f"{counted(tally.runs, 'run')}, {counted(tally.files, 'file')} checked: {counted(count, 'finding')}"
