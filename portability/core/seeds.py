"""The only source of randomness: streams named by what they are for."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(*names: object) -> int:
    """A 63-bit seed that depends on the names alone.

    Example:
        >>> stream_seed(0, "batches") == stream_seed(0, "batches") != stream_seed(0, "module")
        True
    """
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(*names: object) -> "torch.Generator":
    """A CPU generator for one purpose, for example ``stream(seed, "module")``.

    Runs to be compared share their seed, so they share every stream whose name they have in common: the
    batches of the three inits of a cell are the same, whatever their starts drew.
    """
    import torch

    return torch.Generator().manual_seed(stream_seed(*names))
