"""What the tasks share: predictions, training examples with their answers, and what no host can be asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from portability.core.errors import UserError
from portability.hosts.host import Host

HEAD = ("head.weight", "head.bias")
SCORE_ROWS = 16  # scored batches are filled up to a multiple of so many examples (sampling.fill)
SHOWN = 80  # characters of an example that is shown
Parameters = Mapping[str, Tensor]
Training = Any  # each task has its own kinds: Encoded for both, or Sequences and generation.PromptSet
EvalSet = Any
Told = Callable[[float], None]  # of the part in [0, 1] of the work that is done


@dataclass
class Predictions:
    """Per member and example, (K, N), or per example (N,): negative log-likelihood of the right answer (nats;
    of a written answer or a choice, a token), and whether the output is invalid (its best token begins no
    label word, or it never ends).

    `margin` is the log-odds of positive, or of the right choice against the best wrong one; `score` in [0, 1]
    is what an answer is worth. Texts with labels have no scores, written answers no margins.
    """

    nll: np.ndarray
    invalid: np.ndarray
    margin: np.ndarray | None = None
    score: np.ndarray | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What there is, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, members: int | list[int]) -> "Predictions":
        """Those of some members, in this order, or of one."""
        return Predictions(**{name: value[members] for name, value in self.columns.items()})


class Answered(NamedTuple):
    """A training example with its right answer in a host's token ids.

    Attributes:
        ids: prompt and answer; of t5 the encoder's input, of a host with a head the text.
        start: index in `ids` of the answer's first token, of decoder-only hosts; else 0.
        target: of t5, the answer's tokens.
        label: of a host with a head, the class.
    """

    ids: list[int]
    start: int = 0
    target: Sequence[int] = ()
    label: int | None = None


def check_length(host: Host, max_length: int) -> None:
    """Refuse inputs longer than the host has positions for (T5's are relative, so it has no limit)."""
    config = host.model.config
    positions = getattr(config, "max_position_embeddings", None)
    if window := getattr(config, "sliding_window", None) if not host.scoring == "head" else None:
        positions = min(positions or window, window)  # masks are made without it
    if positions is not None and max_length > positions - 2 * (host.family in ("roberta", "xlm-roberta")):
        raise UserError(f"task.max_length is {max_length}, but host '{host.spec.name}' has {positions} "
                        "positions")


def check_ids(host: Host, *parts: np.ndarray) -> None:
    """Refuse token ids that the host's embedding has no row for.

    Raises:
        UserError: names the host and the largest id.
    """
    rows = host.model.get_input_embeddings().weight.shape[0]
    largest = max(int(ids.max(initial=-1)) for ids in parts)
    if largest >= rows:
        raise UserError(f"the tokenizer of host '{host.spec.name}' gives token {largest}, and its embedding "
                        f"ends at token {rows - 1}; take a whole copy of the host, with its own tokenizer")
