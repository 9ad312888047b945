"""Hosts as readers of answers: logits of every token of given answers, and a step of writing one.

Prompts are padded on the right, so a token's position is its place in the row, as in training; a written
token follows on the prompt's last real one, and padding is seen by nobody.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.hosts.attention import causal_mask, computing, lm_logits, padding_mask, text_mask
from portability.hosts.host import Host
from portability.tasks.padding import Batch

Past = tuple[tuple[Tensor, ...], ...]  # what a host keeps of the tokens it has read, by layer


class Reader(nn.Module):
    """A host that reads answers token by token; parameters bear the names they have in
    `classification.Scorer`.

    `forward` runs one of the three methods below it, given by name, because `functional_call` reaches nothing
    else.
    """

    def __init__(self, host: Host):
        super().__init__()
        self.model, self.device, self.precision = host.model, host.model.device, host.precision
        self.family = host.family
        self.positions: int | None = getattr(host.model.config, "max_position_embeddings", None)
        self.name = host.spec.name

    def forward(self, method: str, *inputs: Any) -> Any:
        """`answer_logits`, `begin` or `follow`, in the host's precision, with logits in fp32.

        On a CPU oneDNN is off while a token is read: for inputs of one token its convolutions (adapters' LoRA
        of a gpt2) take another kernel for one member than for several.
        """
        plain = self.precision == "fp32" and method == "follow"
        with computing(self.device, self.precision), _without_onednn() if plain else nullcontext():
            return getattr(self, method)(*inputs)

    @abstractmethod
    def answer_logits(self, rows: Batch) -> Tensor:
        """Logits (B, A, V) from which each token of the given answers is to be guessed, fp32."""

    @abstractmethod
    def begin(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Past]:
        """Read prompts (B, T): logits (B, V) of the first token of an answer, fp32, and what is kept."""

    @abstractmethod
    def follow(self, mask: Tensor, done: int, tokens: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Read tokens (B,), the latest of answers of `done` tokens: logits (B, V) of the next one, fp32, and
        what is kept.

        Args:
            mask: (B, T) of the prompts.
        """


class CausalReader(Reader):
    """Decoder-only hosts. Only the states that guess an answer's token go through the head."""

    def answer_logits(self, rows: Batch) -> Tensor:
        """Logits (B, A, V)."""
        size, count = rows.ids.shape[-1], rows.answers.shape[-1]
        states = self._states(rows.ids, causal_mask(rows.mask))
        places = (rows.starts[:, None] - 1 + torch.arange(count, device=rows.ids.device)).clamp(max=size - 1)
        return self._head(states.gather(1, places[..., None].expand(-1, -1, states.shape[-1])))

    def begin(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Past]:
        """Logits (B, V), and keys and values (B, heads, T, head size) of each layer."""
        cache = DynamicCache()
        states = self._states(ids, causal_mask(mask), cache)
        last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return self._head(states.gather(1, last)).squeeze(1), _kept(cache)

    def follow(self, mask: Tensor, done: int, tokens: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Logits (B, V), and keys and values (B, heads, T + done, head size) of each layer."""
        cache = _cache(past)
        seen = torch.cat([mask, mask.new_ones(len(mask), done)], 1)
        states = self._states(tokens[:, None], padding_mask(seen), cache,
                              mask.sum(1, keepdim=True) + done - 1)
        return self._head(states).squeeze(1), _kept(cache)

    def _states(self, ids: Tensor, added: Tensor, cache: DynamicCache | None = None,
                places: Tensor | None = None) -> Tensor:
        """Last states (B, T, d)."""
        places = torch.arange(ids.shape[1], device=ids.device)[None] if places is None else places
        return self.model.base_model(
            input_ids=ids, attention_mask=added, position_ids=places, use_cache=False, past_key_values=cache,
        ).last_hidden_state

    def _head(self, states: Tensor) -> Tensor:
        return lm_logits(self.model, states).float()


class Seq2SeqReader(Reader):
    """T5: the encoder reads the prompt once, the decoder the answer."""

    def answer_logits(self, rows: Batch) -> Tensor:
        """Logits (B, A, V)."""
        start = torch.full_like(rows.answers[:, :1], self.model.config.decoder_start_token_id)
        read = torch.cat([start, rows.answers[:, :-1]], 1)
        return self.model(
            input_ids=rows.ids, attention_mask=text_mask(self.family, rows.mask), use_cache=False,
            decoder_input_ids=read, decoder_attention_mask=causal_mask(torch.ones_like(read)),
        ).logits.float()

    def begin(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Past]:
        """Logits (B, V); the encoder's states (B, T, d), then keys and values of each layer, its own and the
        prompt's."""
        start = torch.full_like(ids[:, 0], self.model.config.decoder_start_token_id)
        return self._decoded(mask, 0, start, EncoderDecoderCache(DynamicCache(), DynamicCache()),
                             input_ids=ids)

    def follow(self, mask: Tensor, done: int, tokens: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Logits (B, V), and the same, a token longer."""
        (states,), *layers = past
        half = len(layers) // 2
        cache = EncoderDecoderCache(_cache(layers[:half]), _cache(layers[half:]))
        return self._decoded(mask, done, tokens, cache, encoder_outputs=BaseModelOutput(states))

    def _decoded(
        self, mask: Tensor, done: int, tokens: Tensor, cache: EncoderDecoderCache, **source: Any
    ) -> tuple[Tensor, Past]:
        """One step of the decoder after `done` others, through the whole model, because adapters makes its
        prefixes there."""
        out = self.model(
            attention_mask=text_mask(self.family, mask), decoder_input_ids=tokens[:, None],
            decoder_attention_mask=padding_mask(mask.new_ones(len(mask), done + 1)),
            past_key_values=cache, use_cache=True, **source,
        )
        kept = (*_kept(cache.self_attention_cache), *_kept(cache.cross_attention_cache))
        return out.logits[:, 0].float(), ((out.encoder_last_hidden_state,), *kept)


def reader(host: Host) -> Reader:
    """The reader of a host's family.

    Raises:
        UserError: an encoder host.
    """
    if host.scoring == "head":
        raise UserError(f"host '{host.spec.name}' is an encoder ({host.family}) and can neither write an "
                        "answer nor rate choices token by token; choose one with a language-model head, such "
                        "as a gpt2, llama or t5 host")
    return Seq2SeqReader(host) if FAMILIES[host.family].seq2seq else CausalReader(host)


@contextmanager
def _without_onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.set_flags(False)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before)


def _cache(layers: Sequence[tuple[Tensor, ...]]) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def _kept(cache: DynamicCache) -> Past:
    return tuple((layer.keys, layer.values) for layer in cache.layers)
