"""What strategies share that fit by another one first and then look at the task on the receiving host."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from portability.core.errors import UserError, validate_choice
from portability.core.seeds import stream_seed
from portability.core.specs import MethodSpec, TaskSpec
from portability.data.examples import LabelledText
from portability.data.sampling import BatchSampler
from portability.data.tokenization import Encoded, encode
from portability.hosts.host import Host
from portability.methods import attach
from portability.methods.base import AttachedMethod
from portability.methods.module import ModuleState
from portability.porting.base import Port, PortContext, Strategy
from portability.tasks.base import HEAD, Parameters, check_ids
from portability.tasks.classification import Scorer
from portability.tasks.members import one_at_a_time

BETAS, EPS, CLIP, WARMUP = (0.9, 0.999), 1e-8, 1.0, 20  # as conf/config.yaml's train section
BUCKET_BATCHES = 4  # the same
SCORED = 32  # examples of a forward pass that is not trained through; does not change results beyond rounding
DETACHABLE = ("peft", "portability")  # libraries that leave a host's layers as they found them
Rows = tuple[Tensor, ...]


class ComposedStrategy(Strategy):
    """A strategy that fits by another one, and then goes on with what that gives.

    Options of all of them: `of`, the other strategy (pad), and `of_options`, its options.

    Attributes:
        own: further options with their defaults: whole numbers from 1 on, a learning rate, or a tuple of
            choices of which the first is the default.
    """

    own: ClassVar[Mapping[str, Any]] = {}

    def options(self, context: PortContext) -> dict[str, Any]:
        """The port's options, checked.

        Raises:
            UserError: an unknown option, or a value that is out of range.
        """
        given, where = context.spec.options, f"port.{context.spec.name}.options"
        known = {"of": "pad", "of_options": {}, **self.own}
        for name in given:
            validate_choice(str(name), known, f"option of port '{context.spec.name}' "
                            f"({context.spec.strategy})")
        found = {name: default[0] if isinstance(default, tuple) else default
                 for name, default in known.items()} | dict(given)
        for name, default in known.items():
            value = found[name]
            if isinstance(default, tuple):
                validate_choice(str(value), default, f"{where}.{name}")
            elif isinstance(default, int) and (type(value) is not int or value < 1):
                raise UserError(f"{where}.{name} must be a whole number from 1 on, got {value!r}")
        rate = found.get("learning_rate")
        if rate is not None and not (type(rate) in (int, float) and 0 < rate < float("inf")):
            raise UserError(f"{where}.learning_rate must be a number above 0, got {rate!r}")
        if not isinstance(found["of_options"], Mapping):
            raise UserError(f"{where}.of_options must name options of port strategy '{found['of']}', got "
                            f"{found['of_options']!r}")
        return found

    def fit_of(self, module: ModuleState, context: PortContext) -> Port:
        """What the other strategy makes of a module, under this one's name.

        Raises:
            UserError: as `options`, or what the other strategy refuses.
        """
        from portability.porting.port import port

        other = self._other(context)
        done = port(module, other)
        done.report.strategy = context.spec.strategy
        done.report.notes.append(f"{context.spec.strategy} started from {other.spec.strategy}")
        return done

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The head as the other strategy fits it."""
        from portability.porting.port import fit_head

        return fit_head(head, self._other(context))

    def _other(self, context: PortContext) -> PortContext:
        found = self.options(context)
        return replace(context, spec=replace(context.spec, strategy=str(found["of"]),
                                             options=found["of_options"]))


# ---- a host under the port's task


def task_of(context: PortContext) -> TaskSpec:
    """The task that the module is for.

    Raises:
        UserError: none is given, or its answers are written or chosen.
    """
    task = context.for_task().task
    if not isinstance(task, TaskSpec):
        raise UserError(f"port strategy '{context.spec.strategy}' {context.pair} learns from texts with "
                        f"labels, and the answers of this task are scored by {task.scoring}; use another "
                        "strategy")
    return task


def bare(context: PortContext, side: int, host: Host) -> tuple[Scorer, dict[str, Tensor]]:
    """A host under the task, and the head that it answers with, on its device; of a host that scores label
    words there is none.

    Args:
        side: 0 of the origin, 1 of the receiving host.

    Raises:
        UserError: the host needs a head, and there is none, or one of other labels.
    """
    scorer = Scorer(host, task_of(context))
    scorer.each = one_at_a_time
    if not scorer.has_head:
        return scorer, {}
    heads = context.for_task().heads
    if heads is None:
        raise UserError(f"port strategy '{context.spec.strategy}' {context.pair}: host '{host.spec.name}' "
                        f"({host.family}) has no language-model head that label words could be scored by")
    head = heads[side]()
    if (count := len(head[HEAD[0]])) != scorer.count:
        raise UserError(f"port strategy '{context.spec.strategy}' {context.pair}: the head of host "
                        f"'{host.spec.name}' is of {count} labels and the task of {scorer.count}; use "
                        "another strategy, or sets of as many labels")
    return scorer, {name: value.to(scorer.device) for name, value in head.items()}


def encoded(host: Host, task: TaskSpec, rows: Sequence[LabelledText]) -> Encoded:
    """Examples in a host's tokens, as they are trained on."""
    found = encode(rows, host.tokenizer, task, host.scoring == "label")
    check_ids(host, found.ids)
    return found


def drawn(rows: Sequence[LabelledText], count: int, seed: int) -> list[LabelledText]:
    """So many of the examples without replacement, or all of them where there are less."""
    order = np.random.default_rng(stream_seed(seed, "port", "examples")).permutation(len(rows))
    return [rows[place] for place in order[:count]]


