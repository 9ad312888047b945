"""Runs in training together: their members, what was measured at their marks, and where they go on after a kill."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from portability.core.errors import FAULTS, Drained, UserError
from portability.core.specs import RunSpec, digest
from portability.core.stages import SCORING, TRAINING, Stage
from portability.data.sampling import Schedule
from portability.execution.run_output import Evidence, packages
from portability.execution.worker_context import Desk
from portability.methods.base import AttachedMethod
from portability.methods.module import ModuleState
from portability.planning.plan import evenly
from portability.porting.port import PortReport
from portability.store import Store
from portability.tasks.classification import Predictions
from portability.tasks.generation import too_long
from portability.training import trainer as engine

Head = dict[str, Tensor]
Saved = dict[str, Tensor]  # a run's checkpoint: engine.Trainer.snapshot, OURS, and per scored mark "nll.50", "last_nll.50" ...
OURS = ("seconds", "versions")
ITERATES = ("", "last_")  # what a mark scores: the mean of its window (engine.window), and the last iterate; name prefixes


@dataclass
class Start:
    """Where a run starts: its module, its head, the report of the port behind it, and what the method subtracts from the
    host all through the run (see `methods.AttachedMethod.to_frozen`)."""

    module: ModuleState
    head: Head
    report: PortReport | None
    origin: dict[str, str] | None  # names of the origin's host and data
    frozen: ModuleState | None = None


@dataclass(frozen=True)
class Bench:
    """What the members of a stack share: method on host, scorer, and encoded data."""

    attached: AttachedMethod
    scorer: engine.AnyScorer
    training: engine.Training
    test: engine.Test

    def parameters(self, module: ModuleState, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A module and head under the names by which the scorer knows them; the head comes last."""
        return {f"model.{name}": value for name, value in self.attached.to_parameters(module).items()} | dict(head)

    def frozen(self, start: ModuleState | None) -> dict[str, Tensor]:
        """What a start subtracts, under the scorer's names; zeros for None."""
        return {f"model.{name}": value for name, value in self.attached.to_frozen(start).items()}

    def schedule(self, run: RunSpec) -> Schedule:
        """The batches of a run's data."""
        return Schedule(self.training, run.train.batch_size, run.train.bucket_batches, run.data.train_digest)


def parts(runs: Sequence[RunSpec], marks: Mapping[str, Sequence[int]], store: Store, size: int) -> Iterator[list[RunSpec]]:
    """Cut runs into stacks of at most `size` whose members go on at the same update with the same marks behind and open; a
    member's neighbours never change its numbers, so a run may go on in another stack than the one that was killed."""
    alike: dict[tuple[int, ...], list[RunSpec]] = {}
    for run in runs:
        saved = usable(store.checkpoint(run.run_id), run, marks[run.run_id])
        alike.setdefault((len(saved["losses"]), *sorted(scored(saved)), *sorted(_open(saved))) if saved else (), []).append(run)
    for same in alike.values():
        yield from evenly(same, size)


def usable(saved: Saved | None, run: RunSpec, marks: Sequence[int]) -> Saved | None:
    """A checkpoint, unless a mark that it has passed was not scored or one whose window it is in was not averaged, or other
    versions of the libraries wrote it, whose parameters may stand in another order (then the run starts anew)."""
    if saved is None or "losses" not in saved or int(saved.get("versions", torch.tensor(-1))) != _versions():
        return None
    done = len(saved["losses"])
    passed = {mark for mark in marks if mark <= done}
    opened = {mark for mark in marks if mark - engine.window(mark, run.train.tail) < done < mark}
    return saved if passed <= scored(saved) and opened <= _open(saved) else None


def scored(saved: Saved) -> frozenset[int]:
    """Marks whose predictions a checkpoint holds."""
    return _marks(saved, "nll.")


def _open(saved: Saved) -> frozenset[int]:
    """Marks of whose iterates a checkpoint holds the mean so far."""
    return _marks(saved, "tail.")


def _marks(saved: Saved, prefix: str) -> frozenset[int]:
    return frozenset(int(name.removeprefix(prefix)) for name in saved if name.startswith(prefix))


def _versions() -> int:
    return int(digest(packages())[:15], 16)


