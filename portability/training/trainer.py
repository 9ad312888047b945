"""Train K modules at once over one frozen host: one path, and K = 1 is the ordinary case of it.

`functional_call` over the host with the modules stacked on a leading member axis, under `vmap` with the host
unmapped. Every member has its own seed, data order, learning rate, AdamW state and gradient-norm clip, and
how runs were stacked does not change a bit of their results on a CPU.

On a GPU the same step is captured as a CUDA graph for each length of batch, so nothing in it may wait for the
device: what happens to a member (its losses, the update at which it went wrong) is kept on the device until
it is asked for.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil, fsum

import numpy as np
import torch
from torch import Tensor

from portability.core.specs import TrainSpec
from portability.data.sampling import BatchSampler, pad_rows
from portability.tasks.base import HEAD, Parameters, TaskScorer, Training
from portability.training.cuda_graphs import CudaGraphRunner

LOSS_EVERY = 10  # updates between two points of the stored training loss
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
TRAIN_ROWS = 4  # training batches are filled up to a multiple of so many examples (sampling.pad_rows)


@dataclass
class Member:
    """One run in a stack: its start (module and head parameters by the scorer's names), seed and learning
    rate, and tensors that stay as they are beside its parameters, by the scorer's names too."""

    start: Parameters
    seed: int
    learning_rate: float
    frozen: Parameters = field(default_factory=dict)


@dataclass
class Outcome:
    """What training a member gave; `failed_at` is the update whose loss or gradient was not finite."""

    # (updates done, mean loss since the last point)
    losses: list[tuple[int, float]] = field(default_factory=list)
    failed_at: int | None = None
    tokens: int = 0
    padded_tokens: int = 0


class ParameterBank:
    """All members' parameters as one tensor (K, P) on the host's device, with a view (K, *shape) per
    parameter."""

    def __init__(self, starts: Sequence[Parameters], device: torch.device):
        self.shapes = {name: value.shape for name, value in starts[0].items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        rows = [torch.cat([start[name].reshape(-1) for name in self.shapes]) for start in starts]
        self.theta = torch.stack(rows).to(device).requires_grad_()
        self.module_size = sum(size for name, size in zip(self.shapes, self.sizes, strict=True)
                               if name not in HEAD)

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """Name -> (K, *shape) views of a bank-shaped tensor, cut by one split, so that the way back is one
        concatenation."""
        parts = zip(self.shapes.items(), theta.split(self.sizes, 1), strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in parts}

    def member(self, theta: Tensor, index: int) -> dict[str, Tensor]:
        """One member's parameters, copied, in ordinary memory."""
        return {name: view[index].detach().cpu().clone() for name, view in self.views(theta).items()}


class Trainer:
    """A stack in training; `done` are the updates made, `marks` those at which it will be evaluated, and
    `averages` (K, P) what the last mark passed evaluates: the mean of the iterates of its window (`window`).
    `tails` holds the means so far of the marks whose windows are open, `frozen` (K, ...) each what is never
    trained and in no checkpoint, because it follows from the start.

    Args:
        scorer: host and head, on the device on which to train.
        members: equal in the names and shapes of their parameters and of their frozen tensors; the head,
            where there is one, comes last.
        passes: into so many parts a batch is cut, whose gradients are added up, where memory asks for it;
            equal to one pass but for rounding.
    """

    def __init__(self, scorer: TaskScorer, members: Sequence[Member], spec: TrainSpec, passes: int = 1):
        self.scorer, self.members, self.spec, self.done = scorer, list(members), spec, 0
        self.passes = passes
        self.device = scorer.device
        self.bank = ParameterBank([member.start for member in members], self.device)
        self.averages = self.bank.theta.detach().clone()
        self.marks: Sequence[int] = ()
        self.tails: dict[int, Tensor] = {}
        self.frozen = {name: torch.stack([member.frozen[name] for member in members]).to(self.device)
                       for name in members[0].frozen}
        self.optimizer, self.blocks = self._optimizer()
        self.tokens = np.zeros((2, len(self.members)), dtype=np.int64)  # real, padded
        size = len(self.members)
        self.losses = torch.zeros(spec.updates, size, device=self.device)
        self.clock = torch.zeros(1, dtype=torch.int64, device=self.device)  # `done`, as the device knows it
        self.failed_at = torch.zeros(size, dtype=torch.int64, device=self.device)  # 0: not failed
        self._replayer = CudaGraphRunner(self.device, not scorer.is_spread)

    def _optimizer(self) -> tuple[torch.optim.AdamW, list[tuple[slice, slice]]]:
        """Parameters are blocks of the bank: neighbours in rows of one learning rate, module and head apart,
        because AdamW takes no vector learning rate. AdamW works entry by entry, so blocks change no bit
        (tested)."""
        theta, cut, cuda = self.bank.theta.detach(), self.bank.module_size, self.device.type == "cuda"
        columns = [(slice(0, cut), None), (slice(cut, None), self.spec.head_learning_rate)]
        groups, blocks, at = [], [], 0
        for rate, same in groupby(member.learning_rate for member in self.members):
            rows = slice(at, at := at + len(list(same)))
            for part, own in columns[: 1 + (cut < theta.shape[1])]:
                block = torch.nn.Parameter(theta[rows, part])
                # a graph reads the rate on the device
                first = torch.zeros((), device=self.device) if cuda else 0.0
                groups.append({"params": [block], "rate": rate if own is None else own, "lr": first})
                blocks.append((rows, part))
        spec = self.spec
        return torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay,
                                 foreach=cuda or None, capturable=cuda), blocks

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of each member so far."""
        ends = [*range(LOSS_EVERY, self.done + 1, LOSS_EVERY)]
        ends += [self.done] if self.done == self.spec.updates and self.done % LOSS_EVERY else []
        spans = [((end - 1) // LOSS_EVERY * LOSS_EVERY, end) for end in ends]
        parts = (self.losses.T.tolist(), self.failed_at.tolist(), self.tokens.T.tolist())
        return [Outcome([(b, fsum(losses[a:b]) / (b - a)) for a, b in spans if not at or b < at], at or None,
                        *tokens)
                for losses, at, tokens in zip(*parts, strict=True)]

    def recent_losses(self) -> list[float]:
        """Each member's mean loss since the last multiple of LOSS_EVERY updates before the last one."""
        since = (self.done - 1) // LOSS_EVERY * LOSS_EVERY
        return [fsum(losses) / len(losses) for losses in self.losses[since : self.done].T.tolist()]

    def update(self, step: int, schedule: BatchSampler, encoded: Training) -> None:
        """One optimiser update of every member, on its own batch from the step's bucket."""
        batch = self._batch(step, schedule, encoded)
        share = rate_share(step, self.spec)
        for group in self.optimizer.param_groups:
            rate = group["rate"] * share
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        self._replayer(self._step, *batch)
        self.done = step + 1
        self._average()

    def _average(self) -> None:
        """Take the iterate into the mean of every mark in whose window it is."""
        theta = self.bank.theta.detach()
        for mark in self.marks:
            place = self.done - mark + window(mark, self.spec.tail)  # from 1 on inside the window
            if place == 1:
                self.tails[mark] = theta.clone()
            elif place > 1 and self.done <= mark:
                self.tails[mark].lerp_(theta, 1 / place)
        if self.done in self.tails:
            self.averages = self.tails.pop(self.done)

    def _batch(self, step: int, schedule: BatchSampler, encoded: Training) -> tuple[Tensor, ...]:
        """The scorer's rows, (K, B, ...) each, on the device (or on their way to it)."""
        picks = np.stack([schedule.examples(step, member.seed) for member in self.members])
        size, bucket = picks.shape[1], schedule.buckets[schedule.bucket(step)[0]]
        rows = self.scorer.rows(encoded, pad_rows(picks, TRAIN_ROWS), size, bucket)
        mask = rows[1][:, :size]
        self.tokens += np.stack([mask.sum((1, 2)).numpy(), np.full(len(picks), mask[0].numel())])
        if self.device.type != "cuda":
            return rows
        return tuple(part.pin_memory().to(self.device, non_blocking=True) for part in rows)

    def _step(self, *rows: Tensor) -> None:
        """The update itself, on the device alone. A member that went wrong goes on as numbers that are not
        finite, in its own rows: each operation here works on every row by itself."""
        losses, gradient = self._losses(rows)
        norms = torch.linalg.vector_norm(gradient, dim=1)
        gradient = gradient * torch.clamp(self.spec.clip / (norms + 1e-6), max=1.0)[:, None]
        for group, block in zip(self.optimizer.param_groups, self.blocks, strict=True):
            group["params"][0].grad = gradient[block]
        self.optimizer.step()
        self.optimizer.zero_grad()
        wrong = ~(torch.isfinite(losses) & torch.isfinite(norms)) & (self.failed_at == 0)
        self.losses.index_copy_(0, self.clock, losses[None])
        self.clock += 1
        self.failed_at.copy_(torch.where(wrong, self.clock, self.failed_at))

    def _losses(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Each member's loss of its batch, (K,), and its gradient, (K, P)."""
        by_token = self.spec.loss == "token"
        loss = self.scorer.each(lambda *member: self.scorer.loss(*member, by_token=by_token))
        weigh = self.scorer.each(lambda *member: self.scorer.weight(*member, by_token=by_token))
        parts = [rows] if self.passes == 1 else [
            [row[:, begin:end] for row in rows] for begin, end in parts_of(self.spec.batch_size, self.passes,
                                                                           rows[0].shape[1])]
        shares = [torch.ones((), device=self.device)]
        if len(parts) > 1:
            weights = [weigh(*part) for part in parts]
            shares = [weight / torch.stack(weights).sum(0) for weight in weights]
        losses, gradient = [], []
        for part, share in zip(parts, shares, strict=True):
            own = loss(self.bank.views(self.bank.theta) | self.frozen, *part)
            own = own if len(parts) == 1 else own * share
            gradient.append(torch.autograd.grad(own.sum(), self.bank.theta)[0])
            losses.append(own.detach())
        if len(parts) == 1:
            return losses[0], gradient[0]
        return torch.stack(losses).sum(0), functools.reduce(torch.add, gradient)

    # ---- what is needed to go on after a kill

    def snapshot(self, index: int) -> dict[str, Tensor]:
        """Everything that a member's next updates depend on, and its history, in ordinary memory."""
        found = {"theta": self.bank.theta.detach()[index], "losses": self.losses[: self.done, index],
                 "tokens": torch.from_numpy(self.tokens[:, index].copy())}
        found |= {f"tail.{mark}": mean[index] for mark, mean in self.tails.items()}
        groups = zip(self.optimizer.param_groups, self.blocks, strict=True)
        states = [(self.optimizer.state[group["params"][0]], index - rows.start)
                  for group, (rows, _) in groups if rows.start <= index < rows.stop]
        found |= {name: torch.cat([state[name][row] for state, row in states]) for name in MOMENTS}
        return {name: value.cpu().clone() for name, value in found.items()}

    def restore(self, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from snapshots, one a member, all made after the same number of updates (at least 1)."""
        self.done = len(snapshots[0]["losses"])
        stacked = {name: torch.stack([one[name] for one in snapshots]).to(self.device)
                   for name in snapshots[0]}
        with torch.no_grad():
            self.bank.theta.copy_(stacked["theta"])
        self.tails = {int(name.partition(".")[2]): value for name, value in stacked.items()
                      if name.startswith("tail.")}
        self.losses[: self.done] = stacked["losses"].T
        self.tokens = stacked["tokens"].T.cpu().numpy().copy()
        self.clock.fill_(self.done)
        for group, (rows, part) in zip(self.optimizer.param_groups, self.blocks, strict=True):
            moments = {name: stacked[name][rows, part].clone() for name in MOMENTS}
            step = torch.tensor(float(self.done), device=self.device if isinstance(group["lr"], Tensor)
                                else None)
            self.optimizer.state[group["params"][0]] = {"step": step, **moments}


def parts_of(size: int, passes: int, filled: int) -> list[tuple[int, int]]:
    """Where a batch of `size` examples, filled up to `filled` rows, is cut into at most so many parts, each
    with an example and of a multiple of TRAIN_ROWS rows, or of 2 or 1 where so many parts are asked for.

    Example:
        >>> parts_of(16, 4, 16), parts_of(9, 2, 12), parts_of(3, 2, 4), parts_of(3, 4, 4)
        ([(0, 4), (4, 8), (8, 12), (12, 16)], [(0, 8), (8, 12)], [(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3)])
    """
    step = ceil(size / passes)
    if step > 2:
        step = TRAIN_ROWS * ceil(step / TRAIN_ROWS)
    starts = range(0, size, step)
    return [(start, min(start + step, filled)) for start in starts]


def rate_share(step: int, spec: TrainSpec) -> float:
    """What the learning rate of an update (from 0) is multiplied by: it grows over the warm-up, and then
    stays, or falls to 0 after the last update.

    Source: linear: transformers' get_linear_schedule_with_warmup, a step later in the warm-up, which begins
        at 0 there (D-137).

    Example:
        >>> protocol = TrainSpec(8, 2, 0.0, (0.9, 0.999), 1e-8, 1.0, 0.0, 4, 1e-3, 6, schedule="linear")
        >>> [round(rate_share(step, protocol), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warm = min(1.0, (step + 1) / max(1, spec.warmup))
    if spec.schedule == "constant":
        return warm
    return warm * min(1.0, (spec.updates - step) / max(1, spec.updates - spec.warmup))


def window(mark: int, tail: float) -> int:
    """How many iterates, the mark's own and those before it, a mark averages: the share `tail` of its
    updates, rounded up.

    Source: suffix averaging (Rakhlin, Shamir & Sridharan 2012, arXiv 1109.5647, section 5); the share is our
        choice.

    Example:
        >>> window(50, 0.2), window(3, 0.2), window(200, 0.0)
        (10, 1, 1)
    """
    return max(1, ceil(mark * tail - 1e-9))


def train(trainer: Trainer, schedule: BatchSampler, encoded: Training, marks: Sequence[int],
          on_mark: Callable[[int, dict[str, Tensor], dict[str, Tensor]], None],
          on_update: Callable[[], None] = lambda: None) -> None:
    """Carry a stack through the updates it still lacks, and call `on_mark(updates, averages, last)` at each
    mark that it passes with the mark's averages and the last iterate, and what is frozen beside them.

    Args:
        marks: updates at which to evaluate, ascending, 0 for the start; parameters have shape (K, ...).
    """
    alive, trainer.marks = True, marks
    for done in range(trainer.done, trainer.spec.updates + 1):
        if done in marks:
            iterates = trainer.averages, trainer.bank.theta.detach()
            on_mark(done, *(trainer.bank.views(theta) | trainer.frozen for theta in iterates))
        if done % LOSS_EVERY == 0:
            alive = bool((trainer.failed_at == 0).any())  # waits for the device
        if done < trainer.spec.updates and alive:
            trainer.update(done, schedule, encoded)
            on_update()
