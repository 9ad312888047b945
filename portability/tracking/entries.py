"""What W&B is told of a run: how it is filed before anything is measured, and, from its record, all of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from portability.core.specs import digest

WRAPPING = ("format", "files", "digest")  # fields of a stored record that say nothing of the run
TAG, GROUP = 64, 128  # characters that W&B takes
STUDY = "study"  # how a study's own run is filed: its job_type, and the beginning of its id


class Module(NamedTuple):
    """A trained module as an artifact: the run that trained it, its file, and the file's digest."""

    run_id: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Filing:
    """Where a run stands in W&B: group, job_type, name and tags; and its config, by which it is found."""

    how: dict[str, Any]
    config: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A run as W&B is told of it.

    Attributes:
        id: names what was measured: the same run with other numbers is another W&B run. A study's own run is
            STUDY-name.
        how: group, job_type, name and tags.
        curve: the history: `step` and `values` of each update at which something was measured.
        tables: name -> columns and rows.
        charts: name -> a page of HTML.
        module: what the run trained.
        origin: what it started from.
    """

    id: str
    how: dict[str, Any]
    config: dict[str, Any]
    curve: Sequence[dict[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)
    charts: Mapping[str, str] = field(default_factory=dict)
    module: Module | None = None
    origin: Module | None = None

    @property
    def digest(self) -> str:
        """Names all of the entry but where its files are."""
        module, origin = (part and part.sha256 for part in (self.module, self.origin))
        return digest({**asdict(self), "module": module, "origin": origin})


def filing_of(heading: Mapping[str, Any], study: str | None = None, sweeps: Iterable[str | None] = ()
              ) -> Filing:
    """Where a run stands, from its heading (training.run_output.heading) or its record.

    The group is the study and the cell without its seed, job_type the arm (the kind of the init: ported,
    sampled, scratch, ...), and tags say what a list of runs is chosen by.
    """
    cell, spec = heading["cell"], heading["spec"]
    source = cell["origin"] or {"host": None, "data": None}
    place, data = (f"{source[key]}->{cell[key]}" if cell["origin"] else cell[key] for key in source)
    relation = ("same" if source["data"] == cell["data"] else "different") if cell["origin"] else None
    parts = [cell["method"] or "none", place, data, cell["init"]]
    name = "__".join([*parts, *[port for port in [(heading["port_info"] or {}).get("name")] if port]])
    marks = {"study": study, "method": parts[0], "origin": source["host"], "receiving": cell["host"],
             "relation": relation, "arm": cell["init"]}
    tags = [f"{key}:{value}" for key, value in marks.items() if value]
    tags += [f"sweep:{sweep}" for sweep in sweeps if sweep]
    how = {"group": "__".join([study, name] if study else [name])[:GROUP], "name": f"{name}__{cell['seed']}",
           "job_type": spec["init"]["kind"], "tags": [tag[:TAG] for tag in tags]}
    config = {
        **{key: cell[key] for key in ("method", "host", "data", "init", "seed")},
        "study": study, "origin_host": source["host"], "origin_data": source["data"],
        "origin_run": spec.get("origin"), "pair": place.replace("->", " -> "), "relation": relation,
        "run_id": heading["run_id"], "spec": spec, "cell": cell, "port_info": heading["port_info"],
    }
    return Filing(how, config)


def entry_of(
    record: Mapping[str, Any], sweeps: Iterable[str | None] = (),
    comparisons: Mapping[str, float] | None = None, module: Module | None = None,
    origin: Module | None = None, study: str | None = None,
) -> Entry:
    """A record as W&B is told of it; `comparisons` are numbers that only all runs together give.

    The curve has an entry for each update at which something was measured, with metrics named as in the
    record.
    """
    filing, train = filing_of(record, study, sweeps), record["train_info"]
    curve: dict[int, dict[str, float]] = {}
    for update, loss in train["train_loss"]:
        curve.setdefault(update, {})["train_loss"] = loss
    for mark in train["metrics"]:
        curve.setdefault(mark["updates"], {}).update({k: v for k, v in mark.items() if k != "updates"})
    summary = {
        "updates": max(mark["updates"] for mark in train["metrics"]),
        "zero_shot_accuracy": curve.get(0, {}).get("eval_accuracy"),
        "seconds": record["run_info"]["total_time"], "train_seconds": train["train_time"],
        "trainable_params": train["num_trainable_params"], "module_bytes": train["file_size"],
        "tokens": train.get("tokens"), **(comparisons or {}),
    }
    measured = digest({key: value for key, value in record.items() if key not in WRAPPING})
    known = {key: value for key, value in summary.items() if value is not None}
    steps = [{"step": step, "values": values} for step, values in sorted(curve.items())]
    return Entry(f"{record['run_id']}-{measured}", filing.how, filing.config, steps, known, module=module,
                 origin=origin)
