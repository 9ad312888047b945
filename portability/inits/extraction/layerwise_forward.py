"""A host's forward pass taken apart at its layers, with transformers' own layers, loaded one at a time."""

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.roberta import modeling_roberta
from transformers.models.t5 import modeling_t5
from transformers.pytorch_utils import Conv1D

from portability.core.errors import UserError
from portability.hosts.attention import causal_mask, padding_mask
from portability.inits.extraction.offload import Named
from portability.inits.extraction.options import Seed
from portability.inits.extraction.threads import times
from portability.inits.extraction.weights import EMBEDDING, LAYER, Weights


def _linear(matrix: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    """What a linear part with a matrix (in, out) makes of states, on all threads."""
    out = times(states, matrix)
    return out if bias is None else out + bias


class Batch:
    """Seed examples that go through a layer together, padded on the right.

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


class LayerwiseModel(ABC):
    """The parts of one family: embedding, layers, and what comes after the last layer.

    Attributes:
        norm: the norm after the last layer, by its name in the model, if the family has one.
        positions: tokens a text may have, or None where positions are relative.
        ignored: token whose embedding row gets no gradient (`padding_idx` of the host's embedding), or None.
        scale: factor of the last states before a language-model head.
    """

    norm = ""
    scale = 1.0
    positions: int | None = None
    ignored: int | None = None

    def __init__(self, weights: Weights):
        self.weights, self.config = weights, weights.config
        self.stacks = list(weights.spec.shape.layers)

    def example(self, seed: Seed) -> tuple[Named, Tensor, int]:
        """Inputs of each stack, targets, and the position that predicts the first of them.

        A decoder-only host does not read the answer's last token, because nothing is predicted after it.
        """
        ids = torch.tensor(list(seed.ids))
        return {self.stacks[0]: ids[:-1]}, ids[seed.start :], seed.start - 1

    def looked_up(self, stack: str, batch: Batch) -> Tensor:
        """(B, T, d) rows of the word embedding."""
        return self.weights.read(EMBEDDING[self.weights.family], batch.ids[stack])

    def stem(self, stack: str, batch: Batch, rows: Tensor) -> Tensor:
        """(B, T, d) states before the first layer, from the looked-up rows."""
        return rows

    def context(self, stack: str, batch: Batch) -> Named:
        """What all layers of a stack read beside their states, each with the batch first (T5's biases and
        memory)."""
        return {}

    def tables(self, index: int) -> list[str]:
        """Parameters of a layer that all layers of its stack read, by their names inside the layer (T5's
        biases)."""
        return []

    def table_gradients(self, stack: str, bias: Tensor) -> Iterator[Tensor]:
        """The table's gradient for each example, from those of the biases (B, heads, T, T) that were read
        from it."""
        return iter(())

    def layer(self, stack: str, index: int) -> nn.Module:
        """A layer with its weights, in fp32, without gradients.

        Raises:
            UserError: the file's parameters are not those of the config.
        """
        name = LAYER[self.weights.family][stack].format(index).removesuffix(".")
        module = copy.deepcopy(self.weights.base.get_submodule(name))
        try:
            module.load_state_dict(self.weights.layer(stack, index), assign=True)
        except RuntimeError as error:
            raise UserError(f"host '{self.weights.spec.name}': the parameters of {stack} layer {index} are "
                            f"not those of its config.json: {error}") from error
        module.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.Linear | Conv1D):
                matrix = part.weight if isinstance(part, Conv1D) else part.weight.T
                part.forward = functools.partial(_linear, matrix, part.bias)  # type: ignore[method-assign]
        return module.eval()

    @abstractmethod
    def call(self, stack: str, layer: nn.Module, states: Tensor, batch: Batch, context: Named) -> Tensor:
        """(B, T, d) states after a layer."""

    def last(self, stack: str, states: Tensor) -> Tensor:
        """(B, T, d) states as the head reads them: after the last norm, scaled."""
        if not self.norm:
            return states
        name = self.norm.format(stack=stack)
        norm = copy.deepcopy(self.weights.base.get_submodule(name))
        values = {short: self.weights.read(f"{name}.{short}") for short in norm.state_dict()}
        norm.load_state_dict(values, assign=True)
        return norm.requires_grad_(False)(states) * (self.scale if stack == self.stacks[-1] else 1.0)


class Llama(LayerwiseModel):
    """Llama and its like: rotary positions, RMS norms, gated feed-forward, perhaps grouped-query
    attention."""

    norm = "norm"

    def __init__(self, weights: Weights):
        super().__init__(weights)
        self.positions, self.ignored = self.config.max_position_embeddings, self.config.pad_token_id
        self.rotary = modeling_llama.LlamaRotaryEmbedding(self.config)

    def call(self, stack: str, layer: nn.Module, states: Tensor, batch: Batch, context: Named) -> Tensor:
        places = torch.arange(states.shape[1])[None]
        return layer(states, attention_mask=causal_mask(batch.real[stack]), position_ids=places,
                     position_embeddings=self.rotary(states, places))


class Gpt2(LayerwiseModel):
    """GPT-2: learned positions, layer norms before each part."""

    norm = "ln_f"

    def __init__(self, weights: Weights):
        super().__init__(weights)
        self.positions = self.config.n_positions

    def stem(self, stack: str, batch: Batch, rows: Tensor) -> Tensor:
        return rows + self.weights.read("wpe.weight", torch.arange(rows.shape[1]))

    def layer(self, stack: str, index: int) -> nn.Module:
        """As in every family; the causal mask is no weight and is made here."""
        module = super().layer(stack, index)
        size = self.config.max_position_embeddings
        attention = module.get_submodule("attn")
        attention.bias = torch.ones(1, 1, size, size, dtype=torch.bool).tril()
        attention.masked_bias = torch.tensor(-1e4)
        return module

    def call(self, stack: str, layer: nn.Module, states: Tensor, batch: Batch, context: Named) -> Tensor:
        return layer(states, attention_mask=causal_mask(batch.real[stack]))[0]


class Encoder(LayerwiseModel):
    """BERT and RoBERTa: learned positions, norms after each part, no language-model head."""

    def __init__(self, weights: Weights):
        super().__init__(weights)
        self.ignored = self.config.pad_token_id
        before = 0 if weights.family == "bert" else self.config.pad_token_id + 1  # rows of no position
        self.positions = self.config.max_position_embeddings - before

    def example(self, seed: Seed) -> tuple[Named, Tensor, int]:
        """The text, its class, and no position."""
        return {self.stacks[0]: torch.tensor(list(seed.ids))}, torch.tensor([seed.label]), 0

    def stem(self, stack: str, batch: Batch, rows: Tensor) -> Tensor:
        """Rows with positions and types added, normed. RoBERTa counts positions over tokens that are not its
        padding."""
        part = "embeddings."
        if self.weights.family == "bert":
            places = torch.arange(rows.shape[1]).expand(rows.shape[:2])
        else:
            places = modeling_roberta.create_position_ids_from_input_ids(
                batch.ids[stack], self.config.pad_token_id)
        rows = rows + self.weights.read(part + "token_type_embeddings.weight")[0]
        rows = rows + self.weights.read(part + "position_embeddings.weight", places)
        weight, bias = (self.weights.read(f"{part}LayerNorm.{name}") for name in ("weight", "bias"))
        return nn.functional.layer_norm(rows, rows.shape[-1:], weight, bias, self.config.layer_norm_eps)

    def call(self, stack: str, layer: nn.Module, states: Tensor, batch: Batch, context: Named) -> Tensor:
        return layer(states, attention_mask=padding_mask(batch.real[stack]))[0]


class T5(LayerwiseModel):
    """T5: relative biases from a table in each stack's first layer; the decoder reads the encoder's normed
    states."""

    norm = "{stack}.final_layer_norm"
    table = "layer.0.SelfAttention.relative_attention_bias.weight"  # inside layer 0

    def __init__(self, weights: Weights):
        super().__init__(weights)
        if weights.tied:
            self.scale = self.config.d_model**-0.5

    def example(self, seed: Seed) -> tuple[Named, Tensor, int]:
        """The encoder's text; the decoder's start token and its answer but the last token."""
        target = torch.tensor(list(seed.target))
        start = torch.tensor([self.config.decoder_start_token_id])
        inputs = {"encoder": torch.tensor(list(seed.ids)), "decoder": torch.cat([start, target[:-1]])}
        return inputs, target, 0

    def tables(self, index: int) -> list[str]:
        return [self.table] if index == 0 else []

    def _buckets(self, stack: str, size: int) -> Tensor:
        """(T, T) row of the table for each query and key."""
        places = torch.arange(size)
        return modeling_t5.T5Attention._relative_position_bucket(
            places[None] - places[:, None], stack == "encoder", self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance)

    def context(self, stack: str, batch: Batch) -> Named:
        """"bias": (B, heads, T, T), one copy an example."""
        count, size = batch.ids[stack].shape
        table = self.weights.read(self.weights.layers[stack, 0][self.table])
        bias = table[self._buckets(stack, size)].permute(2, 0, 1)
        return {"bias": bias.expand(count, -1, -1, -1).contiguous()}

    def table_gradients(self, stack: str, bias: Tensor) -> Iterator[Tensor]:
        rows = self._buckets(stack, bias.shape[-1]).flatten()
        for one in bias:
            empty = torch.zeros(self.config.relative_attention_num_buckets, len(one))
            yield empty.index_add_(0, rows, one.flatten(1).T)

    def call(self, stack: str, layer: nn.Module, states: Tensor, batch: Batch, context: Named) -> Tensor:
        bias = context["bias"] + (causal_mask if stack == "decoder" else padding_mask)(batch.real[stack])
        places = torch.arange(states.shape[1])
        if stack == "encoder":
            return layer(states, position_bias=bias, cache_position=places)[0]
        memory_bias = padding_mask(batch.real["encoder"])
        return layer(states, position_bias=bias, encoder_hidden_states=context["memory"],
                     encoder_decoder_position_bias=memory_bias, cache_position=places)[0]


LAYERWISE: dict[str, type[LayerwiseModel]] = {
    "llama": Llama, "gpt2": Gpt2, "bert": Encoder, "roberta": Encoder, "t5": T5,
}
