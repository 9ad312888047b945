"""Activations on disk: the states at a layer's boundaries, so that memory holds one layer and one batch."""

import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

Named = dict[str, Tensor]


class Offload(tempfile.TemporaryDirectory):
    """Named sets of tensors in a temporary folder (under TMPDIR), which goes with the `with` block; read to a
    device."""

    def __init__(self, device: str = "cpu"):
        super().__init__(prefix="extraction-")
        self.device = device

    def __enter__(self) -> "Offload":
        return self

    def put(self, name: str, tensors: Named) -> None:
        """Write a set, in place of what had the name."""
        parts = {key: tensor.contiguous() for key, tensor in tensors.items()}
        path = Path(self.name, name)
        path.unlink(missing_ok=True)  # safetensors before 0.8 writes into a file that may be mapped
        save_file(parts, path)

    def get(self, name: str) -> Named:
        """Read a set."""
        return load_file(Path(self.name, name), self.device)
