"""A host's forward pass taken apart at its layers, with transformers' own layers, loaded one at a time; and
the absolute gradients of each example of a batch, for the kinds of parts that these layers are made of."""

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.roberta import modeling_roberta
from transformers.models.t5 import modeling_t5
from transformers.pytorch_utils import Conv1D

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.hosts.attention import causal_mask, padding_mask
from portability.inits.extraction.threads import share, slices, times
from portability.inits.extraction.weights import Weights
from portability.tasks.base import Answered

Named = dict[str, Tensor]
Product = tuple[Tensor, Tensor]  # (T, M) and (T, N), for the matrix (M, N) that they make summed over T
Gradients = dict[str, Tensor | Product]
Rule = Callable[[Any, Tensor, Tensor], Gradients]
NORMS = {"llama": "norm", "gpt2": "ln_f", "t5": "{stack}.final_layer_norm"}  # after the last layer
TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"  # inside layer 0 of each of T5's stacks


class Batch:
    """Answered examples that go through a layer together, padded on the right.

    Attributes:
        numbers: place of each example among the seeds.
        ids: stack -> (B, T) token ids, padded with 0.
        real: stack -> (B, T) 1 for real tokens, 0 for padding, fp32.
        targets: per example, the answer's tokens (n,), or its class (1,) on an encoder.
        first: per example, the position whose state predicts the answer's first token.
    """

    def __init__(
        self, numbers: Sequence[int], inputs: Sequence[Named], targets: list[Tensor], first: list[int]
    ):
        self.numbers, self.targets, self.first = list(numbers), targets, first
        self.ids = {s: nn.utils.rnn.pad_sequence([i[s] for i in inputs], batch_first=True) for s in inputs[0]}
        self.real = {s: nn.utils.rnn.pad_sequence([torch.ones(len(i[s])) for i in inputs], batch_first=True)
                     for s in inputs[0]}


