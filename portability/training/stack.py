"""Runs in training together: their members, what was measured at their marks, and where they go on after a
kill."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from portability.core.errors import GracefulStop
from portability.core.specs import RunSpec, digest
from portability.core.stages import SCORING, TRAINING, Stage
from portability.core.versions import packages
from portability.data.sampling import BatchSampler, buckets
from portability.methods.base import AttachedMethod
from portability.methods.module import ModuleState
from portability.planning.cost import split_evenly
from portability.store import Store
from portability.tasks.base import EvalSet, Predictions, TaskScorer, Told, Training
from portability.tasks.members import member_map
from portability.tasks.registry import task_of
from portability.tracking.live import Live
from portability.training import trainer
from portability.training.curves import Curves
from portability.training.run_output import InitialState, RunOutput

log = logging.getLogger(__name__)
# a run's checkpoint: trainer.Trainer.snapshot, OURS, and per scored mark "nll.50", "last_nll.50" ...
Saved = dict[str, Tensor]
OURS = ("seconds", "versions")
SCORED, OPEN = "last_nll.", "tail."
# what a mark scores: the mean of its window (trainer.window), and the last iterate; name prefixes
ITERATES = ("", "last_")


class Reports(Protocol):
    """What a stack needs of the worker that trains it: where checkpoints go and how often, whom to tell what
    the runs are at (after each update and each batch that was scored) and what was measured (`live`), and
    whether to end."""

    store: Store
    live: Live | None
    checkpoint_seconds: float
    stopped: threading.Event

    @property
    def report(self) -> Callable[[Stage], None]: ...


@dataclass(frozen=True)
class StackContext:
    """What the members of a stack share: method on host, scorer, and encoded data."""

    attached: AttachedMethod
    scorer: TaskScorer
    training: Training
    test: EvalSet

    def __post_init__(self) -> None:
        """Stack members by vmap, or one at a time where the method does not allow it, which is logged."""
        head = self.scorer.fresh_head(0)
        zeros = {f"model.{name}": torch.zeros(shape) for name, shape in self.attached.shapes.items()} | head
        bucket = buckets(self.training.lengths, 1)[0]
        rows = self.scorer.rows(self.training, bucket.members[:1], 1, bucket)
        device = self.scorer.device
        self.scorer.each, reason = member_map(self.scorer, {name: value.to(device) for name, value in
                                                            zeros.items()},
                                              [part.to(device) for part in rows])
        if reason:
            log.info("method %s trains one member at a time: %s", self.attached.spec.name, reason)

    def parameters(self, module: ModuleState, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A module and head under the names by which the scorer knows them; the head comes last."""
        return {f"model.{name}": value
                for name, value in self.attached.to_parameters(module).items()} | dict(head)

    def frozen(self, start: ModuleState | None) -> dict[str, Tensor]:
        """What a start subtracts, under the scorer's names; zeros for None."""
        return {f"model.{name}": value for name, value in self.attached.to_frozen(start).items()}

    def schedule(self, run: RunSpec) -> BatchSampler:
        """The batches of a run's data."""
        return BatchSampler(self.training, run.train.batch_size, run.train.bucket_batches,
                            run.data.train_digest)


def split_resumable(
    runs: Sequence[RunSpec], marks: Mapping[str, Sequence[int]], store: Store, size: int
) -> Iterator[list[RunSpec]]:
    """Cut runs into stacks of at most `size` whose members go on at the same update with the same marks
    behind and open; a member's neighbours never change its numbers, so a run may go on in another stack than
    the one that was killed."""
    alike: dict[tuple[int, ...], list[RunSpec]] = {}
    for run in runs:
        saved = resumable(store.checkpoint(run.run_id), run, marks[run.run_id])
        marks_of = [*sorted(_marks(saved, SCORED)), *sorted(_marks(saved, OPEN))] if saved else []
        where = (len(saved["losses"]), *marks_of) if saved else ()
        alike.setdefault(where, []).append(run)
    for same in alike.values():
        yield from split_evenly(same, size)


def resumable(saved: Saved | None, run: RunSpec, marks: Sequence[int]) -> Saved | None:
    """A checkpoint, unless a mark that it has passed was not scored or one whose window it is in was not
    averaged, or other versions of the libraries wrote it, whose parameters may stand in another order (then
    the run starts anew)."""
    if saved is None or "losses" not in saved or int(saved.get("versions", torch.tensor(-1))) != _versions():
        return None
    done = len(saved["losses"])
    passed = {mark for mark in marks if mark <= done}
    opened = {mark for mark in marks if mark - trainer.window(mark, run.train.tail) < done < mark}
    return saved if passed <= _marks(saved, SCORED) and opened <= _marks(saved, OPEN) else None


def _marks(saved: Saved, prefix: str) -> frozenset[int]:
    """Marks of whose predictions (SCORED), or of the mean so far of whose iterates (OPEN), a checkpoint
    holds something."""
    return frozenset(int(name.removeprefix(prefix)) for name in saved if name.startswith(prefix))


def _versions() -> int:
    return int(digest(packages())[:15], 16)


