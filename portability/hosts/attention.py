"""What a host's attention is handed: ready-made masks, and tensors of one number format.

Masks are made here and nowhere else. Those that transformers makes inside a model look at their own values
(`.all()`), which neither `vmap` nor a CUDA graph allows.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from portability.core.architectures import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST = torch.finfo(torch.bfloat16).min  # finite in bf16 too: fp32's own least number would be -inf there
TAKES_READY = int(transformers.__version__.split(".")[0]) >= 5


def padding_mask(real: Tensor) -> Tensor:
    """Mask (B, 1, 1, T) to add to attention scores: 0 for real tokens, which everybody sees, else the least
    number.

    Args:
        real: (B, T) above 0 for real tokens, 0 for padding.
    """
    return _added(real[:, None, None] > 0)


def causal_mask(real: Tensor) -> Tensor:
    """Mask (B, 1, T, T) to add to attention scores: 0 where a token looks at itself or at a real one before
    it, else the least number. Padding stands on the right, so every row has a real token to look at.

    Args:
        real: (B, T) above 0 for real tokens, 0 for padding.
    """
    size = real.shape[1]
    before = real.new_ones(size, size, dtype=torch.bool).tril()
    return _added(before & (real[:, None, None] > 0))


def _added(seen: Tensor) -> Tensor:
    return seen.new_zeros(seen.shape, dtype=torch.float32).masked_fill(~seen, LEAST)


def text_mask(family: str, real: Tensor) -> Tensor:
    """The mask of a text as the family's model takes it: causal for decoder-only hosts, else one of padding,
    which T5's decoder reads its encoder's states by, too.

    In transformers 4 encoders refuse a ready-made mask of padding and make (1 - given) * least of what they
    are given, by fixed steps alone: so they are given 1 and 0, (B, T), or (B, 1, T) of BERT's kin.

    Args:
        real: (B, T) above 0 for real tokens, 0 for padding on the right.
    """
    if "encoder" not in FAMILIES[family].stacks:
        return causal_mask(real)
    if TAKES_READY and family not in ("deberta-v2", "modernbert"):  # these make masks of their own
        return padding_mask(real)
    kin = not TAKES_READY and family in ("bert", "roberta", "xlm-roberta")
    return (real[:, None] if kin else real).gt(0).float()


def body(model: "PreTrainedModel") -> Any:
    """What gives a decoder-only host's last states, below its head."""
    return model.model if model.base_model is model else model.base_model  # Gemma 3 says that it is its own


def stacks(model: "PreTrainedModel", family: str) -> dict[str, Any]:
    """Stack -> what reads token ids there, given a mask."""
    row = FAMILIES[family]
    if row.seq2seq:
        return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    return dict.fromkeys(row.stacks, model if row.scoring == "head" else body(model))


def kept_as(module: Any) -> str:
    """What a module calls the keys and values that it is given of earlier tokens; later versions of
    transformers 5 have a name of their own for it."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def lm_logits(model: "PreTrainedModel", states: Tensor) -> Tensor:
    """Logits (..., V) of a language-model host's last states (..., d), where these are, capped where the
    model caps them (Gemma 2). A head in fp32, such as one that shares its weight with the embedding, computes
    in fp32 under bf16 too: there logits of 16 come in steps of 1/8, so that labels tie (D-151)."""
    exact = model.lm_head.weight.dtype == torch.float32
    with torch.autocast(states.device.type, enabled=False) if exact else nullcontext():
        logits = model.lm_head(states.float() if exact else states).to(states.device)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


class Handed(TorchFunctionMode):
    """Changes what torch's functions are handed.

    `torch.ones` without a device is made on `device`: adapters' prefix makes its mask in ordinary memory and
    copies it, which waits for a GPU in every layer and cannot be captured.

    With `narrow`, scaled-dot-product attention and convolutions get all their tensors in bf16, as under
    autocast. Under `vmap` autocast does not see them, because they are taken apart before, and they refuse
    mixed formats: a rotated or prefixed key is fp32 beside a value in bf16, adapters' LoRA on a GPT-2
    convolves bf16 states with fp32 weights.
    """

    def __init__(self, device: torch.device, narrow: bool = False):
        super().__init__()
        self.device, self.narrow = device, narrow

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ones and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": self.device}
        if self.narrow and func in (F.scaled_dot_product_attention, F.conv1d):
            args, kwargs = tuple(map(_narrow, args)), {name: _narrow(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _narrow(value: object) -> object:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Within it a host's forward pass runs on the device in a precision ("fp32", or "bf16" by autocast)."""
    with ExitStack() as stack:
        if device.type != "cpu" or precision == "bf16":
            stack.enter_context(Handed(device, precision == "bf16"))
        if precision == "bf16":  # a CUDA graph must not hold a cache of weights
            stack.enter_context(torch.autocast(device.type, torch.bfloat16, cache_enabled=False))
        yield
