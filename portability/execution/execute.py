"""Carry runs from their specs to stored records: the story of a run, one call per stage.

    desk.host -> desk.encoded -> methods.attach -> inits -> stack.Stack: engine.train, with engine.predict at each mark
    -> store.commit
"""

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from portability.core.errors import FAULTS, UserError
from portability.core.seeds import stream_seed
from portability.core.specs import BARE, EXTRACTION, FROM_EXTRACTION, FROM_ORIGIN, SUBTRACTED, RunSpec, TaskSpec, from_dict
from portability.core.stages import SCORING, Stage
from portability.data.sampling import Bucket
from portability.execution.run_output import Evidence
from portability.execution.worker_context import Desk
from portability.hosts.host import Host
from portability.inits.base import INITS, Given, subtracted
from portability.inits.seed_examples import extraction
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.porting.port import fit_head
from portability.store import Store
from portability.tasks.classification import Scorer
from portability.tasks.generation import AnswerScorer, too_long
from portability.training import trainer as engine
from portability.training.memory import member_bytes, most_members
from portability.training.stack import Bench, Head, Stack, Start, count_parameters, parts

log = logging.getLogger(__name__)
LOST = getattr(torch, "AcceleratorError", ())  # what torch raises when a GPU's state is beyond repair
CALIBRATION = 64  # training inputs on which a module's logit change is measured


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
    attached = attach(host, first.method)
    try:
        bench = Bench(attached, scorer, training, test)
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
        attached.detach()


def scorer_of(host: Host, run: RunSpec) -> engine.AnyScorer:
    """What asks a host the run's task."""
    return Scorer(host, run.task) if isinstance(run.task, TaskSpec) else AnswerScorer(host, run.task)


def trial(run: RunSpec, members: int, desk: Desk) -> tuple[int, int]:
    """Train scratch modules of a run's kind, as many of them as fit, and throw them away, to see how long that takes; gives
    back how many they were, and the bytes of one's module and of one evaluation."""
    host = desk.host(run)
    scorer, test = scorer_of(host, run), desk.test(host, run)
    assert run.method is not None
    attached = attach(host, run.method)
    try:
        bench = Bench(attached, scorer, desk.training(host, run), test)
        runs = [replace(run, seed=seed) for seed in range(members)]
        starts = [Start(attached.init_parameters(seed), scorer.fresh_head(seed), None, None) for seed in range(members)]
        members = min(members, _most(runs, {one.run_id: start for one, start in zip(runs, starts, strict=True)}, bench, desk))
        runs, starts = runs[:members], starts[:members]
        Stack(runs, starts, bench, {one.run_id: [] for one in runs}).train(desk)
        return members, 4 * starts[0].module.entries + 5 * len(test)
    finally:
        attached.detach()


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
    starts = {}
    for run in runs:
        try:
            starts[run.run_id] = _start(run, bench, desk)
        except UserError as error:
            desk.fail(run, error)
    return starts


def _start(run: RunSpec, bench: Bench, desk: Desk) -> Start:
    store, head = desk.store, start_head(run, bench.scorer, desk.store)
    if run.init.kind == EXTRACTION:
        assert run.teacher is not None
        cut, report = extraction(run, desk.data, store, desk.place.device, desk.free)
        return Start(cut, head, report, {"host": run.teacher.name, "data": run.data.name}, report.blocks or cut)
    fresh = bench.attached.init_parameters(stream_seed(*run.stream, "module"))
    origin = from_dict(RunSpec, _record(run, store)["spec"]) if run.origin else None
    given = Given(
        fresh=fresh, receiving=run.host, seed=int(run.seed or 0), stream=run.stream, port=run.port, method=run.method,
        origin=(origin.teacher or origin.host) if origin else None,
        module=ModuleState.from_file(*store.tensors(run.origin, "module"))
        if run.origin and run.init.kind in FROM_ORIGIN + FROM_EXTRACTION else None,
        blocks=_blocks(run, store), change=_logit_change(bench, head),
        calibration_examples=min(CALIBRATION, len(bench.training)),
    )
    module, done = INITS[run.init.kind](given, run.init.options)
    names = {"host": (origin.teacher or origin.host).name, "data": origin.data.name} if origin else None
    taken = subtracted(run.init.kind, module, given) if run.init.kind in SUBTRACTED else None
    return Start(module, head, done.report if done else None, names, taken)


def _blocks(run: RunSpec, store: Store) -> ModuleState | None:
    """The cuts behind an extraction's pairs, where the run's method takes these off."""
    assert run.method is not None
    if run.origin is None or run.init.kind not in FROM_EXTRACTION or run.method.settings.get("subtract") != "block":
        return None
    return ModuleState.from_file(*store.tensors(run.origin, "start"))


def start_head(run: RunSpec, scorer: engine.AnyScorer, store: Store) -> Head:
    """The classification head a run starts with: none, a fresh one, or the origin's fitted to this host's width.

    All arms of a cell start from the same head, so that no arm has an advantage (design: head shared).
    """
    if run.head == "shared":
        assert run.origin is not None and run.port is not None
        tensors, _ = store.tensors(run.origin, "head")
        return fit_head(tensors, run.host.shape.hidden, run.port)
    return scorer.fresh_head(stream_seed(run.seed, "head"))


def _record(run: RunSpec, store: Store) -> dict:
    record = store.read(str(run.origin))
    if record is None:
        raise UserError(f"run {run.run_id} needs the module of run {run.origin}, which is not in the store")
    return record


def _logit_change(bench: Bench, head: Head) -> Callable[[ModuleState], float]:
    """Module -> Frobenius norm of its change of the logits on the first training inputs."""
    training, scorer = bench.training, bench.scorer
    picks = np.arange(min(CALIBRATION, len(training)))
    made = scorer.rows(training, picks, len(picks), Bucket(picks, int(training.lengths[picks].max())))
    rows = tuple(part.to(scorer.device) for part in made)
    bare: list[Tensor] = []

    @torch.no_grad()
    def change(module: ModuleState) -> float:
        if not bare:
            with bench.attached.disabled():
                bare.append(engine.logits_of(scorer, _there(head, scorer), *rows))
        logits = engine.logits_of(scorer, _there(bench.parameters(module, head), scorer), *rows)
        return float(torch.linalg.vector_norm(logits - bare[0]))

    return change


def _there(parameters: Mapping[str, Tensor], scorer: engine.AnyScorer) -> dict[str, Tensor]:
    return {name: value.to(scorer.device) for name, value in parameters.items()}


def _score_bare(run: RunSpec, scorer: engine.AnyScorer, test: engine.Test, desk: Desk) -> None:
    """The host as it is, on the test set."""
    started = time.perf_counter()
    head = start_head(run, scorer, desk.store)
    stacked = {name: value[None] for name, value in _there(head, scorer).items()}
    stage = Stage([run.run_id], SCORING)
    desk.report(stage)
    found = engine.predict(scorer, stacked, test, run.eval.batch_size, lambda part: desk.report(replace(stage, part=part)))
    at_start = {0: found.of(0)}
    desk.commit(Evidence(
        run=run, labels=test.labels, predictions=at_start, last_predictions=at_start, head=head,
        host_parameters=count_parameters(scorer), device=desk.place.device, seconds=time.perf_counter() - started,
        too_long=too_long(run.task, None, test),
    ))
