"""What a worker keeps between stacks, so that nothing is loaded, tokenised or measured twice; and how a run
ends there."""

import gc
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from portability.core.errors import RUN_ERRORS, UserError, redact_paths
from portability.core.specs import HostSpec, RunSpec
from portability.core.stages import Stage
from portability.data.splits import StudyData
from portability.hosts.devices import Place
from portability.hosts.host import Host, load_host
from portability.methods.adapters_backend import prepare
from portability.store import Store
from portability.tasks.base import EvalSet, Training
from portability.tasks.registry import Task, task_of
from portability.training.memory import free_bytes
from portability.training.run_output import RunOutput, build_result

log = logging.getLogger(__name__)


@dataclass
class WorkerContext:
    """The store, the study's data, where to compute, and what was loaded for earlier stacks.

    Attributes:
        report: called with what the runs at hand are at, after each update and each batch that was scored.
        on_commit: called with the record of each finished run.
        checkpoint_seconds: runs in training are kept whenever that much work would be lost.
        settled: runs of the stack at hand that were committed or failed.
        stopped: set when the worker is to keep its checkpoints and end.
        free: gives the threads that an extraction may use now.
    """

    store: Store
    data: StudyData
    report: Callable[[Stage], None] = lambda stage: None
    on_commit: Callable[[dict], None] = lambda record: None
    place: Place = Place("cpu", 0.5)
    checkpoint_seconds: float = 60.0
    hosts: dict[tuple[str, str], Host] = field(default_factory=dict)
    texts: dict[tuple, Any] = field(default_factory=dict)
    member_bytes: dict[tuple, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)
    free: Callable[[], int] = lambda: 1

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        return torch.device(self.place.device)

    def host(self, spec: HostSpec, precision: str = "fp32") -> Host:
        """A host, loaded unless it is at hand; the oldest ones go when hosts fill half of what is free."""
        key = (spec.fingerprint, precision)
        if key not in self.hosts:
            room = free_bytes(self.device, self.place.share) / 2
            while self.hosts and sum(map(_size, self.hosts.values())) > room:
                self.hosts.pop(next(iter(self.hosts)))
            self.hosts[key] = prepare(load_host(spec, self.place.device, precision))
        return self.hosts[key]

    def training(self, host: Host, run: RunSpec) -> Training:
        """What the run is trained on, as token ids."""
        return self._kept(host, run, ("train", 0), lambda task: task.training(host, self.data, run.data.name))

    def test(self, host: Host, run: RunSpec) -> EvalSet:
        """What the run is scored on, as token ids."""
        part = (run.eval.split, run.eval.limit)
        return self._kept(host, run, part, lambda task: task.test(host, self.data, run.data.name, *part))

    def _kept(self, host: Host, run: RunSpec, part: tuple[str, int], make: Callable[[Task], Any]) -> Any:
        """Token ids of a part of the run's data, made once a worker."""
        key = (host.spec.fingerprint, run.data.name, run.data.train_digest, run.data.eval_digest, part,
               run.task)
        if key not in self.texts:
            self.texts[key] = make(task_of(run.task))
        return self.texts[key]

    def commit(self, output: RunOutput) -> None:
        """Publish a finished run; one that went wrong, or whose scores are not finite, becomes a failure
        record."""
        run, failed_at = output.run, output.outcome.failed_at
        if failed_at is not None:
            error = UserError(f"loss or gradient of run {run.run_id} was not finite at update {failed_at}")
            self.fail(run, error, updates=failed_at)
            return
        try:
            result = build_result(output)
            self.store.commit(run.run_id, result)
            self.store.drop_checkpoint(run.run_id)
            self.settled.add(run.run_id)
            self.on_commit(result.record)
        except RUN_ERRORS as error:
            self.fail(run, error)

    def release(self) -> None:
        """Give memory back after a stack broke: hosts are loaded anew."""
        self.hosts.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fail(self, run: RunSpec, error: Exception, **facts: int) -> None:
        """Record a failed run."""
        trace = None
        if not isinstance(error, UserError):
            trace = redact_paths("".join(traceback.format_exception(error)))
        failure = {"error": redact_paths(str(error)), "kind": type(error).__name__, "traceback": trace,
                   **facts}
        attempt = self.store.fail(run.run_id, failure)
        self.settled.add(run.run_id)
        log.error("run %s (%s on %s) failed at attempt %d: %s", run.run_id, run.init.name, run.host.name,
                  attempt, error)


def _size(host: Host) -> int:
    """Bytes of a host's weights."""
    return sum(p.numel() * p.element_size() for p in host.model.parameters())
