"""Carry runs from their specs to stored records: the story of a run, one call per stage.

    context.host -> context.training, context.test -> methods.attach -> starts -> Stack: trainer.train, with
    scorer.predict at each mark -> desk.commit -> store.commit
"""

import logging
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from portability.core.errors import RUN_ERRORS, UserError
from portability.core.specs import RunSpec
from portability.core.stages import SCORING, Stage
from portability.data.sampling import Bucket
from portability.execution.worker_context import WorkerContext
from portability.inits.start import StartBuilder, on_device, start_head
from portability.methods import attach
from portability.tasks.base import EvalSet
from portability.tasks.registry import TaskScorer, task_of
from portability.training.memory import max_stack_size, member_bytes
from portability.training.run_output import InitialState, RunOutput
from portability.training.stack import Stack, StackContext, count_parameters, split_resumable

log = logging.getLogger(__name__)
LOST = getattr(torch, "AcceleratorError", ())  # what torch raises when a GPU's state is beyond repair


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
            reason = str(error)
            if len(left) == 1:
                context.fail(left.pop(), _explained(error))
        context.release()
        if left:
            log.warning("a stack of %d runs broke (%s); halving it", len(left), reason)
            waiting += [left[len(left) // 2 :], left[: len(left) // 2]]


def _explained(error: Exception) -> Exception:
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return UserError("one module alone does not fit into the device's memory; use a smaller "
                     "train.batch_size, "
                     "eval.batch_size or task.max_length (of prompts: data.NAME.answers.max_length), or "
                     "fewer "
                     "engine.workers a device")


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
        starts = _starts(runs, bench, context)
        runs = [run for run in runs if run.run_id in starts]
        size = _most(runs, starts, bench, context) if len(runs) > 1 else 1
        overhead = (time.perf_counter() - started) / max(1, len(runs))
        for part in split_resumable(runs, marks, context.store, size):
            stack = Stack(part, [starts[run.run_id] for run in part], bench, marks)
            stack.resume(context.store)
            context.report(stack.stage())  # the bar counts what this spares
            stack.train(context)
            yield from stack.outputs(context.place.device, overhead)
            del stack  # before the next one is built
    finally:
        attached.detach()


def _most(runs: Sequence[RunSpec], starts: Mapping[str, InitialState], bench: StackContext,
          context: WorkerContext) -> int:
    """The largest stack that fits into the memory that is free now."""
    run = runs[0]
    lengths, start = bench.training.lengths, starts[run.run_id]
    subtracts = any(starts[one.run_id].frozen is not None for one in runs)
    longest = Bucket(np.arange(len(lengths)), int(lengths.max()))
    key = (run.host.fingerprint, repr(run.method), repr(run.task), run.data.train_digest,
           run.train.batch_size,
           subtracts, run.precision)
    if key not in context.member_bytes:
        picks = np.argsort(lengths, kind="stable")[-run.train.batch_size :]
        rows = bench.scorer.rows(bench.training, picks, len(picks), longest)
        frozen = bench.frozen(start.frozen) if subtracts else {}
        training = member_bytes(bench.scorer, bench.parameters(start.module, start.head), rows, frozen)
        context.member_bytes[key] = max(training, bench.scorer.scoring_bytes(bench.test, run.eval.batch_size))
    return max_stack_size(context.member_bytes[key], context.device, context.place.share)


def _bare(run: RunSpec, scorer: TaskScorer, test: EvalSet, context: WorkerContext) -> RunOutput:
    """The host as it is, on the test set."""
    started = time.perf_counter()
    head = start_head(run, scorer, context.store)
    stacked = {name: value[None] for name, value in on_device(head, scorer).items()}
    stage = Stage([run.run_id], SCORING)
    context.report(stage)
    found = scorer.predict(stacked, test, run.eval.batch_size,
                           lambda part: context.report(replace(stage, part=part)))
    at_start = {0: found.of(0)}
    return RunOutput(
        run=run, labels=test.labels, predictions=at_start, last_predictions=at_start, head=head,
        host_parameters=count_parameters(scorer), device=context.place.device,
        seconds=time.perf_counter() - started,
        too_long=task_of(run.task).too_long(None, test),
    )


# ---- starts


def _starts(runs: Sequence[RunSpec], bench: StackContext, context: WorkerContext) -> dict[str, InitialState]:
    """Each run's start; a run whose port is impossible fails alone."""
    builder, starts = StartBuilder(bench, context.store, context.data, context.place.device, context.free), {}
    for run in runs:
        try:
            starts[run.run_id] = builder.make(run)
        except UserError as error:
            context.fail(run, error)
    return starts


