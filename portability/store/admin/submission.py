"""Whether a packed study can be taken from somebody else: it is whole, others can make it again, it may be
passed on, and it holds numbers and settings and nothing else. docs/submitting.md is the rule."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from portability.core.errors import UserError
from portability.core.measures import MEASURES, Undefined
from portability.core.versions import MISSING, major_of
from portability.core.wording import counted
from portability.store import host_pairs, manifests
from portability.store.admin import licences
from portability.store.admin.verify import findings
from portability.store.published import EXAMPLES, FOLDER, RECORDS, WIDE
from portability.store.store import Store

README = "README.md"
FILES = re.compile("|".join((  # of a submission, those that `portability analyze` makes among them
    README, licences.NAME, rf"{FOLDER}/(records|predictions|cells)\.parquet",
    r"(manifests|hosts)/[0-9a-f]{16}\.json", r"report\.md", r"report/index\.html",
    r"tables/\w+\.(csv|md|tex)", r"plots/[\w.-]+\.svg")))
FACTS = ("study", "data", "pairs", "primary")  # of a manifest: by them others repeat it
KEYS = {"run_id", "schema", "format", "files", "digest", "spec", "cell", "port_info", "run_info",
        "train_info", "meta_info"}  # of a record
VERSIONS = ("portability", "torch", "transformers")  # and the library of the run's method
LONGEST = 500  # characters of a setting (our choice); a text of a data set is no setting
LONG = ("traceback", "template", "chat", "error")  # keys of what may be longer
PATH = re.compile("|".join((
    r"(?<![\w.:/<~-])/(?:[\w.+-]+/)+[\w.+-]+", r"(?<==)/\w[\w./-]*", r"(?<!\w)~/\w[\w/.-]*",
    r"file:/\S*", r"\b[A-Za-z]:\\+\w[\w\\]*")))
SECRET = re.compile("|".join((
    r"\bhf_\w{20,}", r"\b[sp]k-[\w-]{20,}", r"\bgh[pousr]_\w{30,}", r"\bgithub_pat_\w{30,}",
    r"\bglpat-[\w-]{20,}", r"\bAKIA[0-9A-Z]{16}\b", r"\bxox[abprs]-[\w-]{10,}",
    "-----BEGIN [A-Z ]*PRIVATE KEY", r"://[^/\s:@]+:[^/\s@]+@",
    r"(?i:(?:api_?key|token|secret|password|passwd)['\"]?\s*[=:]\s*['\"]?[^\s'\",}]{8,})")))
CHECKED = ("accuracy", "rougeL", "f1", "auc", "matthews_correlation")  # of predictions as they are stored
PACK = "pack the study again"


@dataclass(frozen=True)
class Submission:
    """A packed study whose files are sound."""

    store: Store

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """Every record, by its run."""
        return {record["run_id"]: record for record in self.store.records()}

    @cached_property
    def failures(self) -> list[tuple[str, int, dict[str, Any] | None]]:
        """Run, number and failure of every attempt."""
        return list(self.store.failed())

    @property
    def documents(self) -> Iterator[tuple[str, Any]]:
        """Everything that is kept as JSON, with what a reader calls it."""
        yield from ((f"the record of run {run_id}", record) for run_id, record in self.records.items())
        yield from ((f"failure {run_id}-{attempt}", found) for run_id, attempt, found in self.failures)
        for path in (*manifests.paths(self.store.root), *host_pairs.paths(self.store.root)):
            value = manifests.load(path) if path.parent.name == "manifests" else host_pairs.load(path)[0]
            yield f"{path.parent.name}/{path.name}", value


def lines(folder: Path) -> Iterator[str]:
    """What is in the way of taking a study, a sentence each, and last how many they are.

    Raises:
        UserError: the folder is no packed study.
    """
    store = Store(folder)
    store.manifests()
    if not store.published:
        raise UserError(f"{folder} is no packed study; send what this writes: "
                        f"portability store pack {folder} --out NEW_FOLDER")
    count = 0
    for count, sentence in enumerate(_sentences(store), 1):  # noqa: B007
        yield f"{folder.name}: {sentence}"
    yield f"{counted(count, 'thing')} to put right" if count else "nothing to put right: it can be sent"


def _sentences(store: Store) -> Iterator[str]:
    yield from _files(store.root)
    unsound = [f"{where}: {what}; {PACK}" for where, what, _ in findings(store, Counter(), {})]
    yield from unsound
    if not unsound:
        found = Submission(store)
        for check in CHECKS:
            yield from check(found)


# ---- files


def _files(root: Path) -> Iterator[str]:
    """What lies in the folder that has no place there, what lacks, and what files for readers hold."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            yield f"{name} is a link; put the file itself there"
        elif path.is_file() and not FILES.fullmatch(name):
            yield f"{name} is no part of a submission; remove it"
        elif path.is_file() and path.suffix not in (".parquet", ".json"):
            yield from _betrayed(name, [path.read_text(encoding="utf-8", errors="replace")])
    if not (root / README).is_file():
        yield f"{README} is not there; write what was run, by which commands, and on which machine"
    columns = {"records": RECORDS.names, "predictions": [*EXAMPLES.names, *WIDE.names]}
    for name, known in columns.items():
        for column in _columns(root / FOLDER / f"{name}.parquet"):
            if column not in known:
                yield f"{FOLDER}/{name}.parquet has a column '{column}', which no published copy has; {PACK}"


