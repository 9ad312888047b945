"""Hosts as readers: logits of every token of given answers, a step of writing one; and what stacked members
answer: losses, likelihoods of choices, answers written greedily.

Prompts are padded on the right, so a token's position is its place in the row, as in training; a written
token follows on the prompt's last real one, and padding is seen by nobody. One member goes through
`functional_call` over the reader, a stack through `vmap` over that, the host unmapped, as in
`training.trainer`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.func import functional_call, vmap
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from portability.core.architectures import FAMILIES
from portability.data.sampling import Batch, by_length
from portability.hosts.attention import (
    body,
    causal_mask,
    computing,
    kept_as,
    lm_logits,
    padding_mask,
    text_mask,
)
from portability.hosts.host import Host
from portability.hosts.spread import place_of
from portability.tasks.base import SCORE_ROWS, Parameters, Told, check_length
from portability.tasks.members import MemberMap

Past = tuple[tuple[Tensor, ...], ...]  # what a host keeps of the tokens it has read, by layer


class Reader(nn.Module):
    """A host with a language-model head that reads answers token by token. All of a member's parameters,
    what its method keeps frozen among them, are handed in by the names that they have here.

    `forward` runs one of the three methods below it, given by name, because `functional_call` reaches nothing
    else. Of decoder-only hosts, only the states that guess an answer's token go through the head; of t5, the
    encoder reads the prompt once, the decoder the answer.
    """

    def __init__(self, host: Host, max_length: int = 0):
        """Raises UserError if the host has less positions than `max_length`, in tokens."""
        super().__init__()
        check_length(host, max_length)
        self.model: Any = host.model
        self.device, self.precision, self.family = host.device, host.precision, host.family
        self.devices, self.is_spread = host.devices, host.is_spread
        self.seq2seq, self.has_head = FAMILIES[host.family].seq2seq, host.scoring == "head"
        self.kept_as = kept_as(self.model)
        self.each: MemberMap = vmap  # one_at_a_time where the method attached needs it

    def forward(self, method: str, *inputs: Any) -> Any:
        """`answer_logits`, `begin` or `follow`, in the host's precision, with logits in fp32.

        On a CPU oneDNN is off while a token is read: for inputs of one token its convolutions (adapters' LoRA
        of a gpt2) take another kernel for one member than for several.
        """
        without = self.precision == "fp32" and method == "follow"
        with (computing(self.device, self.precision),
              mkldnn.flags(False, allow_tf32=None) if without else nullcontext()):
            return getattr(self, method)(*inputs)

    def of_member(self, parameters: Parameters, method: str, *inputs: Any) -> Any:
        """What `forward` gives with a member's parameters in the place of the host's own, each on the device
        of its layer.

        `tie_weights` is off because adapters shares its prefix pool between layers under several names, and
        swapping all of them leaves a dead tensor behind.
        """
        given = dict(parameters)
        if self.is_spread:
            places = {name: place_of(name.removeprefix("model."), self.devices) for name in given}
            given = {name: value.to(places[name] or self.device) for name, value in given.items()}
        return functional_call(self, given, (method, *inputs), tie_weights=False)

    def answer_logits(self, rows: Batch) -> Tensor:
        """Logits (B, A, V) from which each token of the given answers is to be guessed, fp32."""
        if self.seq2seq:
            read = torch.cat([self._start(rows.ids)[:, None], rows.answers[:, :-1]], 1)
            return self.model(
                input_ids=rows.ids, attention_mask=text_mask(self.family, rows.mask), use_cache=False,
                decoder_input_ids=read, decoder_attention_mask=causal_mask(torch.ones_like(read)),
            ).logits.float().to(self.device)
        size, count = rows.ids.shape[-1], rows.answers.shape[-1]
        places = (rows.starts[:, None] - 1 + torch.arange(count, device=rows.ids.device)).clamp(max=size - 1)
        return self._guessed(self._states(rows.ids, causal_mask(rows.mask)), places)

    def begin(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Past]:
        """Read prompts (B, T): logits (B, V) of the first token of an answer, fp32, and what is kept: keys
        and values (B, heads, T, head size) of each layer; of t5 the encoder's states (B, T, d), then keys and
        values of each layer, its own and the prompt's."""
        if self.seq2seq:
            return self._decoded(mask, 0, self._start(ids),
                                 EncoderDecoderCache(DynamicCache(), DynamicCache()), input_ids=ids)
        cache = DynamicCache()
        states = self._states(ids, causal_mask(mask), cache)
        return self._guessed(states, mask.sum(1, keepdim=True) - 1).squeeze(1), _kept(cache)

    def follow(self, mask: Tensor, done: int, tokens: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Read tokens (B,), the latest of answers of `done` tokens: logits (B, V) of the next one, fp32, and
        what is kept, a token longer.

        Args:
            mask: (B, T) of the prompts.
        """
        if self.seq2seq:
            (states,), *layers = past
            half = len(layers) // 2
            both = EncoderDecoderCache(DynamicCache(layers[:half]), DynamicCache(layers[half:]))
            return self._decoded(mask, done, tokens, both, encoder_outputs=BaseModelOutput(states))
        cache, places = DynamicCache(past), mask.sum(1, keepdim=True) + done - 1
        seen = padding_mask(torch.cat([mask, mask.new_ones(len(mask), done)], 1))
        found = self._states(tokens[:, None], seen, cache, places)
        return lm_logits(self.model, found).float().squeeze(1), _kept(cache)

    def _start(self, ids: Tensor) -> Tensor:
        return torch.full_like(ids[:, 0], self.model.config.decoder_start_token_id)

    def _states(self, ids: Tensor, added: Tensor, cache: DynamicCache | None = None,
                places: Tensor | None = None) -> Tensor:
        """Last states (B, T, d) of a decoder-only host, where its inputs are."""
        places = torch.arange(ids.shape[1], device=ids.device)[None] if places is None else places
        return body(self.model)(
            input_ids=ids, attention_mask=added, position_ids=places, use_cache=False,
            **{self.kept_as: cache},
        ).last_hidden_state.to(self.device)

    def _guessed(self, states: Tensor, places: Tensor) -> Tensor:
        """Logits (B, A, V) out of the states (B, T, d) at places (B, A)."""
        chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        return lm_logits(self.model, chosen).float()

    def _decoded(
        self, mask: Tensor, done: int, tokens: Tensor, cache: EncoderDecoderCache, **source: Any
    ) -> tuple[Tensor, Past]:
        """One step of the decoder after `done` others, through the whole model, because adapters makes its
        prefixes there."""
        out = self.model(
            attention_mask=text_mask(self.family, mask), decoder_input_ids=tokens[:, None],
            decoder_attention_mask=padding_mask(mask.new_ones(len(mask), done + 1)),
            use_cache=True, **{self.kept_as: cache}, **source,
        )
        kept = (*_kept(cache.self_attention_cache), *_kept(cache.cross_attention_cache))
        return out.logits[:, 0].float().to(self.device), ((out.encoder_last_hidden_state,), *kept)


def _kept(cache: DynamicCache) -> Past:
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def in_parts(lengths: np.ndarray, size: int, on_part: Told) -> Iterator[np.ndarray]:
    """Indices of examples in batches by their lengths (N,), of `size` or the next multiple of SCORE_ROWS, to
    which they would be filled up; `on_part` is told of each when the next one is asked for."""
    done = 0
    for picks in by_length(lengths, size + -size % SCORE_ROWS):
        yield picks
        done += len(picks)
        on_part(done / len(lengths))


def in_order(parts: Sequence[Tensor], lengths: np.ndarray) -> Tensor:
    """What was found of each batch of `in_parts`, (K, B, ...), in the order of the examples, (K, N, ...)."""
    back = np.argsort(np.argsort(lengths, kind="stable"))
    return torch.cat(list(parts), 1).cpu()[:, torch.from_numpy(back)]


def answer_loss(of: Reader, parameters: Parameters, rows: Batch, by_token: bool = False) -> Tensor:
    """Loss of one member's batch, nats: the mean over an answer's tokens, then over examples, so that a long
    answer counts no more than a short one (our choice); or the mean over all of a batch's tokens, as
    transformers' Trainer has it.

    Args:
        rows: tensors without leading axes; examples without an answer token do not count, and at least one
            has some.
    """
    nll = _nll(of.of_member(parameters, "answer_logits", rows), rows)
    if by_token:
        return nll.sum() / rows.answer_mask.sum()
    lengths = rows.answer_mask.sum(1)
    return (nll.sum(1) / lengths.clamp(min=1)).sum() / (lengths > 0).sum()


def _nll(logits: Tensor, rows: Batch) -> Tensor:
    """Negative log-likelihood of each answer token, (B, A), 0 for padding."""
    scores = logits.gather(-1, rows.answers[..., None]).squeeze(-1) - logits.logsumexp(-1)  # no 2nd (B, A, V)
    return torch.where(rows.answer_mask > 0, -scores, 0.0)


def _each(of: Reader, parameters: Parameters) -> Callable[..., Any]:
    """A method of the reader for all members: name, inputs that all share, inputs with a member axis. The
    bare host, without parameters, is one member."""
    members = len(next(iter(parameters.values()))) if parameters else 1

    def run(method: str, shared: tuple[Any, ...], own: tuple[Any, ...] = ()) -> Any:
        def one(given: Parameters, _: Tensor, inputs: tuple[Any, ...]) -> Any:
            return of.of_member(given, method, *shared, *inputs)

        return of.each(one)(dict(parameters), torch.zeros(members), own)

    return run


@torch.inference_mode()
def answer_scores(of: Reader, parameters: Parameters, rows: Batch) -> Tensor:
    """Summed log-probability of each row's answer under each member, (K, B), nats.

    Args:
        parameters: stacked, (K, ...) each, frozen ones among them; empty for the bare host, which counts as
            one member.
        rows: tensors without leading axes, on the reader's device; all members read the same.
    """
    logits = _each(of, parameters)("answer_logits", (rows,))
    return -vmap(_nll, in_dims=(0, None))(logits, rows).sum(-1)


@torch.inference_mode()
def greedy(
    of: Reader, parameters: Parameters, ids: Tensor, mask: Tensor, new_tokens: int, stops: Sequence[int]
) -> Tensor:
    """The answers that each member writes by taking the likeliest token every time, (K, B, new_tokens) int64.

    Keys and values of what was read are kept, not computed anew. A finished answer is filled up with
    ``stops[0]``.

    Args:
        parameters: stacked, (K, ...) each, frozen ones among them; empty for the bare host, which counts as
            one member.
        ids: (B, T) prompts, padded on the right, on the reader's device; all members read the same.
        mask: (B, T) 1 for real tokens, at least one a row.
        new_tokens: most tokens of an answer, at least 1, the stop among them.
        stops: tokens that end an answer, at least one.
    """
    run, ends = _each(of, parameters), torch.tensor(list(stops), device=ids.device)
    logits, past = run("begin", (ids, mask))
    written = torch.full((*logits.shape[:2], new_tokens), stops[0], device=ids.device)
    finished = torch.zeros(logits.shape[:2], dtype=torch.bool, device=ids.device)
    for done in range(1, new_tokens + 1):
        tokens = logits.argmax(-1).masked_fill(finished, stops[0])
        written[..., done - 1] = tokens
        finished |= torch.isin(tokens, ends)
        if done == new_tokens or bool(finished.all()):
            break
        logits, past = run("follow", (mask, done), (tokens, past))
    return written


def texts(written: Tensor, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> list[list[str]]:
    """Written answers (K, B, new_tokens) as texts up to their stop, by member, without blanks around them."""
    found = []
    for member in written.tolist():
        cut = [list(takewhile(lambda token: token not in stops, row)) for row in member]
        plain = tokenizer.batch_decode(cut, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found.append([text.strip() for text in plain])
    return found
