"""The interface of a library of methods: a method attached to a host, its parameters as slots of a module.

    attach(host, spec): init_parameters -> to_parameters -> training -> to_state; disabled(); detach()
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.hosts.host import Host
from portability.methods.module import Axes, ModuleState, Place


class SlotLayout(NamedTuple):
    """A slot with the labels and sizes of its axes."""

    slot: Slot
    axes: Axes
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class ParameterLayout:
    """How one parameter of a library splits into slots.

    Attributes:
        name: the parameter's name in the host's model.
        shape: the parameter's own.
        slots: in the order in which they stand in it.
        axis: they stand one after the other along its first axis (0), or behind the slots' first axis (1): a
            flat prefix is (prefix, slots, heads, head_dim).
    """

    name: str
    shape: tuple[int, ...]
    slots: tuple[SlotLayout, ...]
    axis: int = 0

    def decode(self, parameter: Tensor) -> dict[Slot, Tensor]:
        """Slot -> tensor of the slot's own sizes (copies)."""
        if self.axis == 0:
            parts = parameter.reshape(-1).split([math.prod(sizes) for _, _, sizes in self.slots])
        else:
            parts = parameter.reshape(*self.slots[0].sizes[:1], len(self.slots), -1).unbind(1)
        return {slot: part.reshape(sizes).clone(memory_format=torch.contiguous_format)
                for part, (slot, _, sizes) in zip(parts, self.slots, strict=True)}

    def encode(self, tensors: Mapping[Slot, Tensor]) -> Tensor:
        """The library's parameter, of its own shape (a copy)."""
        if self.axis == 0:
            return torch.cat([tensors[slot].reshape(-1) for slot, _, _ in self.slots]).reshape(self.shape)
        parts = [tensors[slot].reshape(*self.slots[0].sizes[:1], -1) for slot, _, _ in self.slots]
        return torch.stack(parts, 1).reshape(self.shape)


class AttachedMethod(ABC):
    """A method on a host, whose own parameters are never touched.

    Attributes:
        layouts: the parameters to train.
        frozen: the tensors that hold what a start subtracts; none where the library cannot subtract.
        scale: what the library multiplies the module's product by, such as LoRA's alpha / r; else 1.
        scales: the same of each (stack, layer, site), where the library has it site by site.
    """

    layouts: Sequence[ParameterLayout] = ()
    frozen: Sequence[ParameterLayout] = ()
    scale: float = 1.0
    scales: Mapping[Place, float] = MappingProxyType({})

    def __init__(self, host: Host, spec: MethodSpec):
        self.host, self.spec = host, spec

    @abstractmethod
    def draw(self, seed: int) -> dict[str, Tensor]:
        """Name -> the library's own initial values, from this seed and nothing else, in ordinary memory."""

    def _drawn(self, seed: int, add: Callable[[], None]) -> dict[str, Tensor]:
        """`draw` of a library that draws from torch's global generator, which is left as it was, when it puts
        the method on the host (`add`)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add()
        values = dict(self.host.model.named_parameters())
        return {layout.name: values[layout.name].detach().cpu() for layout in self.layouts}

    @abstractmethod
    def detach(self) -> None:
        """Take the method off the host again, which is then as it was."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """Within it the host computes without the method."""

    def save(self, parameters: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any]) -> None:
        """Write a module as a folder that the library loads on this host.

        Args:
            parameters: as of `to_parameters`.
            folder: must not exist.
            about: base_model_name_or_path, revision, task_type.

        Raises:
            UserError: the library has no such folders.
        """
        raise UserError(f"method '{self.spec.name}': library {self.spec.library} writes no folder of its own")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters to train, by name."""
        return {layout.name: layout.shape for layout in self.layouts}

    def init_parameters(self, seed: int) -> ModuleState:
        """A module as the library initialises it, from this seed and nothing else, in ordinary memory."""
        return self.to_state(self.draw(seed))

    def to_state(self, parameters: Mapping[str, Tensor]) -> ModuleState:
        """The module held by the library's parameters."""
        tensors: dict[Slot, Tensor] = {}
        for layout in self.layouts:
            tensors |= layout.decode(parameters[layout.name])
        axes = {slot: axes for layout in self.layouts for slot, axes, _ in layout.slots}
        return ModuleState(tensors, axes, self.spec.config, self.scales)

    def to_parameters(self, state: ModuleState) -> dict[str, Tensor]:
        """The library's parameters for a module of this host's shape.

        Raises:
            ValueError: a slot is missing, left over, or of another shape.
        """
        return self._encode(self.layouts, state)

    def to_frozen(self, start: ModuleState | None) -> dict[str, Tensor]:
        """The library's frozen tensors for a start that is subtracted from the host, or zeros for None.

        Args:
            start: the initial module itself (``subtract: product``), or for each of its sites one matrix of
                role "D" with the axes of what comes out, then of what goes in (``subtract: block``).

        Raises:
            UserError: the library cannot subtract a start.
            ValueError: a slot is missing, left over, or of another shape.
        """
        if not self.frozen:
            raise UserError(f"method '{self.spec.name}' of library {self.spec.library} cannot subtract a "
                            "start; use one of library portability (conf/method/lora_all.yaml)")
        if start is None:
            return {layout.name: torch.zeros(layout.shape) for layout in self.frozen}
        return self._encode(self.frozen, start)

    def _encode(self, layouts: Sequence[ParameterLayout], state: ModuleState) -> dict[str, Tensor]:
        expected = {slot: sizes for layout in layouts for slot, _, sizes in layout.slots}
        found = {slot: tuple(tensor.shape) for slot, tensor in state.tensors.items()}
        if expected != found:
            slots = expected.keys() | found.keys()
            wrong = sorted(slot.key for slot in slots if expected.get(slot) != found.get(slot))
            raise ValueError(f"module does not fit host '{self.host.spec.name}' at {', '.join(wrong[:3])}")
        return {layout.name: layout.encode(state.tensors) for layout in layouts}


class MethodBackend(Protocol):
    """A library of methods."""

    def attach(self, host: Host, spec: MethodSpec) -> AttachedMethod:
        """Put a method of the library on a host, in place.

        Raises:
            UserError: the library has no such method, a setting cannot work, or the method does not fit the
                host, which is left as it was.
        """