@dataclass
class Learner:
    """A host with a method attached, under the port's task.

    Attributes:
        fixed: what is not trained, by the scorer's names: the head, and what a method keeps frozen.
    """

    host: Host
    attached: AttachedMethod
    scorer: Scorer
    fixed: dict[str, Tensor]

    def parameters(self, module: ModuleState) -> dict[str, Tensor]:
        """A module's parameters by the scorer's names, on its device."""
        return {f"model.{name}": value.float().to(self.scorer.device)
                for name, value in self.attached.to_parameters(module).items()}

    def state(self, parameters: Parameters, like: ModuleState) -> ModuleState:
        """The inverse, in the number types of `like`."""
        found = self.attached.to_state({name.removeprefix("model."): value.detach().cpu()
                                        for name, value in parameters.items()})
        return like.map({slot: found.tensors[slot].to(old.dtype) for slot, old in like.tensors.items()})

    def margin(self, module: ModuleState, examples: Encoded) -> Tensor:
        """Log-odds of positive against negative for each example, (N,) float64; of C > 2 labels those of each
        but the first against it, (N, C - 1)."""
        stacked = {name: value[None] for name, value in (self.parameters(module) | self.fixed).items()}
        return torch.from_numpy(np.asarray(self.scorer.predict(stacked, examples, SCORED).margin)[0]).double()


def log_shares(margin: Tensor) -> Tensor:
    """Log-probabilities of the labels among themselves, (N, C), from `Learner.margin`."""
    if margin.ndim == 1:  # the bits that ports of two labels have
        return torch.stack([F.logsigmoid(-margin), F.logsigmoid(margin)], 1)
    return F.pad(margin, (1, 0)).log_softmax(-1)


def to_change(host: Host, method: MethodSpec) -> Host:
    """The host to put a method on: itself, or a copy where the library would leave its layers changed, which
    others that share the loaded host would read."""
    return host if method.library in DETACHABLE else replace(host, model=copy.deepcopy(host.model))


@contextmanager
def learner(context: PortContext, side: int) -> Iterator[Learner]:
    """A host with the port's method attached as long as the context lasts.

    Args:
        side: 0 of the origin, 1 of the receiving host.

    Raises:
        UserError: as `task_of` and `bare`, or the method does not fit the host.
    """
    task_of(context)
    method = context.for_task().methods[side]
    host = to_change((context.origin_host, context.receiving_host)[side](), method)
    scorer, head = bare(context, side, host)
    attached = attach(host, method)
    try:
        frozen = attached.to_frozen(None) if attached.frozen else {}
        kept = {f"model.{name}": value.to(scorer.device) for name, value in frozen.items()}
        yield Learner(host, attached, scorer, kept | head)
    finally:
        attached.detach()


# ---- updates


def updated(
    done: Port, context: PortContext, student: Learner, examples: Encoded, options: Mapping[str, Any],
    loss: Callable[[Parameters, np.ndarray, Rows], Tensor],
) -> list[float]:
    """Train a port's module in place, note it in the report, and give back the loss of each update.

    Args:
        options: updates, batch_size and learning_rate (None: the method's own).
        loss: parameters with what is fixed, the picked examples (B,) and their rows -> mean loss.

    Raises:
        UserError: a loss or gradient that is not finite.
    """
    sampler = BatchSampler(examples, options["batch_size"], BUCKET_BATCHES, "port")
    method = context.for_task().methods[1]
    if not (rate := options["learning_rate"] or method.learning_rate):
        raise UserError(f"port strategy '{context.spec.strategy}' {context.pair}: the adapter "
                        f"'{method.name}' does not say with which learning rate it was trained; name one "
                        "(--option learning_rate=0.001)")

    def of_step(theta: Parameters, step: int) -> Tensor:
        picks = sampler.examples(step, context.seed)
        made = student.scorer.rows(examples, picks, len(picks), sampler.buckets[sampler.bucket(step)[0]])
        rows = tuple(part.to(student.scorer.device) for part in made)
        return loss({**theta, **student.fixed}, picks, rows)

    try:
        theta, losses = descend(student.parameters(done.module), of_step, options["updates"], rate)
    except ArithmeticError as error:
        raise UserError(f"port strategy '{context.spec.strategy}' {context.pair} went wrong: {error}; set a "
                        f"smaller port.{context.spec.name}.options.learning_rate than {rate:g}") from error
    done.module = student.state(theta, done.module)
    done.report.updates += options["updates"]
    done.report.calibration_examples += len(examples)
    return losses


@torch.enable_grad()
def descend(
    start: Parameters, loss: Callable[[Parameters, int], Tensor], updates: int, rate: float
) -> tuple[dict[str, Tensor], list[float]]:
    """The parameters after so many updates of AdamW, and the loss before each: as training.trainer's for one
    member, with the same warm-up and clipping of the gradient's norm.

    Raises:
        ArithmeticError: a loss or gradient that is not finite.
    """
    theta = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.AdamW(list(theta.values()), lr=rate, betas=BETAS, eps=EPS, weight_decay=0.0)
    losses = []
    for step in range(updates):
        found = loss(theta, step)
        gradient = torch.autograd.grad(found, list(theta.values()), allow_unused=True, materialize_grads=True)
        norm = torch.linalg.vector_norm(torch.cat([part.reshape(-1) for part in gradient]))
        if not (found.isfinite() and norm.isfinite()):
            raise ArithmeticError(f"the loss or gradient of update {step + 1} is not finite")
        for value, part in zip(theta.values(), gradient, strict=True):
            value.grad = part * torch.clamp(CLIP / (norm + 1e-6), max=1.0)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / WARMUP)
        optimizer.step()
        losses.append(float(found.detach()))
    return {name: value.detach() for name, value in theta.items()}, losses
