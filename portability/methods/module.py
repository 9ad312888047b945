"""A module as named, axis-labelled tensors: what a PEFT method learned, with nothing of the host in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.specs import HostShape

Axes = tuple[str, ...]
Place = tuple[str, int, str]  # stack, layer, site
ROTATION = "rotation"  # role of a matrix (rank, hidden) that acts through its orthonormalised rows alone


def axis_size(axis: str, shape: HostShape) -> int | None:
    """Length of an axis on a host, or None where the axis belongs to the method.

    An axis such as ``hidden/4`` is the host's width cut into 4 equal parts (Compacter's blocks).
    """
    name, _, parts = axis.partition("/")
    size = shape.size(name)
    return size // int(parts) if size is not None and parts else size


@dataclass(frozen=True)
class ModuleState:
    """Slot -> tensor, with a label for every axis of every tensor.

    Host-dependent axes are ``hidden``, ``ffn``, ``kv_heads``, ``group``, ``head_dim`` (perhaps with a
    divisor); all others (``rank``, ``bottleneck``, ``prefix``, ``phm``) belong to the method and are never
    changed by a port.

    Attributes:
        method: its library's word for the method, for messages.
        scales: what the library multiplies the product beside a (stack, layer, site) by, such as LoRA's alpha
            / r. Both are known of what comes from a method on a host, and kept in no file.
    """

    tensors: Mapping[Slot, Tensor]
    axes: Mapping[Slot, Axes]
    method: str = ""
    scales: Mapping[Place, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for slot, tensor in self.tensors.items():
            if len(self.axes[slot]) != tensor.ndim:
                raise ValueError(f"{slot.key}: {tensor.ndim} axes, labels {self.axes[slot]}")

    def map(self, tensors: Mapping[Slot, Tensor]) -> "ModuleState":
        """The same slots and axes with other tensors."""
        return replace(self, tensors=dict(tensors))

    @property
    def entries(self) -> int:
        """Number of parameters."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors by text key, and the axes as safetensors metadata."""
        axes = {slot.key: list(labels) for slot, labels in self.axes.items()}
        tensors = {slot.key: tensor for slot, tensor in self.tensors.items()}
        return tensors, {"axes": json.dumps(axes, sort_keys=True)}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> "ModuleState":
        """The inverse of `to_file`."""
        axes = {Slot.parse(key): tuple(labels) for key, labels in json.loads(metadata["axes"]).items()}
        return cls({Slot.parse(key): tensor for key, tensor in tensors.items()}, axes)


def equal(one: ModuleState, other: ModuleState) -> bool:
    """Whether two modules have the same slots, labels and bits."""
    return dict(one.axes) == dict(other.axes) and all(
        torch.equal(tensor, other.tensors[slot]) for slot, tensor in one.tensors.items())
