"""What a task is: how its examples are put to a host, what a host learns from them, and how its predictions
are scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from portability.core.errors import UserError
from portability.core.specs import AnswerSpec, HostSpec, TaskSpec
from portability.data.sampling import Bucket
from portability.data.splits import StudyData
from portability.data.tokenization import Encoded, Sequences
from portability.hosts.host import Host
from portability.tasks.members import MemberMap

HEAD = ("head.weight", "head.bias")
SCORE_ROWS = 16  # scored batches are filled up to a multiple of so many examples (sampling.pad_rows)
SHOWN = 80  # characters of an example that is shown
Parameters = Mapping[str, Tensor]
Training = Encoded | Sequences  # each task has its own kind of token ids
Told = Callable[[float], None]  # of the part in [0, 1] of the work that is done


@dataclass
class Predictions:
    """Per member and example, (K, N), or per example (N,): negative log-likelihood of the right answer (nats;
    of a written answer or a choice, a token), and whether the output is invalid (its best token begins no
    label word, or it never ends).

    `margin` is the log-odds of positive, of C > 2 labels those of each but the first against it, (..., C - 1)
    (core.measures), or of the right choice against the best wrong one; `score` in [0, 1] is what an answer is
    worth. Texts with labels have no scores, written answers no margins.
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


class EvalSet(Protocol):
    """Examples to score; `labels` (N,) where they are texts with labels."""

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...


class TaskScorer(Protocol):
    """One host under one task. All of a member's parameters, its head's and what the method keeps frozen
    among them, are handed in by the names that `model` and `head` give them."""

    model: Any
    device: torch.device
    has_head: bool
    is_spread: bool  # whether a part of the host stands on another device
    each: MemberMap  # how members are stacked

    def parameters(self) -> Iterator[nn.Parameter]:
        """The host's own."""

    def rows(self, encoded: Any, picks: np.ndarray, real: int, bucket: Bucket) -> tuple[Tensor, ...]:
        """The picked training examples as tensors (*picks.shape, ...).

        Args:
            picks: (..., B) indices of examples.
            real: how many of the B are to have a loss; the others fill up.
            bucket: to whose longest example the batch is padded.
        """

    def logits(self, parameters: Parameters, *rows: Tensor) -> Tensor:
        """Logits of one member, (B, V), or (B, A, V) for the A tokens of an answer."""

    def loss(self, parameters: Parameters, *rows: Tensor, by_token: bool = False) -> Tensor:
        """Mean loss of one member's batch, nats.

        Args:
            by_token: the mean is over all answers' tokens, and not over each answer's and then over examples.
        """

    def weight(self, *rows: Tensor, by_token: bool = False) -> Tensor:
        """Of how many examples, or tokens, `loss` is the mean."""

    def predict(self, parameters: Parameters, test: Any, batch_size: int,
                on_part: Told = lambda part: None) -> Predictions:
        """Every test example as every member answers it, in the order of the examples.

        Args:
            parameters: stacked, (K, ...) each; empty for the bare host, which counts as one member.
            on_part: called after each batch with the part of the work that is done.
        """

    def scoring_bytes(self, test: Any, batch_size: int) -> int:
        """Bytes that scoring one member takes at most."""

    def fresh_head(self, seed: int) -> dict[str, Tensor]:
        """A new classification head from this seed; empty where the host has its own."""


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


class Task(Protocol):
    """How the examples of a set (`data`, `name`) are put to a host, answered and scored."""

    @property
    def spec(self) -> TaskSpec | AnswerSpec: ...

    def scorer(self, host: Host) -> TaskScorer:
        """The host under this task.

        Raises:
            UserError: the host cannot do it, or has too few positions.
        """

    def training(self, host: Host, data: StudyData, name: str) -> Training:
        """The training split in the host's tokens.

        Raises:
            UserError: an example does not fit the limit or the tokenizer.
        """

    def test(self, host: Host, data: StudyData, name: str, split: str, limit: int) -> EvalSet:
        """The test set in the host's tokens; arguments and errors as of `splits.rows`."""

    def metrics(
        self, found: Predictions, labels: np.ndarray | None, asked: Sequence[str]
    ) -> Mapping[str, float | str]:
        """The numbers of one evaluation by name, and in words why there is none.

        Raises:
            ValueError: predictions are not finite.
        """

    def too_long(self, training: Any, test: Any) -> dict[str, int]:
        """How many answers were too long for the host, where they may be; `training` is None for the bare
        host."""

    def example(
        self, host: Host, data: StudyData, name: str, split: str, limit: int
    ) -> tuple[str, list[str], list[list[int]], list[int]]:
        """The first test example: the text that is read, the answers as they follow it (none with a head),
        their tokens, and all tokens that are read."""

    def answered(
        self, host: HostSpec, data: StudyData, name: str, draw: Callable[[int], Sequence[int]]
    ) -> list[Answered]:
        """Some training examples with their right answers, as in training.

        Args:
            draw: number of examples there are -> indices of those wanted.
        """


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
