"""Absolute gradients of each example of a batch, for the kinds of parts that hosts' layers are made of."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from portability.core.errors import UserError
from portability.inits.extraction.threads import share, slices

Product = tuple[Tensor, Tensor]  # (T, M) and (T, N), for the matrix (M, N) that they make summed over T
Gradients = dict[str, Tensor | Product]
Rule = Callable[[Any, Tensor, Tensor], Gradients]


def _layer_norm(part: nn.LayerNorm, into: Tensor, out: Tensor) -> Gradients:
    normed = nn.functional.layer_norm(into, into.shape[-1:], eps=part.eps)
    return {"weight": (out * normed).sum(0), "bias": out.sum(0)}


def _rms_norm(part: LlamaRMSNorm | T5LayerNorm, into: Tensor, out: Tensor) -> Gradients:
    root = torch.rsqrt(into.square().mean(-1, keepdim=True) + part.variance_epsilon)
    return {"weight": (out * into * root).sum(0)}


RULES: dict[type[nn.Module], Rule] = {  # (part, an example's input (T, in), gradient at its output (T, out))
    nn.Linear: lambda part, into, out: {"weight": (out, into), "bias": out.sum(0)},
    Conv1D: lambda part, into, out: {"weight": (into, out), "bias": out.sum(0)},
    nn.LayerNorm: _layer_norm, LlamaRMSNorm: _rms_norm, T5LayerNorm: _rms_norm,
    nn.Embedding: lambda part, into, out: {},  # T5's table of biases, whose gradients the caller adds
}


class AbsoluteGradients:
    """Watches a layer: each backward pass adds |dL/dtheta| of every example, made absolute before it is
    added.

    A layer's gradients are never whole in memory: a matrix's gradient for one example, dY^T X, is made where
    backward passes it, some rows at a time, and added (our choice; with per-example gradients from `vmap` a
    batch would hold them all).

    Args:
        layer: weights without gradients; every part with parameters of its own must have a rule.
        where: the layer, for messages.

    Attributes:
        numbers: places among the seeds of the examples that pass now.

    Raises:
        KeyError: a part without a rule.
    """

    def __init__(self, layer: nn.Module, where: str):
        self.where, self.numbers = where, list[int]()
        self.sums = {name: torch.zeros_like(parameter) for name, parameter in layer.named_parameters()}
        for name, part in layer.named_modules():
            if any(True for _ in part.parameters(recurse=False)):
                part.register_forward_hook(functools.partial(self._watch, name, RULES[type(part)]))

    def _watch(self, name: str, rule: Rule, part: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(functools.partial(self._add, name, rule, part, inputs[0].detach()))

    def _add(self, name: str, rule: Rule, part: nn.Module, into: Tensor, gradient: Tensor) -> None:
        for place, number in enumerate(self.numbers):
            for short, found in rule(part, into[place], gradient[place]).items():
                if f"{name}.{short}" in self.sums:
                    add_absolute(self.sums[f"{name}.{short}"], found, number, self.where)


def add_absolute(total: Tensor, gradient: Tensor | Product, number: int, where: str) -> None:
    """Add a gradient's absolute values to `total`; a gradient that is whole is used up.

    Raises:
        UserError: the gradient of this seed example is not finite.
    """
    pieces, kept = slices(total), threading.local()

    def work(part: slice) -> None:
        if isinstance(gradient, Tensor):
            piece = gradient[part]
        else:
            if not hasattr(kept, "room"):  # one piece a thread, used again and again
                kept.room = torch.empty_like(total[pieces[0]])
            left, right = gradient
            piece = torch.mm(left[:, part].T, right, out=kept.room[: part.stop - part.start])
        require_finite(bool(piece.sum().isfinite()), number, where)
        total[part].add_(piece.abs_())

    share(work, pieces)


def require_finite(finite: bool, number: int, where: str) -> None:
    """Refuse the gradient of a seed example.

    Raises:
        UserError: it is not finite.
    """
    if not finite:
        raise UserError(f"seed example {number} has a gradient that is not finite at {where}; drop it, or "
                        "check the weights")