class Stack:
    """Runs in training together, and the evidence collected at their marks."""

    def __init__(self, runs: Sequence[RunSpec], starts: Sequence[Start], bench: Bench, marks: Mapping[str, Sequence[int]]):
        self.runs, self.starts, self.bench, self.marks = runs, starts, bench, marks
        members, subtracts = [], any(start.frozen is not None for start in starts)
        for run, start in zip(runs, starts, strict=True):
            assert run.method is not None and run.seed is not None
            parameters = bench.parameters(start.module, start.head)
            frozen = bench.frozen(start.frozen) if subtracts else {}  # zeros change no bit of a neighbour without a start
            members.append(engine.Member(parameters, run.seed, run.method.learning_rate, frozen))
        self.trainer = engine.Trainer(bench.scorer, members, runs[0].train)
        self.evidence: dict[str, dict[int, Predictions]] = {iterate: {} for iterate in ITERATES}
        self.seconds = np.zeros(len(runs))  # each member's share of the training time, of earlier attempts too

    def resume(self, store: Store) -> None:
        """Go on from the members' checkpoints, where all have one (see `parts`)."""
        saved = [usable(store.checkpoint(run.run_id), run, self.marks[run.run_id]) for run in self.runs]
        found = [one for one in saved if one is not None]
        if len(found) < len(self.runs):
            return
        marks = scored(found[0])
        kept = {name for name in found[0] if name not in OURS and ("." not in name or name.startswith("tail."))}
        self.trainer.restore([{name: one[name] for name in kept} for one in found])
        self.seconds = np.array([float(one["seconds"]) for one in found])
        for iterate, mark in product(ITERATES, marks):
            prefix = iterate if f"{iterate}nll.{mark}" in found[0] else ""  # where both iterates are one, it is kept once
            columns = [name for name in Predictions.__dataclass_fields__ if f"{prefix}{name}.{mark}" in found[0]]
            self.evidence[iterate][mark] = Predictions(
                **{name: np.stack([one[f"{prefix}{name}.{mark}"].numpy() for one in found]) for name in columns})

    def stage(self, doing: str = TRAINING, part: float = 0.0) -> Stage:
        """What the members are at."""
        return Stage([run.run_id for run in self.runs], doing, self.trainer.done, len(self.evidence[""]), part)

    def train(self, desk: Desk) -> None:
        """Train all members, scoring the test set at each mark that was not scored yet, and keeping checkpoints.

        Raises:
            Drained: the worker was stopped; checkpoints are kept.
        """
        run, kept_at = self.runs[0], time.perf_counter()
        left = sorted({mark for run in self.runs for mark in self.marks[run.run_id]} - set(self.evidence[""]))

        def keep_if_due() -> None:
            nonlocal kept_at
            now = time.perf_counter()
            stopped = desk.stopped.is_set()
            if 0 < self.trainer.done < run.train.updates and (stopped or now - kept_at >= desk.checkpoint_seconds):
                self.seconds += (now - kept_at) / len(self.runs)
                self.keep(desk.store)
                kept_at = now
                if stopped:
                    raise Drained

        def mark(updates: int, averages: dict[str, Tensor], last: dict[str, Tensor]) -> None:
            desk.report(self.stage(SCORING))
            same = updates == 0 or engine.window(updates, run.train.tail) == 1
            scores = [
                self._score(updates, parameters, lambda part, at=at: desk.report(self.stage(SCORING, (at + part) / (2 - same))))
                for at, parameters in enumerate([averages] if same else [averages, last])]
            self.evidence[""][updates], self.evidence["last_"][updates] = scores[0], scores[-1]
            keep_if_due()

        def update() -> None:
            desk.report(self.stage())
            if self.trainer.done not in left:  # a mark is kept once it is scored
                keep_if_due()

        engine.train(self.trainer, self.bench.schedule(run), self.bench.training, left, mark, update)
        self.seconds += (time.perf_counter() - kept_at) / len(self.runs)

    def _score(self, updates: int, parameters: dict[str, Tensor], on_part: Callable[[float], None] = lambda part: None
               ) -> Predictions:
        """Predictions of all members; members that start alike are scored once."""
        each = list(range(len(self.runs)))
        if updates == 0:
            seen: dict[tuple[bytes, ...], int] = {}
            held = [value.cpu() for value in (self.trainer.averages, *self.trainer.frozen.values())]
            each = [seen.setdefault(tuple(part.numpy().tobytes() for part in row), len(seen))
                    for row in zip(*held, strict=True)]
            firsts = [each.index(place) for place in range(len(seen))]
            parameters = {name: value[firsts] for name, value in parameters.items()}
        return engine.predict(self.bench.scorer, parameters, self.bench.test, self.runs[0].eval.batch_size, on_part).of(each)

    def keep(self, store: Store) -> None:
        """Write a checkpoint of every member that is still finite."""
        outcomes = self.trainer.outcomes
        for index, run in enumerate(self.runs):
            if outcomes[index].failed_at is None:
                saved = self.trainer.snapshot(index)
                saved |= {"seconds": torch.tensor(self.seconds[index]), "versions": torch.tensor(_versions())}
                for iterate, marks in self.evidence.items():
                    for updates, found in marks.items():
                        if iterate and found is self.evidence[""][updates]:
                            continue
                        saved |= {f"{iterate}{name}.{updates}": torch.from_numpy(value)
                                  for name, value in found.of(index).columns.items()}
                store.save_checkpoint(run.run_id, saved)

    def commit(self, desk: Desk, overhead: float) -> None:
        """Write every finished member's record, module and predictions; failed members get a failure record.

        Args:
            overhead: seconds of the stack outside its training, shared by its members.
        """
        outcomes = self.trainer.outcomes
        for index, (run, start) in enumerate(zip(self.runs, self.starts, strict=True)):
            outcome = outcomes[index]
            if outcome.failed_at is not None:
                error = UserError(f"loss or gradient of run {run.run_id} was not finite at update {outcome.failed_at}")
                desk.fail(run, error, updates=outcome.failed_at)
                continue
            trained = self.trainer.bank.member(self.trainer.averages, index)
            head = {name: trained.pop(name) for name in start.head}
            module = self.bench.attached.to_state({name.removeprefix("model."): value for name, value in trained.items()})
            evidence = Evidence(
                run=run, labels=self.bench.test.labels, report=start.report, outcome=outcome, origin=start.origin,
                **{f"{iterate}predictions": {mark: found[mark].of(index) for mark in sorted(self.marks[run.run_id])}
                   for iterate, found in self.evidence.items()},
                module=module, start=start.frozen, head=head, host_parameters=count_parameters(self.bench.scorer),
                seconds=float(self.seconds[index]) + overhead / len(self.runs), train_seconds=float(self.seconds[index]),
                device=desk.place.device, stack=len(self.runs),
                too_long=too_long(run.task, self.bench.training, self.bench.test),
            )
            try:
                desk.commit(evidence)
            except FAULTS as error:  # scores that are not finite, say: the neighbours' records stand
                desk.fail(run, error)


def count_parameters(scorer: engine.AnyScorer) -> int:
    """The host's own parameters, without module and head."""
    return sum(p.numel() for name, p in scorer.model.named_parameters() if not p.requires_grad)
