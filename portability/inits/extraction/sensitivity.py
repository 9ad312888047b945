"""Sensitivity of a host's parameters to seed examples, layer by layer (Zhong et al. 2024, section 3.1).

The score of a parameter is |theta * dL/dtheta| summed over the seed examples, made absolute for each example;
L is the mean negative log-likelihood of that example's answer tokens (of its class, on an encoder).

Forward, layer by layer, with the states at the boundaries kept on disk; then backward, layer by layer, each
computed once more. All seeds pass a layer while it is in memory, so its scores are complete at once and never
kept on disk: activations are k x T x d x L numbers there, scores would be as many as the host has parameters.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.inits.extraction.gradients import AbsoluteGradients, add_absolute
from portability.inits.extraction.layerwise_forward import LAYERWISE, Batch, LayerwiseModel
from portability.inits.extraction.offload import Offload
from portability.inits.extraction.options import ExtractionOptions, Seed, check_seeds
from portability.inits.extraction.threads import outer, scale_by_size, times
from portability.inits.extraction.weights import EMBEDDING, Weights

Scores = tuple[str, int, dict[str, Tensor]]  # stack, layer, name inside the layer -> scores, fp32
Head = Mapping[str, Tensor]


def sensitivity(
    weights: Weights, seeds: Sequence[Seed], options: ExtractionOptions, head: Head | None = None
) -> Iterator[Scores]:
    """Scores of one layer after another, in the order of the backward pass, each to be let go before the next
    is asked for.

    Where the options ask for them, ("shared", 0, {"embedding" or "head": (vocabulary, hidden)}) stands among
    them; a tied matrix comes once, as "embedding", with both its uses added before the absolute value.

    Args:
        head: "head.weight" (C, d) and "head.bias" (C,), the linear head over the mean of an encoder's states.

    Raises:
        UserError: seeds that cannot be scored, or a gradient that is not finite.
    """
    model = LAYERWISE[weights.family](weights)
    check_seeds(seeds, weights.family, weights.shapes[EMBEDDING[weights.family]][0], model.positions, head)
    scored = FAMILIES[weights.family].scoring == "head"
    there = {name: part.to(weights.device) for name, part in (head or {}).items()} if scored else None
    return _scores(model, seeds, options, there)


def _scores(
    model: LayerwiseModel, seeds: Sequence[Seed], options: ExtractionOptions, head: Head | None
) -> Iterator[Scores]:
    weights = model.weights
    with Offload(weights.device) as offload:
        work = _Pass(model, offload, _batches(model, seeds, options.batch_size), head)
        work.forward()
        wanted = _shared(weights, options)
        head_scores = work.top("head" in wanted)
        if head_scores is not None:
            yield "shared", 0, {"head": head_scores}
        del head_scores
        yield from work.backward()
        if "embedding" in wanted:
            yield "shared", 0, {"embedding": work.embedding()}


def _shared(weights: Weights, options: ExtractionOptions) -> list[str]:
    """Of embedding and head, what is to be scored; a tied head is scored as the embedding."""
    return sorted({"embedding" if weights.tied else site for site in weights.shared if options.wanted(site)})


def ones(
    weights: Weights, seeds: Sequence[Seed], options: ExtractionOptions, head: Head | None = None
) -> Iterator[Scores]:
    """The same, with every score one: the stage switched off; seeds and head are not looked at."""
    for stack, depth in weights.spec.shape.layers.items():
        for layer in reversed(range(depth)):
            names = weights.layers[stack, layer]
            yield stack, layer, {short: torch.ones(weights.shapes[name]) for short, name in names.items()}
    for site in _shared(weights, options):
        yield "shared", 0, {site: torch.ones(weights.shapes[weights.shared[site]])}


SCORES = {"sensitivity": sensitivity, "ones": ones}


def _batches(model: LayerwiseModel, seeds: Sequence[Seed], size: int) -> list[Batch]:
    """The seeds in order of length, cut into batches."""
    order = sorted(range(len(seeds)), key=lambda number: len(seeds[number].ids))
    batches = []
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        inputs, targets, places = zip(*(model.example(seeds[number]) for number in numbers), strict=True)
        batches.append(Batch(numbers, inputs, list(targets), list(places)))
    return batches


class _Pass:
    """One forward and backward pass of all batches; states are kept on disk as "<stack>.<layer>.<batch>",
    gradients beside them."""

    def __init__(self, model: LayerwiseModel, offload: Offload, batches: list[Batch], head: Head | None):
        self.model, self.offload, self.batches, self.head = model, offload, batches, head
        self.weights = model.weights
        self.depth = self.weights.spec.shape.layers

    @torch.no_grad()
    def forward(self) -> None:
        """States at every boundary of every stack."""
        for stack in self.model.stacks:
            for place, batch in enumerate(self.batches):
                states = self.model.stem(stack, batch, self.model.looked_up(stack, batch))
                self.offload.put(f"{stack}.0.{place}", {"states": states})
            for index in range(self.depth[stack]):
                layer = self.model.layer(stack, index)
                for place, batch in enumerate(self.batches):
                    states = self.offload.get(f"{stack}.{index}.{place}")["states"]
                    states = self.model.call(stack, layer, states, batch, self._context(stack, place, batch))
                    self.offload.put(f"{stack}.{index + 1}.{place}", {"states": states})

    def _context(self, stack: str, place: int, batch: Batch) -> dict[str, Tensor]:
        context = self.model.context(stack, batch)
        if stack != self.model.stacks[0]:
            encoder = self.model.stacks[0]
            states = self.offload.get(f"{encoder}.{self.depth[encoder]}.{place}")["states"]
            context["memory"] = self.model.last(encoder, states)
        return context

    def top(self, scored: bool) -> Tensor | None:
        """Gradients at the last states of all batches; with `scored`, the head's scores (vocabulary,
        hidden)."""
        stack = self.model.stacks[-1]
        matrix = torch.empty(0) if self.head else self.weights.read(self.weights.shared["head"])
        total = torch.zeros_like(matrix) if scored else None
        for place, batch in enumerate(self.batches):
            states = self.offload.get(f"{stack}.{self.depth[stack]}.{place}")["states"].requires_grad_()
            last = self.model.last(stack, states)
            if self.head is not None:
                (gradient,) = torch.autograd.grad(_class_loss(last, batch, self.head), states)
            else:
                at_last = torch.zeros_like(last)
                for row, (into, out) in enumerate(_answers(last.detach(), matrix, batch)):
                    at_last[row, batch.first[row] : batch.first[row] + len(into)] = times(out, matrix)
                    if total is not None:
                        add_absolute(total, (out, into), batch.numbers[row], "the head")
                (gradient,) = torch.autograd.grad(last, states, at_last)
            _check(gradient, batch, "the head")
            self.offload.put(f"{stack}.gradient.{place}", {"states": gradient})
        return None if total is None else scale_by_size(total, matrix)

    def backward(self) -> Iterator[Scores]:
        """Scores of every layer, from the last stack's last layer to the first stack's first."""
        for stack in reversed(self.model.stacks):
            for index in reversed(range(self.depth[stack])):
                yield stack, index, self._layer(stack, index)
            for place, batch in enumerate(self.batches):
                self._stem(stack, place, batch)
            if stack != self.model.stacks[0]:
                self._into_encoder(stack)

    def _layer(self, stack: str, index: int) -> dict[str, Tensor]:
        """Scores of a layer; gradients are carried on to its input."""
        layer = self.model.layer(stack, index)
        where = f"{stack} layer {index}"
        tables = self.model.tables(index)
        watch = AbsoluteGradients(layer, where, tables)
        for place, batch in enumerate(self.batches):
            watch.numbers = batch.numbers
            states = self.offload.get(f"{stack}.{index}.{place}")["states"]
            leaves = {"states": states} | self._context(stack, place, batch)
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
            context = {name: leaf for name, leaf in leaves.items() if name != "states"}
            out = self.model.call(stack, layer, leaves["states"], batch, context)
            gradients = self.offload.get(f"{stack}.gradient.{place}")
            found = torch.autograd.grad(out, list(leaves.values()), gradients.pop("states"))
            named = dict(zip(leaves, found, strict=True))
            named |= {name: named[name] + earlier for name, earlier in gradients.items()}
            self.offload.put(f"{stack}.gradient.{place}", named)
            for name in tables:
                whole = self.model.table_gradients(stack, named["bias"])
                for number, gradient in zip(batch.numbers, whole, strict=True):
                    add_absolute(watch.sums[name], gradient, number, where)
        return {name: scale_by_size(total, layer.get_parameter(name)) for name, total in watch.sums.items()}

    def _stem(self, stack: str, place: int, batch: Batch) -> None:
        """Carry the gradients from before the first layer on to the looked-up rows."""
        gradients = self.offload.get(f"{stack}.gradient.{place}")
        rows = self.model.looked_up(stack, batch).requires_grad_()
        states = self.model.stem(stack, batch, rows)
        (gradient,) = torch.autograd.grad(states, rows, gradients["states"])
        self.offload.put(f"{stack}.rows.{place}", {"rows": gradient})

    def _into_encoder(self, stack: str) -> None:
        """The gradients at T5's memory become those at the encoder's last states."""
        encoder = self.model.stacks[0]
        for place in range(len(self.batches)):
            memory = self.offload.get(f"{stack}.gradient.{place}")["memory"]
            states = self.offload.get(f"{encoder}.{self.depth[encoder]}.{place}")["states"].requires_grad_()
            (gradient,) = torch.autograd.grad(self.model.last(encoder, states), states, memory)
            self.offload.put(f"{encoder}.gradient.{place}", {"states": gradient})

    def embedding(self) -> Tensor:
        """Scores (vocabulary, hidden) of the word embedding, with its use as the head where the host ties
        them."""
        matrix = self.weights.read(EMBEDDING[self.weights.family], finite=False)  # no example may use a row
        total = torch.zeros_like(matrix)
        tied = self.weights.tied and "head" in self.weights.shared
        for place, batch in enumerate(self.batches):
            rows = {stack: self.offload.get(f"{stack}.rows.{place}")["rows"] for stack in self.model.stacks}
            answers = self._last_answers(place, batch, matrix) if tied else iter(())
            for row, number in enumerate(batch.numbers):
                ids = torch.cat([batch.ids[stack][row] for stack in rows])
                gradients = torch.cat([part[row] for part in rows.values()])
                if self.model.ignored is not None:
                    gradients = gradients * (ids != self.model.ignored)[:, None]
                if tied:
                    into, out = next(answers)
                    gradient = outer(out, into).index_add_(0, ids, gradients)
                    add_absolute(total, gradient, number, "the embedding")
                else:
                    once, where = ids.unique(return_inverse=True)
                    gradient = torch.zeros(len(once), matrix.shape[1]).index_add_(0, where, gradients)
                    _check(gradient[None], batch, "the embedding", row)
                    total[once] += gradient.abs_()
        return scale_by_size(total, matrix)

    def _last_answers(self, place: int, batch: Batch, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        stack = self.model.stacks[-1]
        states = self.offload.get(f"{stack}.{self.depth[stack]}.{place}")["states"]
        return _answers(self.model.last(stack, states), matrix, batch)


def _answers(last: Tensor, matrix: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Per example, the states (n, d) that predict its answer and the loss's gradient (n, V) at their
    logits."""
    for row, target in enumerate(batch.targets):
        into = last[row, batch.first[row] : batch.first[row] + len(target)]
        out = times(into, matrix.T).softmax(-1)
        out[torch.arange(len(target)), target] -= 1
        yield into, out / len(target)


def _class_loss(last: Tensor, batch: Batch, head: Head) -> Tensor:
    """Sum over the examples of the loss of a linear head over the mean of the real tokens' states (as
    classification.Scorer)."""
    real = batch.real["encoder"][..., None]
    pooled = (last * real).sum(1) / real.sum(1)
    logits = nn.functional.linear(pooled, head["head.weight"].float(), head["head.bias"].float())
    return nn.functional.cross_entropy(logits, torch.cat(batch.targets), reduction="sum")


def _check(gradient: Tensor, batch: Batch, where: str, row: int = 0) -> None:
    """Refuse a gradient (B, ...) that is not finite, by the number of its example."""
    for place, one in enumerate(gradient, row):
        if not torch.isfinite(one).all():
            raise UserError(f"seed example {batch.numbers[place]} has a gradient that is not finite at "
                            f"{where}; drop it, or check the weights")
