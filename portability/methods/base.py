"""Methods come from libraries; here a library's parameters become a module's slots, and back.

A method is one YAML in conf/method: the library's config class and its settings. `Mounted` is a method placed on a
host; the host's own parameters are never touched.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import LORA_AXES, Slot, locate
from portability.core.errors import UserError, choose
from portability.core.specs import HostShape, MethodSpec
from portability.hosts.host import Host
from portability.methods.module import Axes, ModuleState
from portability.methods.subtractive_lora import Lora, LoraSettings, lora_settings

NAME = "module"  # the adapter's name inside the host


class Layout:
    """How one library parameter splits into slots: `decode` cuts it apart, `encode` puts it together again."""

    def __init__(self, name: str, shape: torch.Size, slots: list[tuple[Slot, Axes, tuple[int, ...]]], dim: int | None):
        self.name, self.shape, self.slots, self.dim = name, shape, slots, dim

    def decode(self, parameter: Tensor) -> dict[Slot, Tensor]:
        """Slot -> tensor of the slot's own shape (copies)."""
        if self.dim is None:  # a flat prefix: (prefix, layers x key|value, heads, head_dim)
            first = self.slots[0][2]
            parts = list(parameter.reshape(first[0], len(self.slots), *first[1:]).unbind(1))
        else:
            parts = list(parameter.chunk(len(self.slots), self.dim))
        return {slot: part.reshape(size).clone() for part, (slot, _, size) in zip(parts, self.slots, strict=True)}

    def encode(self, tensors: Mapping[Slot, Tensor]) -> Tensor:
        """The library's parameter, of its own shape."""
        parts = [tensors[slot] for slot, _, _ in self.slots]
        if self.dim is None:
            return torch.stack(parts, 1).reshape(self.shape).clone()
        rows = [self.shape[0] // len(parts), *self.shape[1:]]
        return torch.cat([part.reshape(rows) for part in parts], 0).reshape(self.shape).clone()


class Mount(ABC):
    """What a library put on a host for a method.

    Attributes:
        layouts: the parameters to train.
        frozen: the tensors that hold what a start subtracts; none where the library cannot subtract.
    """

    layouts: list[Layout]
    frozen: list[Layout]

    @abstractmethod
    def fresh(self, seed: int) -> dict[str, Tensor]:
        """The library's own initial values, from this seed and nothing else."""

    @abstractmethod
    def unmount(self) -> None:
        """Take everything off the host again."""


class AdaptersMount(Mount):
    """A method of the `adapters` library."""

    def __init__(self, host: Host, spec: MethodSpec, config: Any):
        self.model, self.config, self.frozen = host.model, config, []
        self._add()
        trainable = {name: p.shape for name, p in self.model.named_parameters() if p.requires_grad}
        self.layouts = [_layout(name, shape, spec, config, host.spec.shape) for name, shape in trainable.items()]

    def _add(self) -> None:
        self.model.add_adapter(NAME, config=self.config)
        self.model.train_adapter(NAME)
        self.model.eval()

    def unmount(self) -> None:
        self.model.set_active_adapters(None)
        self.model.delete_adapter(NAME)

    def fresh(self, seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model.delete_adapter(NAME)
            self._add()
        values = dict(self.model.named_parameters())
        return {layout.name: values[layout.name].detach().cpu() for layout in self.layouts}


class LoraMount(Mount):
    """Our own LoRA (portability/methods/subtractive_lora.py)."""

    def __init__(self, host: Host, spec: MethodSpec, config: LoraSettings):
        self.lora = Lora(host, config, spec.name)
        self.layouts, self.frozen = (
            [Layout(name, torch.Size(shape), [part], 0) for name, (shape, part) in parts.items()]
            for parts in (self.lora.trained, self.lora.frozen))

    def unmount(self) -> None:
        self.lora.unmount()

    def fresh(self, seed: int) -> dict[str, Tensor]:
        return self.lora.fresh(seed)


class Mounted:
    """A method on a host: its parameters' names, how they split into slots, and fresh values for them."""

    def __init__(self, host: Host, spec: MethodSpec):
        self.host, self.spec = host, spec
        library = choose(spec.library, MOUNTS, "PEFT library")
        self.config = MOUNTS[library](spec, host.spec.shape)
        self.mount = LIBRARIES[library](host, spec, self.config)
        self.layouts = self.mount.layouts
        if not self.layouts:
            raise UserError(f"method '{spec.name}' adds no parameter to host '{host.spec.name}'")
        self.shapes = {layout.name: layout.shape for layout in self.layouts}

    def unmount(self) -> None:
        """Take the method off the host again."""
        self.mount.unmount()

    def fresh(self, seed: int) -> ModuleState:
        """A module as the library itself initialises it, from this seed and nothing else, in ordinary memory."""
        return self.to_state(self.mount.fresh(seed))

    def to_state(self, parameters: Mapping[str, Tensor]) -> ModuleState:
        """The module held by the library's parameters."""
        tensors: dict[Slot, Tensor] = {}
        for layout in self.layouts:
            tensors |= layout.decode(parameters[layout.name])
        return ModuleState(tensors, {slot: axes for layout in self.layouts for slot, axes, _ in layout.slots})

    def to_parameters(self, state: ModuleState) -> dict[str, Tensor]:
        """The library's parameters for a module of this host's shape.

        Raises:
            ValueError: a slot is missing, left over, or of another shape.
        """
        return self._encode(self.layouts, state)

    def to_frozen(self, start: ModuleState | None) -> dict[str, Tensor]:
        """The library's frozen tensors for a start that is subtracted from the host, or zeros for None.

        Args:
            start: the initial module itself (``subtract: product``), or for each of its sites one matrix of role "D" with
                the axes of what comes out, then of what goes in (``subtract: block``).

        Raises:
            UserError: the library cannot subtract a start.
            ValueError: a slot is missing, left over, or of another shape.
        """
        if not self.mount.frozen:
            raise UserError(f"method '{self.spec.name}' of library {self.spec.library} cannot subtract a start; use one of "
                            "library portability (conf/method/lora_all.yaml)")
        if start is None:
            return {layout.name: torch.zeros(layout.shape) for layout in self.mount.frozen}
        return self._encode(self.mount.frozen, start)

    def _encode(self, layouts: Sequence[Layout], state: ModuleState) -> dict[str, Tensor]:
        expected = {slot: size for layout in layouts for slot, _, size in layout.slots}
        found = {slot: tuple(tensor.shape) for slot, tensor in state.tensors.items()}
        if expected != found:
            wrong = sorted({s.key for s in expected.keys() ^ found.keys()} or
                           {s.key for s in expected if expected[s] != found[s]})
            raise ValueError(f"module does not fit host '{self.host.spec.name}' at {', '.join(wrong[:3])}")
        return {layout.name: layout.encode(state.tensors) for layout in layouts}


# ---- from a library's parameter to slots


def _layout(name: str, shape: torch.Size, spec: MethodSpec, config: Any, host: HostShape) -> Layout:
    """The slots of a library's parameter; sizes of the method's own are the config's, whoever set them."""
    try:
        stack, layer, site = locate(host.family, name)
    except KeyError as error:
        raise UserError(f"method '{spec.name}': {error.args[0]}") from error
    if name.endswith("control_trans"):
        return _prefix_layout(name, shape, spec, config.prefix_length, host, stack, site)
    for ending, role, axes in _PARTS:
        if name.endswith(ending):
            axes = tuple(axis.replace("phm]", str(config.phm_dim)) for axis in axes)
            _check_bottleneck(name, axes, shape, spec)
            return Layout(name, shape, [(Slot(stack, layer, site, role), axes, tuple(shape))], 0)
    match = re.search(r"lora_([AB])$", name)
    if match is None:
        raise UserError(f"method '{spec.name}': no meaning is known for parameter {name} (portability/methods/base.py)")
    sites = [s for s in site.split("+") if "+" not in site or s[0] in config.attn_matrices]
    slots = []
    for one in sites:
        into, out = LORA_AXES[one.removeprefix("cross_")]
        axes = ("rank", *into) if match[1] == "A" else (*out, "rank")
        sizes = {"rank": config.r} | {axis: host.size(axis) for axis in into + out}
        slots.append((Slot(stack, layer, one, match[1]), axes, tuple(int(sizes[axis] or 0) for axis in axes)))
    return Layout(name, shape, slots, 0)


def _check_bottleneck(name: str, axes: Axes, shape: torch.Size, spec: MethodSpec) -> None:
    """Make sure that the library gave the bottleneck the size that was asked for."""
    wanted = spec.settings.get("bottleneck")
    for axis, size in zip(axes, shape, strict=True):
        label, _, parts = axis.partition("/")
        if label == "bottleneck" and wanted is not None and size * int(parts or 1) != wanted:
            raise UserError(f"method '{spec.name}': {name} has a bottleneck of {size * int(parts or 1)}, not {wanted}")


def _prefix_layout(
    name: str, shape: torch.Size, spec: MethodSpec, length: int, host: HostShape, stack: str, site: str
) -> Layout:
    """adapters' flat prefix is one vector for all layers: (prefix, layer, key | value, heads, head_dim)."""
    size = (length, host.kv_heads, host.head_dim)
    places = [(layer, role) for layer in range(host.layers[stack]) for role in ("prefix_key", "prefix_value")]
    if len(places) * size[0] * size[1] * size[2] != shape.numel():
        raise UserError(f"method '{spec.name}': prefix {name} has {shape.numel()} entries, not {len(places)} x {size}")
    axes = ("prefix", "kv_heads", "head_dim")
    return Layout(name, shape, [(Slot(stack, layer, site, role), axes, size) for layer, role in places], None)


_PARTS: tuple[tuple[str, str, Axes], ...] = (  # ending of the library's name, role, axes; "phm]" stands for phm_dim
    ("adapter_down.0.weight", "down_weight", ("bottleneck", "hidden")),
    ("adapter_down.0.bias", "down_bias", ("bottleneck",)),
    ("adapter_up.weight", "up_weight", ("hidden", "bottleneck")),
    ("adapter_up.bias", "up_bias", ("hidden",)),
    ("adapter_down.0.W_left", "down_left", ("phm", "hidden/phm]", "rank")),
    ("adapter_down.0.W_right", "down_right", ("phm", "rank", "bottleneck/phm]")),
    ("adapter_down.0.b", "down_bias", ("bottleneck",)),
    ("adapter_up.W_left", "up_left", ("phm", "bottleneck/phm]", "rank")),
    ("adapter_up.W_right", "up_right", ("phm", "rank", "hidden/phm]")),
    ("adapter_up.b", "up_bias", ("hidden",)),
    ("phm_rule", "rule", ("phm", "phm", "phm")),
)


# ---- from a method's settings to the library's config


def _adapters_config(spec: MethodSpec, shape: HostShape) -> Any:
    """A config object of the `adapters` library.

    `bottleneck` is a size of our own: the library ties it to the width through `reduction_factor`, so the factor
    follows here and the module keeps its size on every host.

    Raises:
        UserError: unknown config class or setting, a kind of method that cannot be ported, or a width that does not divide.
    """
    import adapters

    classes = {name for name in dir(adapters) if name.endswith("Config")}
    settings = dict(spec.settings)
    if (bottleneck := settings.pop("bottleneck", None)) is not None:
        settings["reduction_factor"] = shape.hidden / (bottleneck + 0.5)  # the library rounds down
    for key in ("dropout", "attention_dropout"):
        if settings.get(key):
            raise UserError(f"method '{spec.name}': {key}={settings[key]} is not supported, set it to 0")
    try:
        config = getattr(adapters, choose(spec.config, classes, "config class of adapters"))(**settings)
    except TypeError as error:
        raise UserError(f"method '{spec.name}': {error} (conf/method/{spec.name}.yaml)") from error
    _check_kind(config, spec)
    if parts := getattr(config, "phm_layer", False) and config.phm_dim:
        for what, size in (("width", shape.hidden), ("bottleneck", bottleneck)):
            if size is not None and size % parts:
                raise UserError(f"method '{spec.name}': the {what} {size} must divide by phm_dim {parts}; a {what} of "
                                f"{max(size - size % parts, parts)} would fit")
    return config


def _check_kind(config: Any, spec: MethodSpec) -> None:
    """Refuse the library's methods that are no sum or no single method, because a port could not fit them to another host."""
    if getattr(config, "architecture", None) == "union":
        raise UserError(f"method '{spec.name}': {spec.config} is several methods in one, which cannot be ported; "
                        "choose the config class of one of them (conf/method)")
    for key, plain in _PLAIN.items():
        if (found := getattr(config, key, plain)) != plain:
            raise UserError(f"method '{spec.name}': {spec.config} with {key}={found} cannot be ported, only with {key}="
                            f"{plain}; choose another config class or setting (conf/method)")


_PLAIN = {"composition_mode": "add", "use_dora": False, "vera_d": None, "use_gating": False}  # of a method that can be ported


def _lora_config(spec: MethodSpec, shape: HostShape) -> LoraSettings:
    """Settings of our own LoRA, which are the same on every host."""
    choose(spec.config, ("LoRA",), "config class of portability")
    return lora_settings(spec.settings, spec.name)


MOUNTS: dict[str, Callable[[MethodSpec, HostShape], Any]] = {"adapters": _adapters_config, "portability": _lora_config}
LIBRARIES: dict[str, Callable[[Host, MethodSpec, Any], Mount]] = {"adapters": AdaptersMount, "portability": LoraMount}
