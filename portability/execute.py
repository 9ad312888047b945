"""Carry a stack of runs from their specs to stored records: the story of a run, one call per stage.

    hosts.load_host -> data.encode -> methods.Mounted -> inits -> engine.train, with engine.predict at each mark
    -> store.commit
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from portability import engine
from portability.batches import Schedule, pad
from portability.data import Encoded, StudyData, encode, rows
from portability.errors import UserError
from portability.hosts import Host, load_host
from portability.inits import INITS, Given
from portability.methods import Mounted
from portability.module import ModuleState
from portability.port import PortReport, fit_head
from portability.records import Evidence, build_result, without_places
from portability.scorer import Scorer
from portability.seeds import stream_seed
from portability.spec import BARE, FROM_ORIGIN, RunSpec, from_dict
from portability.store import Store

log = logging.getLogger(__name__)
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)  # of a run, not of the disk
CALIBRATION = 64  # training inputs on which a module's logit change is measured
Head = dict[str, Tensor]


@dataclass
class Desk:
    """What a worker keeps between stacks: the store, the study's data, and the host it loaded last."""

    store: Store
    data: StudyData
    on_update: Callable[[int], None] = lambda members: None  # called after each update with the number of members
    on_commit: Callable[[dict], None] = lambda record: None
    hosts: dict[str, Host] = field(default_factory=dict)

    def host(self, run: RunSpec) -> Host:
        """The run's host, loaded unless it is the one at hand."""
        if run.host.fingerprint not in self.hosts:
            self.hosts.clear()
            self.hosts[run.host.fingerprint] = load_host(run.host)
        return self.hosts[run.host.fingerprint]


@dataclass
class Start:
    """Where a run starts: its module (None for the bare host), its head, and the report of the port behind it."""

    module: ModuleState | None
    head: Head
    report: PortReport | None
    origin: dict[str, str] | None  # names of the origin's host and data


def execute(runs: Sequence[RunSpec], marks: Mapping[str, Sequence[int]], desk: Desk) -> None:
    """Run a stack to its records; what fails becomes a failure record, and the others go on.

    A stack that breaks as a whole is halved until the guilty run is alone.
    """
    try:
        _execute(list(runs), marks, desk)
    except FAULTS as error:
        desk.hosts.clear()
        if len(runs) == 1:
            _fail(runs[0], error, desk)
            return
        log.warning("a stack of %d runs broke (%s); halving it", len(runs), error)
        middle = len(runs) // 2
        execute(runs[:middle], marks, desk)
        execute(runs[middle:], marks, desk)


def _execute(runs: list[RunSpec], marks: Mapping[str, Sequence[int]], desk: Desk) -> None:
    started = time.perf_counter()
    first = runs[0]
    host = desk.host(first)
    scorer = Scorer(host, first.task)
    test = _encoded(host, first, first.eval.split, first.eval.limit, desk)
    if first.init.kind == BARE:
        for run in runs:
            _score_bare(run, scorer, test, desk)
        return
    assert first.method is not None
    training = _encoded(host, first, "train", 0, desk)
    mounted = Mounted(host, first.method)
    try:
        starts = _starts(runs, mounted, scorer, training, desk)
        runs = [run for run in runs if run.run_id in starts]
        if runs:
            stack = _Stack(runs, [starts[run.run_id] for run in runs], mounted, scorer, test)
            stack.train(training, sorted({mark for run in runs for mark in marks[run.run_id]}), desk)
            stack.commit(marks, desk, time.perf_counter() - started)
    finally:
        mounted.unmount()


def _encoded(host: Host, run: RunSpec, split: str, limit: int, desk: Desk) -> Encoded:
    dataset = rows(desk.data, run.data.name, split, limit)
    return encode(dataset, host.tokenizer, run.task, host.scoring == "label", run.host.fingerprint)


# ---- starts


def _starts(
    runs: Sequence[RunSpec], mounted: Mounted, scorer: Scorer, training: Encoded, desk: Desk
) -> dict[str, Start]:
    """Each run's start; a run whose port is impossible fails alone."""
    starts = {}
    for run in runs:
        try:
            starts[run.run_id] = _start(run, mounted, scorer, training, desk)
        except UserError as error:
            _fail(run, error, desk)
    return starts


def _start(run: RunSpec, mounted: Mounted, scorer: Scorer, training: Encoded, desk: Desk) -> Start:
    head = start_head(run, scorer, desk.store)
    fresh = mounted.fresh(stream_seed(run.seed, "module"))
    origin = from_dict(RunSpec, _record(run, desk.store)["spec"]) if run.origin else None
    given = Given(
        fresh=fresh, receiving=run.host, seed=int(run.seed or 0), origin=origin.host if origin else None, port=run.port,
        module=ModuleState.from_file(*desk.store.tensors(run.origin, "module"))
        if run.origin and run.init.kind in FROM_ORIGIN else None,
        change=_logit_change(mounted, scorer, head, training), calibration_examples=min(CALIBRATION, len(training)),
    )
    module, done = INITS[run.init.kind](given, run.init.options)
    names = {"host": origin.host.name, "data": origin.data.name} if origin else None
    return Start(module, head, done.report if done else None, names)


def start_head(run: RunSpec, scorer: Scorer, store: Store) -> Head:
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


