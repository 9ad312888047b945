"""Activations on disk: the states at a layer's boundaries, so that memory holds one layer and one batch."""

import tempfile
from pathlib import Path
from types import TracebackType

from safetensors.torch import load_file, save_file
from torch import Tensor

Named = dict[str, Tensor]


class Spill:
    """Named sets of tensors in a temporary folder (under TMPDIR), which goes with the `with` block; read to a device."""

    def __init__(self, device: str = "cpu"):
        self.device = device

    def __enter__(self) -> "Spill":
        self._folder = tempfile.TemporaryDirectory(prefix="extraction-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def put(self, name: str, tensors: Named) -> None:
        """Write a set, in place of what had the name."""
        parts = {key: tensor.contiguous() for key, tensor in tensors.items()}
        path = Path(self._folder.name, name)
        path.unlink(missing_ok=True)  # safetensors before 0.8 writes into a file that may be mapped
        save_file(parts, path)

    def get(self, name: str) -> Named:
        """Read a set."""
        return load_file(Path(self._folder.name, name), self.device)
