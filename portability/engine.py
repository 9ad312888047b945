"""Train K modules at once over one frozen host: one path, and K = 1 is the ordinary case of it.

`functional_call` over the host with the modules stacked on a leading member axis, under `vmap` with the host
unmapped. Every member has its own seed, data order, learning rate, AdamW state and gradient-norm clip, and how runs
were stacked does not change a bit of their results on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional as F

from portability.batches import Schedule, pad
from portability.data import Encoded
from portability.scorer import HEAD, Scorer
from portability.spec import TrainSpec

Parameters = Mapping[str, Tensor]
LOSS_EVERY = 10  # updates between two points of the stored training loss


@dataclass
class Member:
    """One run in a stack: its start (module and head parameters by the scorer's names), seed and learning rate."""

    start: Parameters
    seed: int
    learning_rate: float


@dataclass
class Outcome:
    """What training a member gave; `failed_at` is the update whose loss or gradient was not finite."""

    losses: list[tuple[int, float]] = field(default_factory=list)  # (updates done, mean loss since the last point)
    failed_at: int | None = None
    tokens: int = 0
    padded_tokens: int = 0


class Bank:
    """All members' parameters as one tensor (K, P), with a view (K, *shape) per parameter."""

    def __init__(self, starts: Sequence[Parameters]):
        self.shapes = {name: value.shape for name, value in starts[0].items()}
        rows = [torch.cat([start[name].reshape(-1) for name in self.shapes]) for start in starts]
        self.theta = torch.stack(rows).requires_grad_()
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.offsets = dict(zip(self.shapes, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self.head_from = min((self.offsets[name] for name in HEAD if name in self.shapes), default=sum(sizes))

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """Name -> (K, *shape) views of a bank-shaped tensor."""
        return {name: theta[:, at : at + self.shapes[name].numel()].reshape(-1, *self.shapes[name])
                for name, at in self.offsets.items()}

    def member(self, theta: Tensor, index: int) -> dict[str, Tensor]:
        """One member's parameters, copied."""
        return {name: view[index].detach().clone() for name, view in self.views(theta).items()}


def logits_of(scorer: Scorer, parameters: Parameters, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (B, V) of one member. `tie_weights` is off because adapters shares its prefix pool between layers under
    several names, and swapping all of them leaves a dead tensor behind."""
    return functional_call(scorer, dict(parameters), (ids, mask), tie_weights=False)


def _loss(scorer: Scorer, parameters: Parameters, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(scorer, parameters, ids, mask), target)


class Trainer:
    """A stack in training; `averages` holds the moving averages that marks evaluate."""

    def __init__(self, scorer: Scorer, members: Sequence[Member], spec: TrainSpec):
        self.scorer, self.members, self.spec = scorer, members, spec
        self.bank = Bank([member.start for member in members])
        self.averages = self.bank.theta.detach().clone()
        self.outcomes = [Outcome() for _ in members]
        self.optimizer, self.rows = self._optimizer()
        self.targets = torch.tensor(scorer.label_ids)
        self._window: list[Tensor] = []

    def _optimizer(self) -> tuple[torch.optim.AdamW, list[list[torch.nn.Parameter]]]:
        """A parameter group for each member's row (and head), because AdamW takes no vector learning rate."""
        rows, groups = [], []
        for row, member in zip(self.bank.theta.detach(), self.members, strict=True):
            parts = [torch.nn.Parameter(part) for part in (row[: self.bank.head_from], row[self.bank.head_from :])
                     if part.numel()]
            rates = (member.learning_rate, self.spec.head_learning_rate)
            groups += [{"params": [part], "rate": rate} for part, rate in zip(parts, rates, strict=False)]
            rows.append(parts)
        spec = self.spec
        return torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay), rows

    def update(self, step: int, schedule: Schedule, encoded: Encoded) -> None:
        """One optimiser update of every living member, on its own batch from the step's bucket."""
        ids, mask, target = self._batch(step, schedule, encoded)
        self.bank.theta.grad = None
        each = vmap(lambda *member: _loss(self.scorer, *member))
        losses = each(self.bank.views(self.bank.theta), ids, mask, target)
        losses.sum().backward()
        self._clip_and_step(step, losses.detach())
        alive = torch.tensor([outcome.failed_at is None for outcome in self.outcomes])
        self.averages[alive] = torch.lerp(self.averages[alive], self.bank.theta.detach()[alive], 1 - self.spec.ema_decay)
        self._window.append(losses.detach())
        if len(self._window) == LOSS_EVERY or step + 1 == self.spec.updates:
            mean = torch.stack(self._window).mean(0).tolist()
            for outcome, value in zip(self.outcomes, mean, strict=True):
                if outcome.failed_at is None:
                    outcome.losses.append((step + 1, value))
            self._window.clear()

    def _batch(self, step: int, schedule: Schedule, encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and masks (K, B, T), target tokens (K, B)."""
        length = schedule.buckets[schedule.bucket(step)[0]].length
        parts = []
        for member, outcome in zip(self.members, self.outcomes, strict=True):
            picks = schedule.examples(step, member.seed)
            ids, mask = pad([encoded.row(i) for i in picks], length)
            parts.append((ids, mask, self.targets[torch.from_numpy(np.asarray(encoded.labels)[picks].astype(np.int64))]))
            outcome.tokens += int(mask.sum())
            outcome.padded_tokens += mask.numel()
        ids, mask, target = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        return ids, mask, target

    def _clip_and_step(self, step: int, losses: Tensor) -> None:
        warm = min(1.0, (step + 1) / max(1, self.spec.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * warm
        gradients = self.bank.theta.grad
        assert gradients is not None
        for row, gradient, loss, outcome in zip(self.rows, gradients, losses, self.outcomes, strict=True):
            norm = torch.linalg.vector_norm(gradient)
            if outcome.failed_at is None and not (torch.isfinite(loss) and torch.isfinite(norm)):
                outcome.failed_at = step + 1
            clipped = gradient * torch.clamp(self.spec.clip / (norm + 1e-6), max=1.0)
            halves = (clipped[: self.bank.head_from], clipped[self.bank.head_from :])
            for part, half in zip(row, halves, strict=False):
                part.grad = None if outcome.failed_at is not None else half
        self.optimizer.step()


def train(trainer: Trainer, schedule: Schedule, encoded: Encoded, marks: Sequence[int],
          on_mark: Callable[[int, dict[str, Tensor]], None], on_update: Callable[[], None] = lambda: None) -> None:
    """Carry a stack through its updates, and call `on_mark(updates, parameters)` with the averages at each mark.

    Args:
        marks: updates at which to evaluate, ascending, 0 for the start; parameters have shape (K, ...).
    """
    for done in range(trainer.spec.updates + 1):
        if done in marks:
            on_mark(done, trainer.bank.views(trainer.averages))
        if done < trainer.spec.updates and any(outcome.failed_at is None for outcome in trainer.outcomes):
            trainer.update(done, schedule, encoded)
            on_update()


@dataclass
class Predictions:
    """Per member and example, (K, N): log-odds of positive, negative log-likelihood of the label, invalid output."""

    margin: np.ndarray
    nll: np.ndarray
    invalid: np.ndarray


def _stacked_logits(scorer: Scorer, parameters: Parameters, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (K, B, V) of all members on the same batch."""
    if not parameters:
        return logits_of(scorer, {}, ids, mask)[None]
    return vmap(lambda p, i, m: logits_of(scorer, p, i, m), in_dims=(0, None, None))(dict(parameters), ids, mask)


@torch.no_grad()
def predict(scorer: Scorer, parameters: Parameters, encoded: Encoded, batch_size: int) -> Predictions:
    """Score every example with every member, in the order of the examples.

    Args:
        parameters: stacked, (K, ...) each; empty for the bare host, which counts as one member.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    labels = torch.from_numpy(np.asarray(encoded.labels).astype(np.int64))
    negative, positive = scorer.label_ids
    targets, out = torch.tensor(scorer.label_ids), []
    for first in range(0, len(order), batch_size):
        picks = order[first : first + batch_size]
        ids, mask = pad([encoded.row(i) for i in picks], int(encoded.lengths[picks].max()))
        logits = _stacked_logits(scorer, parameters, ids, mask)
        scores = logits.float().log_softmax(-1)
        target = targets[labels[picks]].expand(len(scores), -1)
        nll = -scores.gather(-1, target[..., None]).squeeze(-1)
        best = scores.argmax(-1)
        out.append((scores[..., positive] - scores[..., negative], nll, (best != negative) & (best != positive)))
    back = np.argsort(order)
    margin, nll, invalid = (torch.cat(part, 1).numpy()[:, back] for part in zip(*out, strict=True))
    return Predictions(margin, nll, invalid)
