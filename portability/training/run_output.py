"""From what a run measured to its record: field names as in PEFT's method comparison, plus `cell` and
`port_info`."""

import datetime
import functools
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from portability.core.errors import redact_paths
from portability.core.paths import PACKAGE, PORTABLE
from portability.core.specs import SCHEMA, RunSpec
from portability.core.versions import packages
from portability.inits.extraction import ExtractReport
from portability.methods.module import ModuleState
from portability.porting.base import PortReport
from portability.store import Result
from portability.tasks.base import Predictions
from portability.tasks.registry import task_of
from portability.training.trainer import Outcome


@dataclass
class InitialState:
    """Where a run starts: its module, its head, the report of the port or extraction behind it, and what the
    method subtracts from the host all through the run (see `methods.base.AttachedMethod.to_frozen`)."""

    module: ModuleState
    head: dict[str, torch.Tensor] = field(default_factory=dict)
    report: PortReport | ExtractReport | None = None
    origin: dict[str, str] | None = None  # names of the origin's host and data
    frozen: ModuleState | None = None


@dataclass
class RunOutput:
    """All that was measured of one run; `predictions` by mark, for the N test examples, with `labels` where
    these are texts with labels, and `last_predictions` of each mark's last iterate, of which records hold the
    metrics alone."""

    run: RunSpec
    labels: np.ndarray | None
    predictions: dict[int, Predictions]
    last_predictions: dict[int, Predictions]
    host_parameters: int
    seconds: float  # share of the stack's wall time
    device: str = "cpu"
    stack: int = 1  # modules trained together; never changes a result
    train_seconds: float = 0.0
    module: ModuleState | None = None
    start: InitialState | None = None
    head: dict[str, torch.Tensor] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)
    too_long: dict[str, int] = field(default_factory=dict)  # answers that were (Task.too_long)


def build_result(output: RunOutput) -> Result:
    """The record and the files beside it.

    Paths never enter a record: a host's or set's source is kept only where it is a hub id or an embedded
    name.
    """
    run, module, start = output.run, output.module, output.start
    report, entries = start.report if start else None, module.entries if module else 0
    trainable = entries + sum(tensor.numel() for tensor in output.head.values())
    named = heading(run, start)
    record = {
        "schema": SCHEMA,
        **{name: named[name] for name in ("run_id", "spec", "cell")},
        "run_info": {
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "total_time": output.seconds, **git_state(),
        },
        "train_info": {
            "status": "success",
            "train_time": output.train_seconds,
            "file_size": 4 * entries,  # bytes of the module's tensors in fp32
            "num_trainable_params": trainable,
            "num_total_params": output.host_parameters + trainable,
            "tokens": output.outcome.tokens, "padded_tokens": output.outcome.padded_tokens,
            "stack": output.stack,
            **({"too_long": output.too_long} if output.too_long else {}),
            "train_loss": [list(point) for point in output.outcome.losses],
            **_metrics(output),
        },
        "port_info": named["port_info"],
        "meta_info": {"package_info": packages(), "system_info": system(output.device)},
    }
    facts = {"tensors": report.tensors} | named["port_info"] if report else None
    tensors: dict[str, Any] = {"predictions": _prediction_tensors(output)}
    metadata = {}
    if module is not None:
        tensors["module"], metadata["module"] = module.to_file()
    if start and start.frozen is not None:
        tensors["start"], metadata["start"] = start.frozen.to_file()
    if output.head:
        tensors["head"] = output.head
    return Result(record, tensors, metadata, facts)


def heading(run: RunSpec, start: InitialState | None) -> dict[str, Any]:
    """The parts of a run's record that are known before it trains: run_id, spec, cell and port_info."""
    return {
        "run_id": run.run_id,
        "spec": _without_paths(asdict(run)),
        "cell": {
            "method": run.method.name if run.method else None, "host": run.host.name, "data": run.data.name,
            "init": run.init.name, "seed": run.seed, "origin": start and start.origin,
        },
        "port_info": start.report.summary() if start and start.report else None,
    }


def _metrics(output: RunOutput) -> dict[str, list[dict[str, Any]]]:
    """The numbers by mark, those of the last iterate under names that begin with last_; and, where a metric
    has no number at a mark, why."""
    found = {mark: numbers_of(output.run, output.labels, predictions, output.last_predictions[mark],
                              output.run.eval.metrics)
             for mark, predictions in sorted(output.predictions.items())}
    numbers = [{"updates": mark} | {name: value for name, value in one.items() if not isinstance(value, str)}
               for mark, one in found.items()]
    holes = [{"updates": mark, "metric": name, "reason": redact_paths(value)}
             for mark, one in found.items() for name, value in one.items() if isinstance(value, str)]
    return {"metrics": numbers} | ({"unmeasured": holes} if holes else {})


def numbers_of(run: RunSpec, labels: np.ndarray | None, predictions: Predictions, last: Predictions,
               metrics: Sequence[str]) -> dict[str, float | str]:
    """The numbers of one run at one mark, or why there is none; those of the last iterate begin with
    last_."""
    task = task_of(run.task)
    found = dict(task.metrics(predictions, labels, metrics))
    return found | {name.replace("eval_", "last_", 1): value
                    for name, value in task.metrics(last, labels, metrics).items()}


def _prediction_tensors(output: RunOutput) -> dict[str, torch.Tensor]:
    """By mark: what there is of margin and score, and invalid; the labels, if there are any."""
    marks = sorted(output.predictions)
    parts = [output.predictions[mark].columns for mark in marks]
    found = {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]
             if name != "nll"}
    tensors = {"updates": torch.tensor(marks, dtype=torch.int64)}
    tensors |= {name: value if value.dtype == torch.bool else value.float() for name, value in found.items()}
    if output.labels is not None:
        tensors["label"] = torch.from_numpy(np.array(output.labels, dtype=np.int8))
    return tensors


def _without_paths(spec: dict[str, Any]) -> dict[str, Any]:
    del spec["eval"]["metrics"]  # the record's numbers show them
    del spec["origin_host"]  # the origin's record has it
    del spec["folder"]
    if how := (spec["port"] or {}).get("calibration"):
        how["texts"] = Path(how["texts"]).name
    for part in (spec["host"], spec["data"], *([spec["teacher"]] if spec["teacher"] else [])):
        source = part["source"] or ""
        if part["revision"] is None and not source.startswith(PORTABLE):
            part["source"] = Path(source).name
    return spec


@functools.cache
def system(device: str) -> dict[str, Any]:
    """What the run ran on, without names or paths of the machine."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "python": platform.python_version(), "system": platform.system(), "machine": platform.machine(),
        "device": name, "threads": torch.get_num_threads(),
    }


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed since, or None where it is not a checkout."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"),
                "worktree_dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "worktree_dirty": None}
