"""What a host's attention is handed: ready-made masks, and tensors of one number format.

Masks are made here and nowhere else. Those that transformers makes inside a model look at their own values
(`.all()`), which neither `vmap` nor a CUDA graph allows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from portability.core.architectures import FAMILIES

LEAST = torch.finfo(torch.bfloat16).min  # finite in bf16 too: fp32's own least number would be -inf there


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

    The models of BERT and RoBERTa and T5's stacks refuse a ready-made mask of padding and make (1 - given) *
    least of what they are given, by fixed steps alone: so they are given 1 and 0, (B, 1, T), T5 (B, T).

    Args:
        real: (B, T) above 0 for real tokens, 0 for padding on the right.
    """
    if "encoder" not in FAMILIES[family].stacks:
        return causal_mask(real)
    return (real if family == "t5" else real[:, None]).gt(0).float()


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
