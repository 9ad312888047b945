"""Runs in Weights & Biases: first-class, and never the record. No tracker failure touches a run."""

import logging
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from portability.errors import choose

log = logging.getLogger(__name__)
MODES = ("auto", "offline", "online", "disabled")


@dataclass(frozen=True)
class TrackingSpec:
    """Resolved once in the parent: mode (offline, online, disabled), project and the folder for offline files."""

    mode: str
    project: str
    folder: Path
    sweep: str | None = None


def resolve_mode(wanted: str) -> str:
    """`wanted`, with auto resolved: $WANDB_MODE, else online if a key is found, else offline.

    Raises:
        UserError: an unknown mode.
    """
    mode = choose(wanted, MODES, "tracking.wandb")
    if mode != "auto":
        return mode
    if named := os.environ.get("WANDB_MODE"):
        return choose(named, MODES[1:], "WANDB_MODE")
    return "online" if os.environ.get("WANDB_API_KEY") or _in_netrc() else "offline"


def _in_netrc() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def describe_run(record: dict[str, Any], sweep: str | None, attempt: int) -> dict[str, Any]:
    """How a run is filed: group (the cell without its seed), job_type (its stage), tags, name and id."""
    cell, origin = record["cell"], record["cell"]["origin"]
    place = f"{origin['host']}->{cell['host']}" if origin else cell["host"]
    data = f"{origin['data']}->{cell['data']}" if origin else cell["data"]
    method = cell["method"] or "none"
    port = f"__{record['port_info']['name']}" if record["port_info"] else ""
    group = f"{method}__{place}__{data}__{cell['init']}{port}"
    stage = "bare" if cell["init"] == "bare" else "port" if record["port_info"] else "scratch"
    return {
        "group": group, "job_type": stage, "name": f"{group}__{cell['seed']}", "id": f"{record['run_id']}-{attempt}",
        "tags": [tag for tag in (method, cell["init"], cell["host"], sweep) if tag],
    }


class Tracker:
    """Logs finished runs from their records, one W&B run each."""

    def __init__(self, spec: TrackingSpec):
        self.spec = spec

    def log_run(self, record: dict[str, Any]) -> None:
        """File one record: its curve as history, its last metrics as summary, its spec as config."""
        if self.spec.mode == "disabled":
            return
        try:
            import wandb

            self._log(wandb, record)
        except Exception as error:  # whatever a tracker may raise, the run is stored and must stay so
            log.warning("W&B did not take run %s (%s); the run itself is stored", record["run_id"], error)

    def _log(self, wandb: Any, record: dict[str, Any]) -> None:
        self.spec.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
            disable_git=True, disable_code=True, console="off", silent=True,
        )
        attempt = 1 + len(list(self.spec.folder.glob(f"wandb/*run-*-{record['run_id']}-*")))
        run = wandb.init(
            project=self.spec.project, dir=self.spec.folder, mode=self.spec.mode, settings=settings,
            config={"spec": record["spec"], "cell": record["cell"], "port_info": record["port_info"]},
            reinit="create_new", **describe_run(record, self.spec.sweep, attempt),
        )
        for entry in history(record):
            run.log(entry["values"], step=entry["step"])
        run.finish()


def history(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's curve: one entry per update at which something was measured, metrics named as in the record."""
    steps: dict[int, dict[str, float]] = {}
    for update, loss in record["train_info"]["train_loss"]:
        steps.setdefault(update, {})["train_loss"] = loss
    for mark in record["train_info"]["metrics"]:
        steps.setdefault(mark["updates"], {}).update({k: v for k, v in mark.items() if k != "updates"})
    return [{"step": step, "values": values} for step, values in sorted(steps.items())]