def _logit_change(
    mounted: Mounted, scorer: Scorer, head: Head, training: Encoded
) -> Callable[[ModuleState], float]:
    """Module -> Frobenius norm of its change of the logits on the first training inputs."""
    picks = list(range(min(CALIBRATION, len(training))))
    ids, mask = pad([training.row(i) for i in picks], int(max(training.lengths[picks])))
    bare: list[Tensor] = []

    @torch.no_grad()
    def change(module: ModuleState) -> float:
        if not bare:
            bare.append(bare_logits(scorer, head, ids, mask))
        logits = engine.logits_of(scorer, _parameters(mounted, module, head), ids, mask)
        return float(torch.linalg.vector_norm(logits - bare[0]))

    return change


def bare_logits(scorer: Scorer, head: Head, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits of the host without any module."""
    active = scorer.model.active_adapters
    scorer.model.set_active_adapters(None)
    try:
        return engine.logits_of(scorer, head, ids, mask)
    finally:
        scorer.model.set_active_adapters(active)


def _parameters(mounted: Mounted, module: ModuleState, head: Head) -> dict[str, Tensor]:
    """A module and head under the names by which the scorer knows them; the head comes last."""
    return {f"model.{name}": value for name, value in mounted.to_parameters(module).items()} | head


# ---- training and committing


class _Stack:
    """Runs in training together, and the evidence collected at their marks."""

    def __init__(
        self, runs: list[RunSpec], starts: list[Start], mounted: Mounted, scorer: Scorer, test: Encoded
    ):
        self.runs, self.starts, self.mounted, self.scorer, self.test = runs, starts, mounted, scorer, test
        members = []
        for run, start in zip(runs, starts, strict=True):
            assert start.module is not None and run.method is not None and run.seed is not None
            members.append(engine.Member(_parameters(mounted, start.module, start.head), run.seed, run.method.learning_rate))
        self.trainer = engine.Trainer(scorer, members, runs[0].train)
        self.evidence: dict[int, engine.Predictions] = {}
        self.train_seconds = 0.0

    def train(self, training: Encoded, marks: Sequence[int], desk: Desk) -> None:
        """Train all members, scoring the test set at each mark."""
        run = self.runs[0]
        schedule = Schedule(training, run.train.batch_size, run.train.bucket_batches, run.data.train_digest)

        def score(updates: int, parameters: dict[str, Tensor]) -> None:
            self.evidence[updates] = engine.predict(self.scorer, parameters, self.test, run.eval.batch_size)

        started = time.perf_counter()
        engine.train(self.trainer, schedule, training, marks, score, lambda: desk.on_update(len(self.runs)))
        self.train_seconds = time.perf_counter() - started

    def commit(self, marks: Mapping[str, Sequence[int]], desk: Desk, seconds: float) -> None:
        """Write every finished member's record, module and predictions; failed members get a failure record."""
        for index, (run, start) in enumerate(zip(self.runs, self.starts, strict=True)):
            outcome = self.trainer.outcomes[index]
            if outcome.failed_at is not None:
                error = UserError(f"loss or gradient of run {run.run_id} was not finite at update {outcome.failed_at}")
                _fail(run, error, desk, updates=outcome.failed_at)
                continue
            trained = self.trainer.bank.member(self.trainer.averages, index)
            head = {name: trained.pop(name) for name in start.head}
            module = self.mounted.to_state({name.removeprefix("model."): value for name, value in trained.items()})
            evidence = Evidence(
                run=run, labels=self.test.labels, report=start.report, outcome=outcome, origin=start.origin,
                predictions={mark: _member(self.evidence[mark], index) for mark in sorted(marks[run.run_id])},
                module=module, head=head, host_parameters=_count(self.scorer), seconds=seconds / len(self.runs),
                train_seconds=self.train_seconds / len(self.runs),
            )
            try:
                _commit(evidence, desk)
            except FAULTS as error:  # scores that are not finite, say: the neighbours' records stand
                _fail(run, error, desk)


def _score_bare(run: RunSpec, scorer: Scorer, test: Encoded, desk: Desk) -> None:
    """The host as it is, on the test set."""
    started = time.perf_counter()
    head = start_head(run, scorer, desk.store)
    stacked = {name: value[None] for name, value in head.items()}
    scorer.model.set_active_adapters(None)
    found = engine.predict(scorer, stacked, test, run.eval.batch_size)
    evidence = Evidence(
        run=run, labels=test.labels, predictions={0: _member(found, 0)}, head=head, host_parameters=_count(scorer),
        seconds=time.perf_counter() - started,
    )
    _commit(evidence, desk)


def _member(found: engine.Predictions, index: int) -> engine.Predictions:
    return engine.Predictions(found.margin[index], found.nll[index], found.invalid[index])


def _count(scorer: Scorer) -> int:
    """The host's own parameters, without module and head."""
    return sum(p.numel() for name, p in scorer.model.named_parameters() if not p.requires_grad)


def _commit(evidence: Evidence, desk: Desk) -> None:
    result = build_result(evidence)
    desk.store.commit(evidence.run.run_id, result)
    desk.on_commit(result.record)


def _fail(run: RunSpec, error: Exception, desk: Desk, **facts: int) -> None:
    trace = without_places("".join(traceback.format_exception(error))) if not isinstance(error, UserError) else None
    failure = {"error": without_places(str(error)), "kind": type(error).__name__, "traceback": trace, **facts}
    attempt = desk.store.fail(run.run_id, failure)
    log.error("run %s (%s on %s) failed at attempt %d: %s", run.run_id, run.init.name, run.host.name, attempt, error)