class Stack:
    """Runs in training together, and their predictions at the marks."""

    def __init__(self, runs: Sequence[RunSpec], starts: Sequence[InitialState], bench: StackContext,
                 marks: Mapping[str, Sequence[int]], passes: int = 1):
        self.runs, self.starts, self.bench, self.marks = runs, starts, bench, marks
        members, subtracts = [], any(start.frozen is not None for start in starts)
        for run, start in zip(runs, starts, strict=True):
            assert run.seed is not None
            parameters = bench.parameters(start.module, start.head)
            # zeros change no bit of a neighbour without a start
            frozen = bench.frozen(start.frozen) if subtracts else {}
            members.append(trainer.Member(parameters, run.seed, run.trained_method.learning_rate, frozen))
        self.trainer = trainer.Trainer(bench.scorer, members, runs[0].train, passes)
        self.predictions: dict[str, dict[int, Predictions]] = {iterate: {} for iterate in ITERATES}
        # each member's share of the training time, of earlier attempts too
        self.seconds = np.zeros(len(runs))

    def resume(self, store: Store) -> None:
        """Go on from the members' checkpoints, where all have one (see `split_resumable`)."""
        saved = [resumable(store.checkpoint(run.run_id), run, self.marks[run.run_id]) for run in self.runs]
        found = [one for one in saved if one is not None]
        if len(found) < len(self.runs):
            return
        marks = _marks(found[0], SCORED)
        kept = [name for name in found[0] if name.startswith(OPEN) or "." not in name and name not in OURS]
        self.trainer.restore([{name: one[name] for name in kept} for one in found])
        self.seconds = np.array([float(one["seconds"]) for one in found])
        for iterate, mark in product(ITERATES, marks):
            keys = {name: f"{iterate}{name}.{mark}" for name in Predictions.__dataclass_fields__}
            self.predictions[iterate][mark] = Predictions(**{
                name: np.stack([one[key].numpy() for one in found])
                for name, key in keys.items() if key in found[0]})

    def stage(self, doing: str = TRAINING, part: float = 0.0) -> Stage:
        """What the members are at."""
        return Stage([run.run_id for run in self.runs], doing, self.trainer.done, len(self.predictions[""]),
                     part)

    def train(self, worker: Reports) -> None:
        """Train all members, scoring the test set at each mark that was not scored yet, and keeping
        checkpoints.

        Raises:
            GracefulStop: the worker was stopped; checkpoints are kept.
        """
        run, curves, kept_at = self.runs[0], Curves(self, worker.live), time.perf_counter()
        left = sorted({mark for run in self.runs
                       for mark in self.marks[run.run_id]} - set(self.predictions[""]))

        def keep_if_due() -> None:
            nonlocal kept_at
            now = time.perf_counter()
            stopped = worker.stopped.is_set()
            due = stopped or now - kept_at >= worker.checkpoint_seconds
            if due and 0 < self.trainer.done < run.train.updates:
                self.seconds += (now - kept_at) / len(self.runs)
                self.keep(worker.store)
                kept_at = now
                if stopped:
                    raise GracefulStop

        def mark(updates: int, averages: dict[str, Tensor], last: dict[str, Tensor]) -> None:
            worker.report(self.stage(SCORING))
            iterates = [averages, last][: 1 + (updates > 0 and trainer.window(updates, run.train.tail) > 1)]

            def told(part: float) -> None:
                worker.report(self.stage(SCORING, (len(scores) + part) / len(iterates)))

            scores: list[Predictions] = []
            for parameters in iterates:
                scores.append(self._score(updates, parameters, told))
            self.predictions[""][updates], self.predictions["last_"][updates] = scores[0], scores[-1]
            curves.mark(updates)
            keep_if_due()

        def update() -> None:
            worker.report(self.stage())
            curves.update(pending=self.trainer.done in left)
            if self.trainer.done not in left:  # a mark is kept once it is scored
                keep_if_due()

        curves.begin()
        trainer.train(self.trainer, self.bench.schedule(run), self.bench.training, left, mark, update)
        self.seconds += (time.perf_counter() - kept_at) / len(self.runs)

    def _score(self, updates: int, parameters: dict[str, Tensor], on_part: Told = lambda part: None
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
        return self.bench.scorer.predict(parameters, self.bench.test, self.runs[0].eval.batch_size,
                              on_part).of(each)

    def keep(self, store: Store) -> None:
        """Write a checkpoint of every member that is still finite."""
        outcomes = self.trainer.outcomes
        for index, run in enumerate(self.runs):
            if outcomes[index].failed_at is None:
                saved = self.trainer.snapshot(index)
                saved |= {"seconds": torch.tensor(self.seconds[index]), "versions": torch.tensor(_versions())}
                # a copy each: safetensors shares none
                saved |= {f"{iterate}{name}.{updates}": torch.tensor(value)
                          for iterate, marks in self.predictions.items() for updates, found in marks.items()
                          for name, value in found.of(index).columns.items()}
                store.save_checkpoint(run.run_id, saved)

    def outputs(self, device: str, overhead: float) -> Iterator[RunOutput]:
        """What was measured of each member, those that went wrong among them.

        Args:
            device: on which they were trained.
            overhead: seconds of each member outside its training.
        """
        test = self.bench.test
        too_long = task_of(self.runs[0].task).too_long(self.bench.training, test)
        members = zip(self.runs, self.starts, self.trainer.outcomes, strict=True)
        for index, (run, start, outcome) in enumerate(members):
            trained = self.trainer.bank.member(self.trainer.averages, index)
            head = {name: trained.pop(name) for name in start.head}
            module = self.bench.attached.to_state({name.removeprefix("model."): value
                                                  for name, value in trained.items()})
            seconds, marks = float(self.seconds[index]), sorted(self.marks[run.run_id])
            predictions, last = ({mark: found[mark].of(index) for mark in marks}
                                 for found in self.predictions.values())
            yield RunOutput(
                run=run, labels=test.labels, predictions=predictions, last_predictions=last, module=module,
                head=head, start=start, outcome=outcome, host_parameters=count_parameters(self.bench.scorer),
                seconds=seconds + overhead, train_seconds=seconds, device=device, stack=len(self.runs),
                too_long=too_long)


def count_parameters(scorer: TaskScorer) -> int:
    """The host's own parameters, without module and head."""
    return sum(p.numel() for name, p in scorer.model.named_parameters() if not p.requires_grad)
