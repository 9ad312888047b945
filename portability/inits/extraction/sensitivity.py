"""Sensitivity of a host's parameters to seed examples, layer by layer (Zhong et al. 2024, section 3.1).

The score of a parameter is |theta * dL/dtheta| summed over the seed examples, made absolute for each example;
L is the mean negative log-likelihood of that example's answer tokens (of its class, on an encoder).

Forward, layer by layer, with the states at the boundaries kept on disk; then backward, layer by layer, each
computed once more. All seeds pass a layer while it is in memory, so its scores are complete at once and never
kept on disk: activations are k x T x d x L numbers there, scores would be as many as the host has parameters.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from portability.core.errors import UserError
from portability.inits.extraction import layerwise
from portability.inits.extraction.options import ExtractionOptions
from portability.inits.extraction.threads import outer, scale_by_size, times
from portability.inits.extraction.weights import Weights
from portability.tasks.base import Answered

Named = dict[str, Tensor]
Scores = tuple[str, int, Named]  # stack, layer, name inside the layer -> scores, fp32
Head = Mapping[str, Tensor]


class Offload(tempfile.TemporaryDirectory):
    """Named sets of tensors in a temporary folder (under TMPDIR), which goes with the `with` block; read to a
    device."""

    def __init__(self, device: str = "cpu"):
        super().__init__(prefix="extraction-")
        self.device = device

    def __enter__(self) -> "Offload":
        return self

    def put(self, name: str, **tensors: Tensor) -> None:
        """Write a set, in place of what had the name."""
        path = Path(self.name, name)
        path.unlink(missing_ok=True)  # safetensors before 0.8 writes into a file that may be mapped
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)

    def get(self, name: str) -> Named:
        """Read a set."""
        return load_file(Path(self.name, name), self.device)


def check_seeds(seeds: Sequence[Answered], weights: Weights, head: Head | None) -> None:
    """Refuse seed examples that the teacher cannot be scored on.

    Raises:
        UserError: no seeds, an empty or missing answer, an unknown id, too long, or no head for an encoder.
    """
    model, vocabulary = layerwise.LayerwiseModel(weights), weights.shapes[weights.shared["embedding"]][0]
    if not seeds:
        raise UserError("extraction needs at least one seed example, and got none")
    if model.encoder and head is None:
        raise UserError(f"sensitivity on a {model.family} teacher needs its classification head")
    for number, seed in enumerate(seeds):
        answered = (seed.label is not None if model.encoder else len(seed.target) if model.family == "t5"
                    else 1 <= seed.start < len(seed.ids))
        unknown = [token for token in (*seed.ids, *seed.target) if not 0 <= token < vocabulary]
        said = [
            "no tokens" if not len(seed.ids) else "",
            "" if answered else "no answer (label, target or start, by the teacher's family)",
            f"token {unknown[0]}, but the teacher has {vocabulary}; use its own tokenizer" if unknown else "",
            f"{len(seed.ids)} tokens, but the teacher has {model.positions} positions"
            if model.positions and len(seed.ids) - (not model.encoder) > model.positions else "",
        ]
        if wrong := next(filter(None, said), None):
            raise UserError(f"seed example {number} has {wrong}")


def sensitivity(
    weights: Weights, seeds: Sequence[Answered], options: ExtractionOptions, head: Head | None = None
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
    check_seeds(seeds, weights, head)
    wanted = _shared(weights, options)
    with Offload(weights.device) as offload:
        work = _Pass(layerwise.LayerwiseModel(weights), offload, seeds, options.batch_size, head)
        work.forward()
        head_scores = work.top("head" in wanted)
        if head_scores is not None:
            yield "shared", 0, {"head": head_scores}
        del head_scores
        yield from work.backward()
        if "embedding" in wanted:
            yield "shared", 0, {"embedding": work.embedding()}


def ones(weights: Weights, options: ExtractionOptions) -> Iterator[Scores]:
    """The same, with every score one: the stage switched off."""
    for (stack, layer), names in reversed(weights.layers.items()):
        yield stack, layer, {short: torch.ones(weights.shapes[name]) for short, name in names.items()}
    for site in _shared(weights, options):
        yield "shared", 0, {site: torch.ones(weights.shapes[weights.shared[site]])}


def _shared(weights: Weights, options: ExtractionOptions) -> list[str]:
    """Of embedding and head, what is to be scored; a tied head is scored as the embedding."""
    return sorted({"embedding" if weights.tied else site for site in weights.shared if options.wanted(site)})


class _Pass:
    """One forward and backward pass of all seeds, in batches by length; states are kept on disk as
    "<stack>.<layer>.<batch>", gradients beside them."""

    def __init__(self, model: layerwise.LayerwiseModel, offload: Offload, seeds: Sequence[Answered],
                 size: int, head: Head | None):
        self.model, self.offload, self.weights = model, offload, model.weights
        self.depth, self.first, self.final = self.weights.spec.shape.layers, model.stacks[0], model.stacks[-1]
        self.head = head and {name: part.to(self.weights.device) for name, part in head.items()}
        order = sorted(range(len(seeds)), key=lambda number: len(seeds[number].ids))
        self.batches: list[layerwise.Batch] = []
        for numbers in (order[first : first + size] for first in range(0, len(order), size)):
            inputs, targets, places = zip(*(model.example(seeds[number]) for number in numbers), strict=True)
            self.batches.append(layerwise.Batch(numbers, inputs, list(targets), list(places)))

    def _states(self, stack: str, index: int | str, place: int) -> Tensor:
        return self.offload.get(f"{stack}.{index}.{place}")["states"]

    def _last(self, stack: str, place: int) -> Tensor:
        return self._states(stack, self.depth[stack], place)

    @torch.no_grad()
    def forward(self) -> None:
        """States at every boundary of every stack."""
        for stack in self.model.stacks:
            for place, batch in enumerate(self.batches):
                states = self.model.stem(stack, batch, self.model.looked_up(stack, batch))
                self.offload.put(f"{stack}.0.{place}", states=states)
            for index in range(self.depth[stack]):
                layer = self.model.layer(stack, index)
                for place, batch in enumerate(self.batches):
                    states, context = self._states(stack, index, place), self._context(stack, place, batch)
                    states = self.model.call(stack, layer, states, batch, context)
                    self.offload.put(f"{stack}.{index + 1}.{place}", states=states)

    def _context(self, stack: str, place: int, batch: layerwise.Batch) -> Named:
        """What all layers of a stack read beside their states (layerwise.LayerwiseModel.call)."""
        if self.model.family != "t5":
            return {}
        context = {"bias": self.model.bias(stack, batch)}
        if stack != self.first:
            context["memory"] = self.model.last(self.first, self._last(self.first, place))
        return context

    def top(self, scored: bool) -> Tensor | None:
        """Gradients at the last states of all batches; with `scored`, the head's scores (vocabulary,
        hidden)."""
        matrix = torch.empty(0) if self.model.encoder else self.weights.read(self.weights.shared["head"])
        total = torch.zeros_like(matrix) if scored else None
        for place, batch in enumerate(self.batches):
            states = self._last(self.final, place).requires_grad_()
            last = self.model.last(self.final, states)
            if self.model.encoder and self.head is not None:
                (gradient,) = torch.autograd.grad(_class_loss(last, batch, self.head), states)
            else:
                at_last = torch.zeros_like(last)
                for row, (into, out) in enumerate(_answers(last.detach(), matrix, batch)):
                    at_last[row, batch.first[row] : batch.first[row] + len(into)] = times(out, matrix)
                    if total is not None:
                        layerwise.add_absolute(total, (out, into), batch.numbers[row], "the head")
                (gradient,) = torch.autograd.grad(last, states, at_last)
            for number, one in zip(batch.numbers, gradient, strict=True):
                layerwise.require_finite(bool(one.isfinite().all()), number, "the head")
            self.offload.put(f"{self.final}.gradient.{place}", states=gradient)
        return None if total is None else scale_by_size(total, matrix)

    def backward(self) -> Iterator[Scores]:
        """Scores of every layer, from the last stack's last layer to the first stack's first. Gradients are
        carried on to the looked-up rows, and those at T5's memory to the encoder's last states."""
        for stack in reversed(self.model.stacks):
            for index in reversed(range(self.depth[stack])):
                yield stack, index, self._layer(stack, index)
            for place, batch in enumerate(self.batches):
                gradients = self.offload.get(f"{stack}.gradient.{place}")
                rows = self.model.looked_up(stack, batch).requires_grad_()
                states = self.model.stem(stack, batch, rows)
                (gradient,) = torch.autograd.grad(states, rows, gradients["states"])
                self.offload.put(f"{stack}.rows.{place}", states=gradient)
                if stack != self.first:
                    states = self._last(self.first, place).requires_grad_()
                    memory = self.model.last(self.first, states)
                    (gradient,) = torch.autograd.grad(memory, states, gradients["memory"])
                    self.offload.put(f"{self.first}.gradient.{place}", states=gradient)

    def _layer(self, stack: str, index: int) -> Named:
        """Scores of a layer; gradients are carried on to its input."""
        layer, where = self.model.layer(stack, index), f"{stack} layer {index}"
        watch = layerwise.AbsoluteGradients(layer, where)
        for place, batch in enumerate(self.batches):
            watch.numbers = batch.numbers
            leaves = {"states": self._states(stack, index, place)} | self._context(stack, place, batch)
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
            out = self.model.call(stack, layer, leaves["states"], batch, leaves)
            gradients = self.offload.get(f"{stack}.gradient.{place}")
            found = torch.autograd.grad(out, list(leaves.values()), gradients.pop("states"))
            named = dict(zip(leaves, found, strict=True))
            named |= {name: named[name] + earlier for name, earlier in gradients.items()}
            self.offload.put(f"{stack}.gradient.{place}", **named)
            if layerwise.TABLE in watch.sums:
                whole = self.model.table_gradients(stack, named["bias"])
                for number, gradient in zip(batch.numbers, whole, strict=True):
                    layerwise.add_absolute(watch.sums[layerwise.TABLE], gradient, number, where)
        return {name: scale_by_size(total, layer.get_parameter(name)) for name, total in watch.sums.items()}

    def embedding(self) -> Tensor:
        """Scores (vocabulary, hidden) of the word embedding, with its use as the head where the host ties
        them."""
        matrix = self.weights.read(self.weights.shared["embedding"], finite=False)  # of rows nobody may use
        total = torch.zeros_like(matrix)
        tied = self.weights.tied and "head" in self.weights.shared
        for place, batch in enumerate(self.batches):
            rows = {stack: self._states(stack, "rows", place) for stack in self.model.stacks}
            last = self.model.last(self.final, self._last(self.final, place)) if tied else None
            answers = iter(()) if last is None else _answers(last, matrix, batch)
            for row, number in enumerate(batch.numbers):
                ids = torch.cat([batch.ids[stack][row] for stack in rows])
                gradients = torch.cat([part[row] for part in rows.values()])
                if self.model.ignored is not None:
                    gradients = gradients * (ids != self.model.ignored)[:, None]
                if tied:
                    into, out = next(answers)
                    gradient = outer(out, into).index_add_(0, ids, gradients)
                    layerwise.add_absolute(total, gradient, number, "the embedding")
                else:
                    once, where = ids.unique(return_inverse=True)
                    gradient = torch.zeros(len(once), matrix.shape[1]).index_add_(0, where, gradients)
                    layerwise.require_finite(bool(gradient.isfinite().all()), number, "the embedding")
                    total[once] += gradient.abs_()
        return scale_by_size(total, matrix)


def _answers(last: Tensor, matrix: Tensor, batch: layerwise.Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Per example, the states (n, d) that predict its answer and the loss's gradient (n, V) at their
    logits."""
    for row, target in enumerate(batch.targets):
        into = last[row, batch.first[row] : batch.first[row] + len(target)]
        out = times(into, matrix.T).softmax(-1)
        out[torch.arange(len(target)), target] -= 1
        yield into, out / len(target)


def _class_loss(last: Tensor, batch: layerwise.Batch, head: Head) -> Tensor:
    """Sum over the examples of the loss of a linear head over the mean of the real tokens' states (as
    classification.Scorer)."""
    real = batch.real["encoder"][..., None]
    pooled = (last * real).sum(1) / real.sum(1)
    logits = nn.functional.linear(pooled, head["head.weight"].float(), head["head.bias"].float())
    return nn.functional.cross_entropy(logits, torch.cat(batch.targets), reduction="sum")
