"""Carry runs from their specs to stored records: the story of a run, one call per stage.

    desk.host -> desk.encoded -> methods.Mounted -> inits -> stack.Stack: engine.train, with engine.predict at each mark
    -> store.commit
"""

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from portability.core.errors import FAULTS, UserError
from portability.core.specs import BARE, RunSpec, TaskSpec
from portability.core.stages import SCORING, Stage
from portability.data.sampling import Bucket
from portability.execution.run_output import Evidence
from portability.execution.worker_context import Desk
from portability.hosts.host import Host
from portability.inits.start import StartBuilder, on_device, start_head
from portability.methods.base import Mounted
from portability.tasks.classification import Scorer
from portability.tasks.generation import AnswerScorer, too_long
from portability.training import trainer as engine
from portability.training.memory import member_bytes, most_members
from portability.training.stack import Bench, Stack, Start, count_parameters, parts

log = logging.getLogger(__name__)
LOST = getattr(torch, "AcceleratorError", ())  # what torch raises when a GPU's state is beyond repair


def execute(runs: Sequence[RunSpec], marks: Mapping[str, Sequence[int]], desk: Desk) -> None:
    """Run a stack to its records; what fails becomes a failure record, and the others go on.

    A stack that breaks as a whole, or finds no memory, is halved until the guilty run is alone; runs that are settled by
    then stay as they are.
    """
    desk.settled.clear()
    waiting = [list(runs)]
    while waiting:
        if broken := _attempt(waiting.pop(), marks, desk):
            log.warning("a stack of %d runs broke (%s); halving it", len(broken), broken[0][1])
            left = [run for run, _ in broken]
            waiting += [left[len(left) // 2 :], left[: len(left) // 2]]


def _attempt(runs: list[RunSpec], marks: Mapping[str, Sequence[int]], desk: Desk) -> list[tuple[RunSpec, str]]:
    """Execute runs; gives back those to try again in smaller stacks, with the reason. Nothing of a broken stack is held
    when this returns, so the memory it took is free."""
    try:
        _execute(runs, marks, desk)
        return []
    except FAULTS as error:
        if isinstance(error, LOST) and not isinstance(error, torch.OutOfMemoryError):
            raise  # the device is lost to this process; the pool finds the guilty run
        desk.hosts.clear()
        left = [run for run in runs if run.run_id not in desk.settled]
        if len(left) == 1:
            desk.fail(left[0], _explained(error))
            return []
        reason = str(error)
    gc.collect()
    if desk.device.type == "cuda":
        torch.cuda.empty_cache()
    return [(run, reason) for run in left]


def _explained(error: Exception) -> Exception:
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return UserError("one module alone does not fit into the device's memory; use a smaller train.batch_size, eval.batch_size "
                     "or task.max_length (of prompts: data.NAME.answers.max_length), or fewer engine.workers a device")


def _execute(runs: list[RunSpec], marks: Mapping[str, Sequence[int]], desk: Desk) -> None:
    started = time.perf_counter()
    first = runs[0]
    try:  # what is wrong here is wrong for all of them
        host = desk.host(first)
        scorer, test = scorer_of(host, first), desk.test(host, first)
        training = None if first.init.kind == BARE else desk.training(host, first)
    except UserError as error:
        for run in runs:
            desk.fail(run, error)
        return
    if training is None:
        for run in runs:
            _score_bare(run, scorer, test, desk)
        return
    assert first.method is not None
    mounted = Mounted(host, first.method)
    try:
        bench = Bench(mounted, scorer, training, test)
        starts = _starts(runs, bench, desk)
        runs = [run for run in runs if run.run_id in starts]
        size = _most(runs, starts, bench, desk) if len(runs) > 1 else 1
        overhead = (time.perf_counter() - started) / max(1, len(runs))
        for part in parts(runs, marks, desk.store, size):
            stack = Stack(part, [starts[run.run_id] for run in part], bench, marks)
            stack.resume(desk.store)
            desk.report(stack.stage())  # the bar counts what this spares
            stack.train(desk)
            stack.commit(desk, overhead * len(part))
            del stack  # before the next one is built
    finally:
        mounted.unmount()


def scorer_of(host: Host, run: RunSpec) -> engine.AnyScorer:
    """What asks a host the run's task."""
    return Scorer(host, run.task) if isinstance(run.task, TaskSpec) else AnswerScorer(host, run.task)


def trial(run: RunSpec, members: int, desk: Desk) -> tuple[int, int]:
    """Train scratch modules of a run's kind, as many of them as fit, and throw them away, to see how long that takes; gives
    back how many they were, and the bytes of one's module and of one evaluation."""
    host = desk.host(run)
    scorer, test = scorer_of(host, run), desk.test(host, run)
    assert run.method is not None
    mounted = Mounted(host, run.method)
    try:
        bench = Bench(mounted, scorer, desk.training(host, run), test)
        runs = [replace(run, seed=seed) for seed in range(members)]
        starts = [Start(mounted.fresh(seed), scorer.fresh_head(seed), None, None) for seed in range(members)]
        members = min(members, _most(runs, {one.run_id: start for one, start in zip(runs, starts, strict=True)}, bench, desk))
        runs, starts = runs[:members], starts[:members]
        Stack(runs, starts, bench, {one.run_id: [] for one in runs}).train(desk)
        return members, 4 * starts[0].module.entries + 5 * len(test)
    finally:
        mounted.unmount()


def _most(runs: Sequence[RunSpec], starts: Mapping[str, Start], bench: Bench, desk: Desk) -> int:
    """The largest stack that fits into the memory that is free now."""
    run = runs[0]
    lengths, start = bench.training.lengths, starts[run.run_id]
    subtracts = any(starts[one.run_id].frozen is not None for one in runs)
    longest = Bucket(np.arange(len(lengths)), int(lengths.max()))
    key = (run.host.fingerprint, repr(run.method), repr(run.task), run.data.train_digest, run.train.batch_size, subtracts,
           run.precision)
    if key not in desk.member_bytes:
        picks = np.argsort(lengths, kind="stable")[-run.train.batch_size :]
        rows = bench.scorer.rows(bench.training, picks, len(picks), longest)
        frozen = bench.frozen(start.frozen) if subtracts else {}
        training = member_bytes(bench.scorer, bench.parameters(start.module, start.head), rows, frozen)
        desk.member_bytes[key] = max(training, bench.scorer.scoring_bytes(bench.test, run.eval.batch_size))
    return most_members(desk.member_bytes[key], desk.device, desk.place.share)


# ---- starts


def _starts(runs: Sequence[RunSpec], bench: Bench, desk: Desk) -> dict[str, Start]:
    """Each run's start; a run whose port is impossible fails alone."""
    builder, starts = StartBuilder(bench, desk.store, desk.data, desk.place.device, desk.free), {}
    for run in runs:
        try:
            starts[run.run_id] = builder.make(run)
        except UserError as error:
            desk.fail(run, error)
    return starts


def _score_bare(run: RunSpec, scorer: engine.AnyScorer, test: engine.Test, desk: Desk) -> None:
    """The host as it is, on the test set."""
    started = time.perf_counter()
    head = start_head(run, scorer, desk.store)
    stacked = {name: value[None] for name, value in on_device(head, scorer).items()}
    stage = Stage([run.run_id], SCORING)
    desk.report(stage)
    found = engine.predict(scorer, stacked, test, run.eval.batch_size, lambda part: desk.report(replace(stage, part=part)))
    at_start = {0: found.of(0)}
    desk.commit(Evidence(
        run=run, labels=test.labels, predictions=at_start, last_predictions=at_start, head=head,
        host_parameters=count_parameters(scorer), device=desk.place.device, seconds=time.perf_counter() - started,
        too_long=too_long(run.task, None, test),
    ))