class LayerwiseModel:
    """The parts of a host: embedding, layers, and what comes after the last layer.

    Attributes:
        stacks: in the order in which they are read.
        encoder: whether the host is an encoder alone, whose last states a classification head reads.
        positions: tokens a text may have, or None where positions are relative.
        ignored: token whose embedding row gets no gradient (`padding_idx` of the host's embedding), or None.
    """

    def __init__(self, weights: Weights):
        self.weights, self.config, self.family = weights, weights.config, weights.family
        self.stacks = list(weights.spec.shape.layers)
        self.encoder = FAMILIES[self.family].scoring == "head"
        self.ignored: int | None = weights.base.get_input_embeddings().padding_idx
        self.positions: int | None = getattr(self.config, "max_position_embeddings", None)
        if self.family == "roberta" and self.positions:
            self.positions -= self.config.pad_token_id + 1  # rows of no position
        if self.family == "llama":
            self.rotary = modeling_llama.LlamaRotaryEmbedding(self.config)

    def example(self, seed: Answered) -> tuple[Named, Tensor, int]:
        """Inputs of each stack, targets, and the position that predicts the first of them.

        No host reads the answer's last token, because nothing is predicted after it; T5's decoder begins with
        its start token. An encoder reads the text, and its target is the class.
        """
        ids, target = torch.tensor(list(seed.ids)), torch.tensor(list(seed.target))
        if self.family == "t5":
            start = torch.tensor([self.config.decoder_start_token_id])
            return {"encoder": ids, "decoder": torch.cat([start, target[:-1]])}, target, 0
        if self.encoder:
            return {"encoder": ids}, torch.tensor([seed.label]), 0
        return {"decoder": ids[:-1]}, ids[seed.start :], seed.start - 1

    def looked_up(self, stack: str, batch: Batch) -> Tensor:
        """(B, T, d) rows of the word embedding."""
        return self.weights.read(self.weights.shared["embedding"], batch.ids[stack])

    def stem(self, stack: str, batch: Batch, rows: Tensor) -> Tensor:
        """(B, T, d) states before the first layer, from the looked-up rows: with learned positions, on
        encoders types too, normed. RoBERTa counts positions over tokens that are not its padding."""
        read, places = self.weights.read, torch.arange(rows.shape[1])
        if self.family == "gpt2":
            return rows + read("wpe.weight", places)
        if not self.encoder:
            return rows
        if self.family == "roberta":
            places = modeling_roberta.create_position_ids_from_input_ids(
                batch.ids[stack], self.config.pad_token_id)
        rows = rows + read("embeddings.token_type_embeddings.weight")[0]
        rows = rows + read("embeddings.position_embeddings.weight", places)
        weight, bias = (read(f"embeddings.LayerNorm.{name}") for name in ("weight", "bias"))
        return nn.functional.layer_norm(rows, rows.shape[-1:], weight, bias, self.config.layer_norm_eps)

    def layer(self, stack: str, index: int) -> nn.Module:
        """A layer with its weights, in fp32, without gradients."""
        names = self.weights.layers[stack, index]
        path = FAMILIES[self.family].layer.format(stack=stack, layer=index)
        module = copy.deepcopy(self.weights.base.get_submodule(path))
        module.load_state_dict({short: self.weights.read(name) for short, name in names.items()}, assign=True)
        module.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.Linear | Conv1D):
                matrix = part.weight if isinstance(part, Conv1D) else part.weight.T
                part.forward = functools.partial(_linear, matrix, part.bias)  # type: ignore[method-assign]
        if self.family == "gpt2":  # the causal mask is no weight and is made here
            size = self.config.max_position_embeddings
            module.get_submodule("attn").bias = torch.ones(1, 1, size, size, dtype=torch.bool).tril()
        return module.eval()

    def call(self, stack: str, layer: nn.Module, states: Tensor, batch: Batch, context: Named) -> Tensor:
        """(B, T, d) states after a layer; `context` is what all layers of a stack read beside their states,
        each with the batch first: a T5's "bias", and "memory", the encoder's normed states."""
        mask, places = _mask(stack, batch), torch.arange(states.shape[1])
        if self.family == "llama":
            out = layer(states, attention_mask=mask, position_ids=places[None],
                        position_embeddings=self.rotary(states, places[None]))
        elif self.family == "t5":
            memory = {"encoder_hidden_states": context["memory"],
                      "encoder_decoder_position_bias": _mask("encoder", batch)} if "memory" in context else {}
            out = layer(states, position_bias=context["bias"] + mask, cache_position=places, **memory)
        else:
            out = layer(states, attention_mask=mask)
        return out if isinstance(out, Tensor) else out[0]

    def last(self, stack: str, states: Tensor) -> Tensor:
        """(B, T, d) states as the head reads them: after the last norm, and scaled by a T5 whose head is the
        embedding."""
        if self.family not in NORMS:
            return states
        name = NORMS[self.family].format(stack=stack)
        norm = copy.deepcopy(self.weights.base.get_submodule(name))
        values = {short: self.weights.read(f"{name}.{short}") for short in norm.state_dict()}
        norm.load_state_dict(values, assign=True)
        scaled = self.family == "t5" and self.weights.tied and stack == "decoder"
        return norm.requires_grad_(False)(states) * (self.config.d_model**-0.5 if scaled else 1.0)

    # ---- T5's relative biases, from a table in each stack's first layer

    def bias(self, stack: str, batch: Batch) -> Tensor:
        """(B, heads, T, T), one copy an example."""
        count, size = batch.ids[stack].shape
        table = self.weights.read(self.weights.layers[stack, 0][TABLE])
        bias = table[self._buckets(stack, size)].permute(2, 0, 1)
        return bias.expand(count, -1, -1, -1).contiguous()

    def table_gradients(self, stack: str, bias: Tensor) -> Iterator[Tensor]:
        """The table's gradient for each example, from those of the biases that were read from it."""
        rows = self._buckets(stack, bias.shape[-1]).flatten()
        for one in bias:
            empty = torch.zeros(self.config.relative_attention_num_buckets, len(one))
            yield empty.index_add_(0, rows, one.flatten(1).T)

    def _buckets(self, stack: str, size: int) -> Tensor:
        """(T, T) row of the table for each query and key."""
        places = torch.arange(size)
        return modeling_t5.T5Attention._relative_position_bucket(
            places[None] - places[:, None], stack == "encoder", self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance)


def _linear(matrix: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    """What a linear part with a matrix (in, out) makes of states, on all threads."""
    out = times(states, matrix)
    return out if bias is None else out + bias


def _mask(stack: str, batch: Batch) -> Tensor:
    return (causal_mask if stack == "decoder" else padding_mask)(batch.real[stack])


# ---- gradients


def _layer_norm(part: nn.LayerNorm, into: Tensor, out: Tensor) -> Gradients:
    normed = nn.functional.layer_norm(into, into.shape[-1:], eps=part.eps)
    return {"weight": (out * normed).sum(0), "bias": out.sum(0)}


def _rms_norm(part: Any, into: Tensor, out: Tensor) -> Gradients:
    root = torch.rsqrt(into.square().mean(-1, keepdim=True) + part.variance_epsilon)
    return {"weight": (out * into * root).sum(0)}


RULES: dict[type[nn.Module], Rule] = {  # (part, an example's input (T, in), gradient at its output (T, out))
    nn.Linear: lambda part, into, out: {"weight": (out, into), "bias": out.sum(0)},
    Conv1D: lambda part, into, out: {"weight": (into, out), "bias": out.sum(0)},
    nn.LayerNorm: _layer_norm, modeling_llama.LlamaRMSNorm: _rms_norm, modeling_t5.T5LayerNorm: _rms_norm,
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
