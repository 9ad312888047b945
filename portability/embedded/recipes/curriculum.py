"""From easy text to hard: when a host moves on, and at which learning rate.

Our choice, measured (D-25): hosts that meet hard text early stay at chance.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from portability.embedded.recipes.synthetic_text import Mix

log = logging.getLogger(__name__)


def rate(peak: float, warm: float, share: float, done: float) -> float:
    """The learning rate: the stage's share of the peak, warmed up, on a cosine in the last stage.

    Args:
        peak: the host's learning rate.
        warm: how much of the warm-up is over; above 1 means all of it.
        share: the stage's share of the peak, in [0, 1].
        done: how much of the last stage is over, in [0, 1]; 0 before it.

    Example:
        >>> rate(1.0, 0.1, 1.0, 0.0), rate(1.0, 9.0, 0.5, 0.0), round(rate(1.0, 9.0, 0.5, 0.5), 2)
        (0.1, 0.5, 0.25)
    """
    return peak * min(1.0, warm) * share * 0.5 * (1 + math.cos(math.pi * done))


class Curriculum:
    """Stages of text, easy to hard: the next one begins when a probe passes the gate.

    Attributes:
        stage: the present stage, from 0.
        entered: the update each stage so far began at.
    """

    def __init__(self, stages: list[Mapping[str, Any]]) -> None:
        """Starts in the first of the stages of conf/pretrain.yaml."""
        self.stages, self.stage, self.entered = stages, 0, [0]
        self.mixes = [Mix(**stage["mix"]) for stage in stages]

    @property
    def last(self) -> bool:
        """Whether the present stage is the last one."""
        return self.stage + 1 == len(self.stages)

    def at(self, step: int) -> Mix:
        """The mix of update `step`: a line from the previous stage's mix over `ramp` updates."""
        mix, ramp = self.mixes[self.stage], self.stages[self.stage]["ramp"]
        share = min(1.0, (step - self.entered[-1]) / ramp) if self.stage else 1.0
        old = dataclasses.asdict(self.mixes[max(0, self.stage - 1)])
        new = dataclasses.asdict(mix)
        return Mix(**{k: old[k] + share * (new[k] - old[k]) for k in new})

    def longest(self, steps: int) -> int:
        """The updates of the whole training if every stage still to come lasts its longest."""
        ahead = sum(stage["most"] for stage in self.stages[self.stage : -1])
        return self.entered[-1] + ahead + steps

    def ask(self, step: int, score: Callable[[Mix], float], name: str) -> None:
        """Moves on if the probe of this stage's own mix passes its gate, or the stage has lasted long."""
        if self.last:
            return
        found = score(self.mixes[self.stage])
        log.info("%s: update %d, stage %d, endings %.3f", name, step, self.stage, found)
        stage = self.stages[self.stage]
        if found >= stage["gate"] or step - self.entered[-1] >= stage["most"]:
            self.stage += 1
            self.entered.append(step)
