"""Runs in Weights & Biases: first-class, and never the record. No worker ever calls W&B."""

import json
import math
import netrc
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from portability.core.errors import validate_choice
from portability.store.atomic import write_json
from portability.tracking.entries import STUDY, Entry, Filing, Module

MODES = ("auto", "offline", "online", "disabled")
SERVERS = ("api.wandb.ai", "api.forge.coreweave.com")  # wandb's own, before 0.31 and since
INIT_SECONDS = 30  # that W&B has to let a run in (our choice)
LEFT_ALONE = 3  # exit code of follow.py where it has said that W&B is left alone
FLUSH_SECONDS = 1.0  # after which what was logged can be read in a run's offline file
# nothing of the machine, its code or its output
SETTINGS = {"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True,
            "x_save_requirements": False, "disable_git": True, "disable_code": True, "console": "off",
            "silent": True, "init_timeout": INIT_SECONDS, "x_transaction_log_flush_interval": FLUSH_SECONDS}


@dataclass(frozen=True)
class TrackingSpec:
    """Resolved once in the parent: mode (offline, online, disabled), project and the folder for offline
    files."""

    mode: str
    project: str
    folder: Path
    sweep: str | None = None

    @property
    def remedy(self) -> str:
        """The command that sends what W&B lacks."""
        project = [] if self.project == "portability" else ["--project", self.project]
        return shlex.join(["portability", "publish", str(self.folder), "--to", "wandb", *project])


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


@dataclass
class OpenRun:
    """A W&B run of a run that trains: W&B's object, its id there, the last update that it was told of,
    whether an attempt has failed, and what is held back for the last mark, which the record completes."""

    run: Any
    id: str
    step: int
    failed: bool = False
    held: dict[str, float] = field(default_factory=dict)


class Tracker:
    """Files runs in W&B, one W&B run each, and remembers in `<folder>/wandb/sent/` what was filed, where, and
    under which id: by what was measured, and in `open/` by run, of those that were not done yet.

    Raises:
        Exception: whatever W&B raises; the entry counts as not filed.
    """

    def __init__(self, spec: TrackingSpec):
        self.spec, self.sent = spec, spec.folder / "wandb" / "sent"
        self.here = self.place(spec.mode)

    def send(self, entry: Entry) -> bool:
        """File a run, unless that very entry was filed there; gives back whether anything was sent.

        What is new about a run that was filed there before (its module, comparisons), or a part of whose
        curve was, is added to it: W&B resumes the run, offline in a folder of its own, which `wandb sync`
        sends after the first.
        """
        path = self.sent / f"{entry.id}.json"
        sent = _remembered(path)
        if entry.digest in (sent.get(self.here), sent.get(self.place("online"))):
            return False
        begun = {} if sent else _remembered(self._unfinished(entry))
        own = entry.how["job_type"] == STUDY  # others have studies of that name
        found = sent.get("id") or begun.get("id") or entry.id + (f"-{secrets.token_hex(4)}" if own else "")
        step = math.inf if self.here in sent else begun.get(self.here, -1)
        with self._init(found, entry.how, entry.config) as run:
            if own:
                write_json(path, {**sent, "id": found})  # known however this ends
            _tell(run, entry, step, failed="error" in begun)
        self._remember(entry, found)
        return True

    def filed(self) -> set[str]:
        """Ids of the runs that were filed from some record of theirs."""
        return {path.name.partition("-")[0] for path in self.sent.glob("*-*.json")}

    def begin(self, run_id: str, filing: Filing) -> OpenRun:
        """Begin a run that trains, or go on with the one that was left."""
        path = self.sent / "open" / f"{run_id}.json"
        known = _remembered(path)
        found = known.get("id") or f"{run_id}-{secrets.token_hex(4)}"
        opened = OpenRun(self._init(found, filing.how, filing.config), found, known.get(self.here, -1),
                         "error" in known)
        write_json(path, {**known, "id": found, self.here: opened.step})
        return opened

    def log(self, opened: OpenRun, step: int, values: Mapping[str, float], last: int) -> None:
        """Tell what was measured at an update; what W&B knows already (after a worker's death, or an
        interruption) is passed over, and `last`, the run's last mark, waits for its record."""
        if step >= last:
            opened.held = dict(values)
        elif step > opened.step:
            opened.run.log(dict(values), step=step, commit=True)
            opened.step = step

    def finish(self, opened: OpenRun, entry: Entry) -> None:
        """File the rest of a run that is done."""
        _tell(opened.run, entry, opened.step, opened.held, opened.failed)
        opened.run.finish()
        self._remember(entry, opened.id)

    def leave(self, run_id: str, opened: OpenRun, error: str = "") -> None:
        """Close a run that is not done; it goes on in the same W&B run when a command takes it up."""
        if error:
            opened.run.summary["error"] = error
        opened.run.finish(exit_code=1)
        path = self.sent / "open" / f"{run_id}.json"
        failed = {"error": error} if error else {}
        write_json(path, {**_remembered(path), "id": opened.id, self.here: opened.step, **failed})

    def place(self, mode: str) -> str:
        """Where runs go in that mode: entity, project and server."""
        entity, server = (os.environ.get(name, "") for name in ("WANDB_ENTITY", "WANDB_BASE_URL"))
        return f"{mode}: {entity}/{self.spec.project} {server}".strip()

    def _unfinished(self, entry: Entry) -> Path:
        return self.sent / "open" / f"{entry.id.rpartition('-')[0]}.json"

    def _remember(self, entry: Entry, found: str) -> None:
        path = self.sent / f"{entry.id}.json"
        write_json(path, {**_remembered(path), "id": found, self.here: entry.digest})
        self._unfinished(entry).unlink(missing_ok=True)

    def _init(self, found: str, how: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
        import wandb

        self.spec.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self.spec.project, dir=self.spec.folder, settings=wandb.Settings(**SETTINGS),
            config=dict(config), reinit="create_new", id=found, resume="allow", mode=self.spec.mode, **how)


def _remembered(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # a torn one costs that the run is sent again
        return {}


def _tell(run: Any, entry: Entry, step: float, held: Mapping[str, float] | None = None, failed: bool = False
          ) -> None:
    """All of an entry that W&B does not know: of its curve what comes after `step`. The error of an attempt
    that `failed` is taken away."""
    import wandb

    for point in entry.curve:
        if point["step"] > step:
            more = held or {} if point is entry.curve[-1] else {}
            run.log({**more, **point["values"]}, step=point["step"])
    for title, (columns, rows) in entry.tables.items():
        run.log({title: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})
    if entry.charts:
        run.log({title: wandb.Html(text, inject=False) for title, text in entry.charts.items()})
    if failed:
        del run.summary["error"]
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
