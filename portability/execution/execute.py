"""Carry runs from their specs to stored records: the story of a run, one call per stage.

    context.host -> context.training, context.test -> methods.attach -> starts -> Stack: trainer.train, with
    scorer.predict at each mark -> desk.commit -> store.commit
"""

import functools
import gc
import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from portability.core.errors import RUN_ERRORS, UserError, redact_paths
from portability.core.specs import HostSpec, RunSpec
from portability.core.stages import SCORING, Stage
from portability.core.wording import counted
from portability.data.sampling import Bucket
from portability.data.splits import StudyData
from portability.hosts.devices import Place
from portability.hosts.host import Host, load_host
from portability.inits.start import EMPTY, StartBuilder, on_device, port_context, start_head
from portability.methods import attach
from portability.methods.adapters_backend import prepare
from portability.porting.base import PortContext
from portability.store import Store
from portability.tasks.base import EvalSet, Task, TaskScorer, Training
from portability.tasks.registry import task_of
from portability.tracking.live import Live
from portability.training import trainer
from portability.training.curves import begin
from portability.training.memory import free_bytes, is_out_of_memory, member_bytes, room_of, stack_size
from portability.training.run_output import InitialState, RunOutput, build_result
from portability.training.stack import Stack, StackContext, count_parameters, split_resumable

log = logging.getLogger(__name__)
TOO_LARGE = UserError("one module alone does not fit into the device's memory; use a smaller "
                      "train.batch_size, eval.batch_size or max_length, or fewer engine.workers a device")
LOST = getattr(torch, "AcceleratorError", ())  # what torch raises when a GPU's state is beyond repair


