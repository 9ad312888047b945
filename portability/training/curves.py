"""What is measured of runs while they train, for whoever watches: losses, learning rates, tokens a second,
and the numbers at each mark. Nothing here changes a number of a run."""

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from portability.core.measures import own
from portability.core.specs import RunSpec
from portability.tracking.live import Live
from portability.training.run_output import InitialState, heading, numbers_of
from portability.training.trainer import LOSS_EVERY, rate_share

if TYPE_CHECKING:
    from portability.training.stack import Stack


class Curves:
    """Tells of a stack: every LOSS_EVERY updates train_loss, learning_rate (of the module) and
    tokens_per_second (of the run's own real tokens), and at each mark what its record will hold of it, but
    for metrics of the user's own, which are computed once, for the record.

    Args:
        live: None: nobody watches.
    """

    def __init__(self, stack: "Stack", live: Live | None):
        self.stack, self.live = stack, live
        self.point: dict[str, dict[str, float]] = {}  # by run, what is not told yet
        self.since = time.perf_counter(), self._tokens()

    def begin(self) -> None:
        """The runs begin, or go on behind a checkpoint, whose curves are told anew."""
        if self.live is None:
            return
        with self.live.telling():
            for run, start in zip(self.stack.runs, self.stack.starts, strict=True):
                begin(self.live, run, start, self.stack.marks[run.run_id])  # even where the rest has broken
            if self.live.broken:
                return
            marks = self.stack.predictions[""]
            outcomes = [dict(outcome.losses) for outcome in self.stack.trainer.outcomes]
            for step in sorted({*marks, *(step for losses in outcomes for step in losses)}):
                self._add("train_loss", [losses.get(step) for losses in outcomes])
                self._tell(step)

    def update(self, pending: bool) -> None:
        """After each update; where a mark is `pending`, it tells what this has to say."""
        done = self.stack.trainer.done
        if self.live is None or self.live.broken or done % LOSS_EVERY and done < self._updates:
            return
        with self.live.telling():
            trainer, (before, tokens) = self.stack.trainer, self.since
            self.since = now, made = time.perf_counter(), self._tokens()
            self._add("train_loss", trainer.recent_losses())
            share = rate_share(done - 1, trainer.spec)
            self._add("learning_rate", [member.learning_rate * share for member in trainer.members])
            self._add("tokens_per_second", [(b - a) / max(1e-9, now - before)
                                            for a, b in zip(tokens, made, strict=True)])
            if not pending:
                self._tell(done)

    def mark(self, updates: int) -> None:
        """A mark was scored; what that took is not the training's."""
        if self.live is None or self.live.broken:
            return
        with self.live.telling():
            self._tell(updates)
        self.since = time.perf_counter(), self._tokens()

    @property
    def _updates(self) -> int:
        return self.stack.trainer.spec.updates

    def _tokens(self) -> list[int]:
        return self.stack.trainer.tokens[0].tolist()

    def _add(self, name: str, values: Sequence[float | None]) -> None:
        """A number of each run, where there is one."""
        for run, value in zip(self.stack.runs, values, strict=True):
            if value is not None and isfinite(value):
                self.point.setdefault(run.run_id, {})[name] = value

    def _tell(self, step: int) -> None:
        if step in self.stack.predictions[""]:
            for index, run in enumerate(self.stack.runs):
                if step in self.stack.marks[run.run_id]:
                    self.point.setdefault(run.run_id, {}).update(self._scores(step, index, run))
        if self.live is not None and self.point:
            self.live.measured(step, self.point)
        self.point = {}

    def _scores(self, step: int, index: int, run: RunSpec) -> Mapping[str, float]:
        at, last = (found[step].of(index) for found in self.stack.predictions.values())
        asked = [metric for metric in run.eval.metrics if metric not in own(run.eval.metrics)]
        found = numbers_of(run, self.stack.bench.test.labels, at, last, asked)
        return {name: value for name, value in found.items()
                if not isinstance(value, str) and isfinite(value)}


def begin(live: Live, run: RunSpec, start: InitialState | None, marks: Sequence[int]) -> None:
    """A run begins that will be evaluated at these marks."""
    live.begin(heading(run, start), marks)