def _columns(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (OSError, ValueError):
        return []  # verify says so


def _betrayed(where: str, texts: list[str]) -> Iterator[str]:
    """Sentences on local paths and secrets in texts; a secret itself is not said again."""
    paths = [match[0].strip() for text in texts if (match := PATH.search(text))]
    if paths:
        yield f"{where} names a place on somebody's machine ({paths[0]}); replace it by a name"
    if any(map(SECRET.search, texts)):
        yield f"{where} holds what looks like a password or a key; remove it, and have it revoked"


# ---- whole


def _manifest(found: Submission) -> Iterator[str]:
    """Every command says what it was, and every cell has a result or a failure."""
    marks, failed = found.store.marks(), {run_id for run_id, *_ in found.failures}
    lacking = []
    for path in manifests.paths(found.store.root):
        manifest = manifests.load(path)
        if lacks := [name for name in FACTS if name not in manifest]:
            yield (f"manifests/{path.name} does not say: {', '.join(lacks)}; repeat the study's command with "
                   f"this version, and {PACK}")
        for cell in manifest["cells"]:
            runs = {cell["run_id"]: cell["mark"], **{cell[name]: None for name in ("native_id", "bare_id")
                                                     if cell[name] not in ("", cell["run_id"])}}
            lacking += [(run_id, cell) for run_id, mark in runs.items()
                        if (run_id not in failed if run_id not in marks else
                            mark is not None and mark not in marks[run_id])]
    if lacking:
        run_id, cell = lacking[0]
        where = ", ".join(f"{name} {cell[name]}" for name in manifests.PLACE)
        yield (f"{counted(len(lacking), 'time')} a cell names a run without result or failure (first: "
               f"{run_id}, of {where}); repeat the study's command, or leave cells out (grid.exclude), and "
               f"{PACK}")


def _predictions(found: Submission) -> Iterator[str]:
    """Every run has predictions at its marks, and its metrics, or score, are theirs."""
    for run_id, record in found.records.items():
        try:
            saved = found.store.predictions(run_id)
        except UserError:
            yield f"run {run_id} has no predictions; {PACK}"
            continue
        places = {int(mark): place for place, mark in enumerate(saved["updates"])}
        for mark in record["train_info"]["metrics"]:
            if mark["updates"] not in places:
                yield f"run {run_id} has no predictions at {mark['updates']} updates; {PACK}"
                break
            if wrong := next(_wrong(mark, saved, places[mark["updates"]]), None):
                name, told, own = wrong
                yield (f"run {run_id} says {name} {told:.4f} at {mark['updates']} updates and its "
                       f"predictions say {own:.4f}; repeat the run")
                break


def _wrong(
    mark: dict[str, Any], saved: dict[str, np.ndarray], place: int
) -> Iterator[tuple[str, float, float]]:
    """Metrics of a mark that its predictions do not give: the name, what is said, and theirs."""
    for name in CHECKED:
        told = mark.get(f"eval_{name}")
        if not isinstance(told, float):
            continue
        own = math.nan  # of a metric that these predictions cannot have
        if "score" in saved:
            own = float(saved["score"][place].mean(dtype=float))
        elif name in MEASURES:
            with suppress(Undefined):
                own = float(MEASURES[name].value(saved["margin"][place], saved["label"]))
        if not abs(own - told) <= 1e-5:
            yield name, told, own


# ---- made again


def _versions(found: Submission) -> Iterator[str]:
    """Every record says by which packages and on what it was made, and of which commit."""
    lacking, changed = Counter[str](), 0
    for record in found.records.values():
        meta, method = record.get("meta_info") or {}, record["spec"].get("method") or {}
        packages, machine = (meta.get(f"{part}_info") or {} for part in ("package", "system"))
        needed = {*VERSIONS, method.get("library", VERSIONS[0])}
        lacking.update(name for name in sorted(needed) if packages.get(name) in (None, MISSING))
        lacking.update(name for name in ("python",) if not machine.get(name))
        changed += bool((record.get("run_info") or {}).get("worktree_dirty"))
    for name, count in lacking.items():
        yield f"the version of {name} is not in {counted(count, 'record')}; repeat the runs with this version"
    if changed:
        yield (f"{counted(changed, 'run')} came out of a changed working tree, which nobody else has; commit "
               "the changes and repeat the runs")


def _protocol(found: Submission) -> Iterator[str]:
    """All records are of one protocol and one major version of transformers."""
    kinds = {"protocols (schema": {str(record["schema"]) for record in found.records.values()},
             "versions of transformers (major": {major_of(record) for record in found.records.values()}}
    for what, values in kinds.items():
        if len(values) > 1:
            yield (f"its records are of several {what} {', '.join(sorted(values))}), which are never pooled; "
                   "send a study of each")


# ---- passed on


def _licences(found: Submission) -> Iterator[str]:
    return licences.faults(found.store.root, _named(found))


def _named(found: Submission) -> dict[str, set[str]]:
    """Hosts and data sets of the records, texts that ports were calibrated on among them."""
    names: dict[str, set[str]] = {"hosts": set(), "data": set()}
    for record in found.records.values():
        spec = record["spec"]
        names["hosts"] |= {spec[role]["name"] for role in ("host", "teacher") if spec.get(role)}
        names["data"].add(spec["data"]["name"])
        if calibration := (spec.get("port") or {}).get("calibration"):
            names["data"].add(calibration["texts"])
    return names


# ---- nothing else


def _nothing_else(found: Submission) -> Iterator[str]:
    """No local path, no secret, and no text: settings are short, and a record has no other keys."""
    told: dict[str, list[str]] = {}
    for where, value in found.documents:
        strings = list(_strings(value))
        sentences = [*_betrayed("", [f"{key}={text}" for key, text in strings])]
        sentences += [f" holds a text of {len(text):,} characters ({key}); submissions hold no texts"
                      for key, text in strings if len(text) > LONGEST and key not in LONG]
        if where.startswith("the record") and (others := value.keys() - KEYS):
            sentences.append(f" has the key '{min(others)}', which no record has; repeat the run")
        for sentence in dict.fromkeys(sentences):
            told.setdefault(sentence, []).append(where)
    for sentence, places in told.items():
        more = f" (and {len(places) - 1:,} more like it)" if len(places) > 1 else ""
        yield f"{places[0]}{more}{sentence}"


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value of JSON with the key that it stands under; keys are texts, too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield "a key", str(name)
            yield from _strings(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


CHECKS: tuple[Callable[[Submission], Iterator[str]], ...] = (
    _manifest, _predictions, _versions, _protocol, _licences, _nothing_else)
