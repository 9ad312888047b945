"""What a worker says of the runs that it has in hand, to whoever started it and to whoever asks for the
status."""

from collections.abc import Sequence
from dataclasses import dataclass

PREPARING, TRAINING, SCORING = "preparing", "training", "scoring"


@dataclass(frozen=True)
class Stage:
    """What runs that go on together are at: preparing (host, texts and starts), training, or scoring.

    Attributes:
        runs: their ids.
        updates: that each of them has made, those of earlier attempts among them.
        scored: marks that were scored before.
        part: in [0, 1], how much of the scoring at hand is done.
    """

    runs: Sequence[str]
    doing: str = PREPARING
    updates: int = 0
    scored: int = 0
    part: float = 0.0
