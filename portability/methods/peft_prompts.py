"""Prompts of the `peft` library: vectors before a text, of its embeddings (prompt tuning, Lester et al. 2021)
or of every layer's keys and values (prefix tuning, Li & Liang 2021).

The parameter and its file are peft's: `prompt_embeddings`, (virtual tokens, hidden), or for a prefix (virtual
tokens, layers * 2 * kv_heads * head_dim). The forward pass is hooks on the host's stack and not peft's model
class, because readers (tasks.readers) go below a host's own forward pass and hand ready-made masks: the
prompt's vectors are put before the embeddings, or its keys and values into the cache, and mask and positions
are made longer; what a host makes of the prompt's own positions is dropped again.

Of an encoder and a decoder, a prompt stands before the encoder's text, and the decoder reads its states, too;
peft's table has as many rows again, for a prompt of the decoder, which it never reads. A prefix stands before
the keys and values of the decoder's own attention. peft cuts the table by four there, for the other stack's
states, too, and uses the first two of them: layer l has the pair (2 l mod layers), so that of an even number
of layers two share each, and every other pair is never read.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.hosts.attention import LEAST, kept_as, stacks
from portability.hosts.sources import texts_of
from portability.methods.peft_backend import PLAIN, PREFIX, PROMPT, PROMPTS, Form, PeftMethod
from portability.tasks.base import check_length

WITHOUT_CACHE = ("distilbert", "deberta-v2", "modernbert")  # take no keys and values from before the text


class PromptMethod(PeftMethod):
    """A prompt or a prefix before the texts of a host.

    Attributes:
        body: the stack that it stands before: the only one, else the encoder, or of a prefix the decoder.
    """

    def _add(self) -> None:
        host, name = self.host, f"method '{self.spec.name}'"
        if self.spec.config not in PROMPTS:
            raise UserError(f"{name}: of peft's prompts, {' and '.join(PROMPTS)} can be used, and not "
                            f"{self.spec.config}")
        self.prefixes, self.seq2seq = self.spec.config == PREFIX, FAMILIES[host.family].seq2seq
        found = list(stacks(host.model, host.family).values())
        self.body, self.decoder = found[-1 if self.prefixes else 0], found[-1]
        if self.prefixes and host.family in WITHOUT_CACHE:
            raise UserError(f"{name}: {self.spec.config} needs a host that takes keys and values from before "
                            f"the text, which a {host.family} host does not")
        self._complete()
        count, width = self.config.num_virtual_tokens, self.config.token_dim
        shape = count * self.config.num_transformer_submodules, width
        if self.prefixes:
            shape = count, 2 * self.config.num_layers * width
        self.body.register_parameter(PROMPT, torch.nn.Parameter(
            torch.zeros(shape, device=host.model.device)))
        self._hook()

    def _complete(self) -> None:
        """Sizes that peft reads off the host."""
        shape, config = self.host.spec.shape, self.config
        if not config.num_virtual_tokens or config.num_virtual_tokens < 1:
            raise UserError(f"method '{self.spec.name}': num_virtual_tokens must be a whole number from 1 on "
                            f"(conf/method/{self.spec.name}.yaml)")
        depths = list(shape.layers.values())
        if self.prefixes and len(set(depths)) > 1:
            raise UserError(f"method '{self.spec.name}': {PREFIX} takes the depth of the encoder of host "
                            f"'{self.host.spec.name}' ({depths[0]}) for the decoder's, too, which is "
                            f"{depths[1]}; use a host with equally deep stacks, or prefix of adapters")
        known = {"token_dim": shape.kv_heads * shape.head_dim if self.prefixes else shape.hidden,
                 "num_attention_heads": shape.kv_heads if self.prefixes else shape.heads,
                 "num_layers": depths[0], "num_transformer_submodules": len(depths)}
        for key, value in known.items():
            if getattr(config, key) not in (None, value):
                raise UserError(f"method '{self.spec.name}': {key} is {value} on host "
                                f"'{self.host.spec.name}', and not {getattr(config, key)}; leave it out")
            setattr(config, key, value)

    def _hook(self) -> None:
        before = self.body.register_forward_pre_hook(self._longer, with_kwargs=True)
        after = self.body.register_forward_hook(self._shorter, with_kwargs=True) if not self.seq2seq else (
            self.decoder.register_forward_pre_hook(self._beside, with_kwargs=True))
        self.hooks = [before, after]

    def _longer(self, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple, dict]:
        """What the body is given, with the prompt before it; after a cache that holds the prompt, only mask
        and positions are longer."""
        count, mask, positions = self.config.num_virtual_tokens, given["attention_mask"], given.get(
            "position_ids")
        ids, kept = given["input_ids"], kept_as(module)
        cache = given.get(kept)
        begins = cache is None or cache.get_seq_length() == 0
        if begins:
            self._check_room(count + ids.shape[1])
        embeds = begins and not self.prefixes
        more: dict[str, Any] = {"attention_mask": _longer_mask(mask, count, embeds)}
        if positions is not None:
            more["position_ids"] = positions + count
            if embeds:
                first = torch.arange(count, device=positions.device).expand(len(positions), -1)
                more["position_ids"] = torch.cat([first, more["position_ids"]], 1)
        prompt = getattr(module, PROMPT)
        if embeds:
            vectors = module.get_input_embeddings()(ids)
            before = prompt[:count].to(vectors.dtype).expand(len(ids), -1, -1)
            more |= {"input_ids": None, "inputs_embeds": torch.cat([before, vectors], 1)}
            if (types := given.get("token_type_ids")) is not None:  # a prompt is of the first text
                first = types.new_zeros(len(types), count)
                more["token_type_ids"] = torch.cat([first, types], 1)
        elif begins:
            more[kept] = self._filled(cache, prompt, len(ids))
        return args, given | more

    def _check_room(self, length: int) -> None:
        try:
            check_length(self.host, length)
        except UserError as error:
            raise UserError(f"method '{self.spec.name}': a text with its prompt of "
                            f"{self.config.num_virtual_tokens} tokens is too long for it: {error}") from error

    def _filled(self, cache: Any, prompt: Tensor, size: int) -> Any:
        """A cache that holds the prefix for `size` texts: keys and values (size, kv_heads, prefix, head_dim)
        of each layer."""
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if self.seq2seq else DynamicCache()
        own = cache.self_attention_cache if self.seq2seq else cache
        shape, depth = self.host.spec.shape, self.config.num_layers
        parts = prompt.view(len(prompt), depth, 2, shape.kv_heads, shape.head_dim).permute(1, 2, 3, 0, 4)
        for layer in range(depth):
            key, value = parts[2 * layer % depth if self.seq2seq else layer]
            own.update(*(part.expand(size, -1, -1, -1) for part in (key, value)), layer)
        return cache

    def _beside(self, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple, dict]:
        """What the decoder is given, with the prompt's states among those of the encoder."""
        mask = given.get("encoder_attention_mask")
        if self.prefixes or mask is None:
            return args, given
        longer = _longer_mask(mask, self.config.num_virtual_tokens, False)
        return args, given | {"encoder_attention_mask": longer}

    def _shorter(self, module: Any, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> Any:
        """The last states of the text alone."""
        if given.get("inputs_embeds") is not None:
            out.last_hidden_state = out.last_hidden_state[:, self.config.num_virtual_tokens :]
        return out

    def draw(self, seed: int) -> dict[str, Tensor]:
        """As the library initialises them, under torch's global generator; a text of its choice is read by
        the host's own tokenizer."""
        from peft import PrefixEncoder, PromptEmbedding

        config = copy.deepcopy(self.config)
        config.inference_mode = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.prefixes:
                made = PrefixEncoder(config)
            else:
                config.tokenizer_name_or_path, config.tokenizer_kwargs = str(texts_of(self.host.spec)), None
                made = PromptEmbedding(config, self.body.get_input_embeddings())
        return {self.layouts[0].name: made.embedding.weight.detach().cpu()}

    def save(self, parameters: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any],
             form: Form = PLAIN) -> None:
        """As `PeftMethod.save`, for the class of models that peft has for the host's scoring, if none is
        named: without one it passes over a prompt."""
        usual = "FEATURE_EXTRACTION" if self.host.scoring == "head" else (
            "SEQ_2_SEQ_LM" if self.seq2seq else "CAUSAL_LM")
        super().save(parameters, folder, {**about, "task_type": about.get("task_type") or usual}, form)

    def _remove(self) -> None:
        """Take hooks and parameter off, of a half-finished attachment too."""
        for hook in getattr(self, "hooks", ()):
            hook.remove()
        if hasattr(self, "body"):
            self.body._parameters.pop(PROMPT, None)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The hooks are off within it."""
        for hook in self.hooks:
            hook.remove()
        try:
            yield
        finally:
            self._hook()


def _longer_mask(mask: Tensor, count: int, rows: bool) -> Tensor:
    """A mask for `count` tokens more in front, which every token of the text sees.

    Args:
        mask: (..., T) of 1 and 0 for padding; or (B, 1, 1 or T, T) to add to scores, whose rows look at
            columns.
        rows: whether the tokens in front are read, too: each sees those before it.
    """
    added = mask.ndim == 4
    front = mask.new_full((*mask.shape[:-1], count), 0.0 if added else 1.0)
    longer = torch.cat([front, mask], -1)
    if not rows or not added or mask.shape[-2] == 1:
        return longer
    unseen = torch.ones(count, longer.shape[-1], dtype=torch.bool, device=mask.device).triu(1)
    top = mask.new_zeros(unseen.shape).masked_fill(unseen, LEAST)
    return torch.cat([top.expand(len(mask), 1, -1, -1), longer], -2)