@dataclass
class WorkerContext:
    """The store, the study's data, where to compute, and what was loaded for earlier stacks.

    Attributes:
        report: called with what the runs at hand are at, after each update and each batch that was scored.
        live: where what is measured is told while runs train; None: nobody watches.
        checkpoint_seconds: runs in training are kept whenever that much work would be lost.
        settled: runs of the stack at hand that were committed or failed.
        stopped: set when the worker is to keep its checkpoints and end.
        free: gives the threads that an extraction may use now.
    """

    store: Store
    data: StudyData
    report: Callable[[Stage], None] = lambda stage: None
    live: Live | None = None
    place: Place = Place("cpu", 0.5)
    checkpoint_seconds: float = 60.0
    stopped: threading.Event = field(default_factory=threading.Event)
    free: Callable[[], int] = lambda: 1
    hosts: dict[tuple[str, str], Host] = field(default_factory=dict)
    texts: dict[tuple, Any] = field(default_factory=dict)
    member_bytes: dict[tuple, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

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
            self.hosts[key] = prepare(self.fresh_host(spec, precision))
        return self.hosts[key]

    def fresh_host(self, spec: HostSpec, precision: str) -> Host:
        """A host as it is on disk."""
        return load_host(spec, self.place.device, precision, self.place.device_map)

    def training(self, host: Host, run: RunSpec) -> Training:
        """What the run is trained on, as token ids."""
        return self._kept(host, run, ("train", 0), lambda task: task.training(host, self.data, run.data.name))

    def test(self, host: Host, run: RunSpec) -> EvalSet:
        """What the run is scored on, as token ids."""
        part = (run.eval.split, run.eval.limit)
        return self._kept(host, run, part, lambda task: task.test(host, self.data, run.data.name, *part))

    def _kept(self, host: Host, run: RunSpec, part: tuple[str, int], make: Callable[[Task], Any]) -> Any:
        """Token ids of a part of the run's data, made once a worker."""
        data = run.data
        key = (host.spec.fingerprint, data.name, data.train_digest, data.eval_digest, part, run.task)
        if key not in self.texts:
            self.texts[key] = make(task_of(run.task))
        return self.texts[key]

    def commit(self, output: RunOutput) -> None:
        """Publish a finished run; one that went wrong, or whose scores are not finite, becomes a failure
        record."""
        run, failed_at = output.run, output.outcome.failed_at
        try:
            if failed_at is not None:
                raise UserError(f"loss or gradient of run {run.run_id} was not finite at update {failed_at}")
            result = build_result(output)
            self.store.commit(run.run_id, result)
            self.store.drop_checkpoint(run.run_id)
            self.settled.add(run.run_id)
        except RUN_ERRORS as error:
            self.fail(run, error, **({} if failed_at is None else {"updates": failed_at}))

    def release(self) -> None:
        """Give memory back after a stack broke: hosts are loaded anew."""
        self.hosts.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fail(self, run: RunSpec, error: Exception, **facts: int) -> None:
        """Record a failed run."""
        ours = isinstance(error, UserError)
        trace = None if ours else redact_paths("".join(traceback.format_exception(error)))
        attempt = self.store.fail(run.run_id, {
            "error": redact_paths(str(error)), "kind": type(error).__name__, "traceback": trace, **facts})
        self.settled.add(run.run_id)
        if self.live is not None:
            self.live.failed(run.run_id, redact_paths(str(error)))
        where = f"{run.run_id} ({run.init.name} on {run.host.name})"
        log.error("run %s failed at attempt %d: %s", where, attempt, error)


def _size(host: Host) -> int:
    """Bytes of a host's weights."""
    return sum(p.numel() * p.element_size() for p in host.model.parameters())


def execute(runs: Sequence[RunSpec], marks: Mapping[str, Sequence[int]], context: WorkerContext) -> None:
    """Run a stack to its records; what fails becomes a failure record, and the others go on.

    A stack that breaks as a whole, or finds no memory, is halved until the run at fault is alone; runs that
    were committed or had failed by then stay as they are. Nothing of a broken stack is held when the halves
    begin, so its memory is free.

    Raises:
        Exception: the device is lost to this process; the engine finds the run at fault.
    """
    context.settled.clear()
    waiting = [list(runs)]
    while waiting:
        stack = waiting.pop()
        try:
            with closing(outputs(stack, marks, context)) as finished:
                for output in finished:
                    context.commit(output)
            continue
        except RUN_ERRORS as error:
            if isinstance(error, LOST) and not isinstance(error, torch.OutOfMemoryError):
                raise
            left = [run for run in stack if run.run_id not in context.settled]
            if len(left) == 1:
                context.fail(left.pop(), TOO_LARGE if is_out_of_memory(error) else error)
            elif left:
                log.warning("a stack of %d runs broke (%s); halving it", len(left), error)
        context.release()
        if left:
            waiting += [left[len(left) // 2 :], left[: len(left) // 2]]


def outputs(runs: list[RunSpec], marks: Mapping[str, Sequence[int]],
            context: WorkerContext) -> Generator[RunOutput]:
    """The story of runs that may train together: what was measured of each, as it is finished."""
    started = time.perf_counter()
    first = runs[0]
    try:  # what is wrong here is wrong for all of them
        host = context.host(first.host, first.precision)
        scorer, test = task_of(first.task).scorer(host), context.test(host, first)
        training = None if first.method is None else context.training(host, first)
    except UserError as error:
        for run in runs:
            context.fail(run, error)
        return
    if training is None or first.method is None:  # a bare host is only measured
        yield from (_bare(run, scorer, test, context) for run in runs)
        return
    attached = attach(host, first.method)
    try:
        bench = StackContext(attached, scorer, training, test)
        builder = StartBuilder(bench, context.store, context.data, context.place.device, context.free,
                               context.fresh_host)
        starts: dict[str, InitialState] = {}
        for run in runs:
            try:
                starts[run.run_id] = builder.make(run)
            except UserError as error:  # a run whose port is impossible fails alone
                context.fail(run, error)
        runs = [run for run in runs if run.run_id in starts]
        size, passes = _fitting(runs, starts, bench, context) if runs else (1, 1)
        overhead = (time.perf_counter() - started) / max(1, len(runs))
        for part in split_resumable(runs, marks, context.store, size):
            stack = Stack(part, [starts[run.run_id] for run in part], bench, marks, passes)
            stack.resume(context.store)
            context.report(stack.stage())  # the bar counts what this spares
            stack.train(context)
            yield from stack.outputs(context.place.device, overhead)
            del stack  # before the next one is built
    finally:
        attached.detach()


def _fitting(runs: Sequence[RunSpec], starts: Mapping[str, InitialState], bench: StackContext,
             context: WorkerContext) -> tuple[int, int]:
    """The largest stack that can be trained and scored in the memory that is free now; and, where not even
    one member can be trained in it, into how many parts its batches are cut. What scoring takes does not
    depend on these parts, so it cuts stacks alone."""
    train, passes = runs[0].train, 1
    while True:
        rows = trainer.parts_of(train.batch_size, passes, train.batch_size)[0][1]
        training, most = _most(runs, starts, bench, context, rows)
        if most or rows == 1:
            break
        passes *= 2
    if passes > 1:
        log.info("a batch of %d does not fit into memory at once: %s at a time", train.batch_size,
                 counted(rows, "example"))
    scoring = bench.scorer.scoring_bytes(bench.test, runs[0].eval.batch_size)
    if scoring > training:
        most = min(most, stack_size(scoring, len(runs), context.device, context.place.share))
    return max(1, most), passes


def _most(runs: Sequence[RunSpec], starts: Mapping[str, InitialState], bench: StackContext,
          context: WorkerContext, rows: int) -> tuple[int, int]:
    """Bytes of a member that reads so many examples at a time, and how many members fit. They are read, to be
    measured, only where they fit by what one takes and a second one adds: what does not may end the process.
    """
    room = room_of(context.device, context.place.share)
    measured = functools.partial(_member_bytes, runs, starts, bench, context)
    try:
        needed = one = measured(1)
        if rows > 1:
            needed = one + (rows - 1) * max(0, measured(2) - one) if 2 * one <= room else rows * one
        if needed > room:
            return needed, 0
        needed = measured(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0, 0
    return needed, stack_size(needed, len(runs), context.device, context.place.share)


def _member_bytes(runs: Sequence[RunSpec], starts: Mapping[str, InitialState], bench: StackContext,
                  context: WorkerContext, rows: int) -> int:
    """Bytes alive at once in the training of a member that reads so many examples at a time, measured once a
    worker."""
    run = runs[0]
    lengths, start = bench.training.lengths, starts[run.run_id]
    subtracts = any(starts[one.run_id].frozen is not None for one in runs)
    key = (run.host.fingerprint, repr(run.method), repr(run.task), run.data.train_digest, rows, subtracts,
           run.precision)
    if key not in context.member_bytes:
        picks = np.argsort(lengths, kind="stable")[-rows:]
        longest = Bucket(np.arange(len(lengths)), int(lengths.max()))
        batch = bench.scorer.rows(bench.training, picks, len(picks), longest)
        frozen = bench.frozen(start.frozen) if subtracts else {}
        parameters = bench.parameters(start.module, start.head)
        context.member_bytes[key] = member_bytes(bench.scorer, parameters, batch, frozen)
    return context.member_bytes[key]


def _heads_port(run: RunSpec, context: WorkerContext) -> PortContext:
    """By what the head of a bare host is fitted to it."""
    load = functools.cache(lambda host: context.fresh_host(host, run.precision))
    return port_context(run, EMPTY, context.data, load)


def _bare(run: RunSpec, scorer: TaskScorer, test: EvalSet, context: WorkerContext) -> RunOutput:
    """The host as it is, on the test set."""
    started = time.perf_counter()
    head = start_head(run, scorer, context.store, lambda: _heads_port(run, context))
    stacked = {name: value[None] for name, value in on_device(head, scorer).items()}
    stage = Stage([run.run_id], SCORING)
    context.report(stage)
    if context.live is not None:
        with context.live.telling():
            begin(context.live, run, None, [0])
    found = scorer.predict(stacked, test, run.eval.batch_size,
                           lambda part: context.report(replace(stage, part=part)))
    at_start = {0: found.of(0)}
    return RunOutput(
        run=run, labels=test.labels, predictions=at_start, last_predictions=at_start, head=head,
        host_parameters=count_parameters(scorer), device=context.place.device,
        seconds=time.perf_counter() - started, too_long=task_of(run.task).too_long(None, test))
