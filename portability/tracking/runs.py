"""Runs in Weights & Biases: first-class, and never the record. No tracker failure touches a run."""

import json
import logging
import netrc
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from portability.core.errors import validate_choice
from portability.core.init_kinds import INIT_KINDS
from portability.core.specs import digest
from portability.store.atomic import write_json

log = logging.getLogger(__name__)
MODES = ("auto", "offline", "online", "disabled")
SERVERS = ("api.wandb.ai", "api.forge.coreweave.com")  # wandb's own, before 0.31 and since
WRAPPING = ("format", "files", "digest")  # fields of a stored record that say nothing of the run


@dataclass(frozen=True)
class TrackingSpec:
    """Resolved once in the parent: mode (offline, online, disabled), project and the folder for offline
    files."""

    mode: str
    project: str
    folder: Path
    sweep: str | None = None


class Module(NamedTuple):
    """A trained module as an artifact: the run that trained it, its file, and the file's digest."""

    run_id: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A run as W&B is told of it.

    Attributes:
        id: the run's id in W&B, which names what was measured: the same run with other numbers is another W&B
            run.
        how: group, job_type, name and tags.
        curve: the history: `step` and `values` of each update at which something was measured.
        tables: name -> columns and rows.
        module: what the run trained.
        origin: what it started from.
    """

    id: str
    how: dict[str, Any]
    config: dict[str, Any]
    curve: Sequence[dict[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)
    module: Module | None = None
    origin: Module | None = None

    @property
    def digest(self) -> str:
        """Names all of the entry but where its files are."""
        module, origin = (part and part.sha256 for part in (self.module, self.origin))
        return digest({**asdict(self), "module": module, "origin": origin})


def resolve_mode(wanted: str) -> str:
    """`wanted`, with auto resolved: $WANDB_MODE, else online if a key is found, else offline.

    Raises:
        UserError: an unknown mode.
    """
    mode = validate_choice(wanted, MODES, "tracking.wandb")
    if mode != "auto":
        return mode
    if named := os.environ.get("WANDB_MODE"):
        return validate_choice(named, MODES[1:], "WANDB_MODE")
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether W&B would find a key: in $WANDB_API_KEY, or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("WANDB_BASE_URL")
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) for host in ([urlparse(named).netloc] if named else SERVERS))


def entry_of(
    record: dict[str, Any], sweeps: Iterable[str], comparisons: Mapping[str, float] | None = None,
    module: Module | None = None, origin: Module | None = None,
) -> Entry:
    """A record as W&B is told of it; `comparisons` are numbers that only all runs together give.

    The group is the cell without its seed, job_type its stage; the curve has an entry for each update at
    which something was measured, with metrics named as in the record.
    """
    cell, train, spec = record["cell"], record["train_info"], record["spec"]
    source = cell["origin"] or {"host": None, "data": None}
    place, data = (f"{source[key]}->{cell[key]}" if cell["origin"] else cell[key] for key in source)
    parts = [cell["method"] or "none", place, data, cell["init"]]
    group = "__".join([*parts, *[name for name in [(record["port_info"] or {}).get("name")] if name]])
    how = {"group": group, "name": f"{group}__{cell['seed']}",
           "job_type": INIT_KINDS[spec["init"]["kind"]].stage,
           "tags": [tag for tag in (parts[0], cell["init"], cell["host"], *sweeps) if tag]}
    config = {
        **{key: cell[key] for key in ("method", "host", "data", "init", "seed")},
        "origin_host": source["host"], "origin_data": source["data"], "origin_run": spec.get("origin"),
        "pair": place.replace("->", " -> "),
        "relation": ("same" if source["data"] == cell["data"] else "different") if cell["origin"] else None,
        "run_id": record["run_id"], "spec": spec, "cell": cell, "port_info": record["port_info"],
    }
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
    return Entry(f"{record['run_id']}-{measured}", how, config, steps, known, module=module, origin=origin)


class Tracker:
    """Files runs in W&B, one W&B run each, and remembers in `<folder>/wandb/sent/` what was filed, and
    where."""

    def __init__(self, spec: TrackingSpec):
        self.spec = spec

    def log_run(self, record: dict[str, Any]) -> None:
        """File one finished run: its curve as history, its last metrics as summary, its spec as config."""
        if self.spec.mode == "disabled":
            return
        try:
            self.send(entry_of(record, [self.spec.sweep] if self.spec.sweep else []))
        except Exception as error:  # whatever a tracker may raise, the run is stored and must stay so
            log.warning("W&B did not take run %s (%s); the run itself is stored", record["run_id"], error)

    def send(self, entry: Entry) -> bool:
        """File a run, unless that very entry was filed there; gives back whether anything was sent.

        What is new about a run that was filed there before (its module, comparisons) is added to it: W&B
        resumes the run, offline in a folder of its own, which `wandb sync` sends after the first.

        Raises:
            Exception: whatever W&B raises; the entry counts as not filed.
        """
        path = self.spec.folder / "wandb" / "sent" / f"{entry.id}.json"
        try:
            sent = json.loads(path.read_bytes())  # where: digest
        except (FileNotFoundError, ValueError):  # a torn one costs that the run is sent again
            sent = {}
        here = self.place(self.spec.mode)
        if entry.digest in (sent.get(here), sent.get(self.place("online"))):
            return False
        self._file(entry, known=here in sent)
        write_json(path, {**sent, here: entry.digest})
        return True

    def place(self, mode: str) -> str:
        """Where runs go in that mode: entity, project and server."""
        entity, server = (os.environ.get(name, "") for name in ("WANDB_ENTITY", "WANDB_BASE_URL"))
        return f"{mode}: {entity}/{self.spec.project} {server}".strip()

    def _file(self, entry: Entry, known: bool) -> None:
        """Send an entry; of a run whose curve W&B has, only the rest."""
        import wandb

        self.spec.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
            disable_git=True, disable_code=True, console="off", silent=True)
        with wandb.init(
                project=self.spec.project, dir=self.spec.folder, settings=settings, config=entry.config,
                reinit="create_new", id=entry.id, resume="allow", mode=self.spec.mode, **entry.how) as run:
            for point in () if known else entry.curve:
                run.log(point["values"], step=point["step"])
            for title, (columns, rows) in entry.tables.items():
                run.log({title: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})
            run.summary.update(dict(entry.summary))
            _lineage(wandb, run, entry)


def _lineage(wandb: Any, run: Any, entry: Entry) -> None:
    """Name the module that the run started from, and the one that it trained.

    `use_artifact` refuses to work offline. What it does online with an artifact that has no version yet is to
    log it as not made by this run, and to use it once it is there; that record can be written offline too,
    and W&B knows by its digest that the artifact is the one that the origin's run logged (if that came first:
    `wandb sync` keeps no order).
    """
    if entry.origin:
        used = _artifact(wandb, entry.origin)
        if run.offline:
            run._log_artifact(used, aliases=[], is_user_created=True, use_after_commit=True)
        else:
            run.use_artifact(used)
    if entry.module:
        run.log_artifact(_artifact(wandb, entry.module))


def _artifact(wandb: Any, module: Module) -> Any:
    found = wandb.Artifact(f"module-{module.run_id}", type="module", metadata={"run_id": module.run_id})
    # both options together: the file is sent from where it is, without a copy
    found.add_file(str(module.path), name="module.safetensors", policy="immutable", skip_cache=True)
    return found
