"""Methods of the `adapters` library (Poth et al. 2023, arXiv 2311.11077).

    adapter   (Houlsby et al. 2019)     h + U f(D h), D (bottleneck, hidden), U (hidden, bottleneck)
    compacter (Mahabadi et al. 2021)    the same, D and U sums of Kronecker products of shared rules with L R
    lora      (Hu et al. 2021)          W x + alpha / r  B A x, A (r, in), B (out, r)
    prefix    (Li & Liang 2021)         vectors (prefix, heads, head size) before each layer's keys and values

No other module of the package, but for the benchmark, knows the library. It replaces layers of a host by its
own when it is attached first, and these round a T5's attention otherwise: see `prepare`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, LORA_AXES, Slot, parse_name, within_layer
from portability.core.errors import UserError, choose
from portability.core.specs import HostShape, MethodSpec
from portability.core.versions import look_for
from portability.hosts.host import Host
from portability.methods.base import AttachedMethod, ParameterLayout, SlotLayout
from portability.methods.module import Axes

NAME = "module"  # the adapter's name inside the host

# ---- where the library puts its parts, and what their parameters are

BOTTLENECKS = {  # stack -> path in a layer -> site
    "t5": {"encoder": {"layer.0": "attention", "layer.1": "ffn"},
           "decoder": {"layer.0": "attention", "layer.1": "cross_attention", "layer.2": "ffn"}},
    "bert": {"encoder": {"attention.output": "attention", "output": "ffn"}},
    "roberta": {"encoder": {"attention.output": "attention", "output": "ffn"}},
    "gpt2": {"decoder": {"attention_adapters": "attention", "output_adapters": "ffn"}},
    "llama": {"decoder": {"attention_adapters": "attention", "output_adapters": "ffn"}},
}
T5_PREFIXES = {  # name -> stack, site; the other families have self_prefix alone
    "encoder_prefix": ("encoder", "self_prefix"), "self_prefix": ("decoder", "self_prefix"),
    "cross_prefix": ("decoder", "cross_prefix"),
}
PARTS: dict[str, tuple[str, Axes]] = {  # ending of a name -> role, axes; "phm]" stands for phm_dim
    "adapter_down.0.weight": ("down_weight", ("bottleneck", "hidden")),
    "adapter_down.0.bias": ("down_bias", ("bottleneck",)),
    "adapter_up.weight": ("up_weight", ("hidden", "bottleneck")),
    "adapter_up.bias": ("up_bias", ("hidden",)),
    "adapter_down.0.W_left": ("down_left", ("phm", "hidden/phm]", "rank")),
    "adapter_down.0.W_right": ("down_right", ("phm", "rank", "bottleneck/phm]")),
    "adapter_down.0.b": ("down_bias", ("bottleneck",)),
    "adapter_up.W_left": ("up_left", ("phm", "bottleneck/phm]", "rank")),
    "adapter_up.W_right": ("up_right", ("phm", "rank", "hidden/phm]")),
    "adapter_up.b": ("up_bias", ("hidden",)),
    "phm_rule": ("rule", ("phm", "phm", "phm")),
}
PORTABLE = {"composition_mode": "add", "use_dora": False, "vera_d": None, "use_gating": False}  # else no port


class AdaptersBackend:
    """The library as a `MethodBackend`."""

    def attach(self, host: Host, spec: MethodSpec) -> "AdaptersMethod":
        """As `MethodBackend.attach`; the first call on a host changes its layers' classes for good."""
        look_for("adapters", f"method '{spec.name}'")
        config = config_of(spec, host.spec.shape)
        prepare(host)
        method = AdaptersMethod(host, spec, config)
        try:
            method.read_layouts()
        except UserError:
            method.detach()
            raise
        return method


class AdaptersMethod(AttachedMethod):
    """A method of the library on a host; `config` is the library's own."""

    def __init__(self, host: Host, spec: MethodSpec, config: Any):
        super().__init__(host, spec)
        self.config = config
        self._add()

    def _add(self) -> None:
        self.host.model.add_adapter(NAME, config=self.config)
        self.host.model.train_adapter(NAME)
        self.host.model.eval()

    def read_layouts(self) -> None:
        """Set the layouts, of the parameters that the library wants to train, and the scale.

        Raises:
            UserError: a parameter whose place or meaning is not known.
        """
        trained = {name: tuple(p.shape) for name, p in self.host.model.named_parameters() if p.requires_grad}
        self.layouts = [_layout(name, shape, self.spec, self.config, self.host.spec.shape)
                        for name, shape in trained.items()]
        factor = getattr(self.config, "scaling", 1.0)
        self.scale = self.config.alpha / self.config.r if hasattr(self.config, "alpha") else float(factor)

    def draw(self, seed: int) -> dict[str, Tensor]:
        """As the library initialises them, under torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.host.model.delete_adapter(NAME)
            self._add()
        values = dict(self.host.model.named_parameters())
        return {layout.name: values[layout.name].detach().cpu() for layout in self.layouts}

    def detach(self) -> None:
        """Delete the adapter."""
        self.host.model.set_active_adapters(None)
        self.host.model.delete_adapter(NAME)

    def save(self, parameters: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any]) -> None:
        """As `AttachedMethod.save`, by the library itself: `load_adapter` reads the folder."""
        there = dict(self.host.model.named_parameters())
        with torch.no_grad():
            for name, value in parameters.items():
                there[name].copy_(value)
        self.host.model.save_adapter(str(folder), NAME, use_safetensors=True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """No adapter is active within it."""
        self.host.model.set_active_adapters(None)
        try:
            yield
        finally:
            self.host.model.set_active_adapters(NAME)


def prepare(host: Host) -> Host:
    """Replace a host's layers by the library's, in place, unless they are already.

    Whoever computes numbers that are stored calls it on a new host: without a method the layers compute the
    same function, but the last bits of a T5's attention differ, which must not depend on what was attached
    before. Where the library is not installed no method of it can be attached, and hosts stay as they are.
    """
    try:
        import adapters
    except ImportError:
        return host

    if not isinstance(host.model, adapters.ModelAdaptersMixin):
        device = host.model.device
        adapters.init(host.model)
        host.model.requires_grad_(False).eval().to(device)
        if host.family == "llama":
            for layer in host.model.base_model.layers:
                layer.register_forward_pre_hook(_former_name, with_kwargs=True)
    return host


def _former_name(layer: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The library's layer of a llama takes a cache by its former name alone, and ignores today's."""
    cache = kwargs.pop("past_key_values", None)
    return args, kwargs if cache is None else kwargs | {"past_key_value": cache}


# ---- from a library's parameter to slots


def _layout(
    name: str, shape: tuple[int, ...], spec: MethodSpec, config: Any, host: HostShape
) -> ParameterLayout:
    """The slots of a parameter; sizes of the method's own are the config's, whoever set them."""
    try:
        stack, layer, site = _place(host.family, name)
    except KeyError as error:
        raise UserError(f"method '{spec.name}': {error.args[0]}") from error
    if name.endswith("control_trans"):
        return _prefix_layout(name, shape, config.prefix_length, host, stack, site)
    if match := re.search(r"lora_([AB])$", name):
        return _lora_layout(name, shape, config, host, Slot(stack, layer, site, match[1]))
    for ending, (role, labels) in PARTS.items():
        if name.endswith(ending):
            axes = tuple(axis.replace("phm]", str(config.phm_dim)) for axis in labels)
            return ParameterLayout(name, shape, (SlotLayout(Slot(stack, layer, site, role), axes, shape),))
    raise UserError(f"method '{spec.name}': no meaning is known for parameter {name} "
                    "(portability/methods/adapters_backend.py)")


def _place(family: str, name: str) -> tuple[str, int, str]:
    """Stack, layer and site of a parameter's name.

    Raises:
        KeyError: no place is known for it.
    """
    if "shared_parameters." in name:
        return "shared", 0, "phm"
    if name.endswith("_prefix.control_trans"):
        prefix, only = name.split(".")[-2], next(iter(FAMILIES[family].stacks))
        places = T5_PREFIXES if family == "t5" else {"self_prefix": (only, "self_prefix")}
        if prefix in places:
            stack, site = places[prefix]
            return stack, 0, site
    if ".adapters." in name and (inside := within_layer(family, name)):
        stack, layer, rest = inside
        if bottleneck := BOTTLENECKS[family][stack].get(rest.partition(".adapters.")[0]):
            return stack, layer, bottleneck
    return parse_name(family, name)


def _lora_layout(
    name: str, shape: tuple[int, ...], config: Any, host: HostShape, slot: Slot
) -> ParameterLayout:
    """A pair's A (r, in) or B (out, r); beside a matrix of several sites, theirs one after the other."""
    slots = []
    for site in slot.site.split("+"):
        if "+" in slot.site and site[0] not in config.attn_matrices:
            continue
        into, out = LORA_AXES[site.removeprefix("cross_")]
        axes = ("rank", *into) if slot.role == "A" else (*out, "rank")
        sizes = tuple(config.r if axis == "rank" else int(host.size(axis) or 0) for axis in axes)
        slots.append(SlotLayout(slot._replace(site=site), axes, sizes))
    return ParameterLayout(name, shape, tuple(slots))


def _prefix_layout(
    name: str, shape: tuple[int, ...], length: int, host: HostShape, stack: str, site: str
) -> ParameterLayout:
    """A flat prefix is one vector for all layers: (prefix, layer, key | value, heads, head_dim)."""
    axes, sizes = ("prefix", "kv_heads", "head_dim"), (length, host.kv_heads, host.head_dim)
    slots = tuple(SlotLayout(Slot(stack, layer, site, role), axes, sizes)
                  for layer in range(host.layers[stack]) for role in ("prefix_key", "prefix_value"))
    return ParameterLayout(name, shape, slots, axis=1)


# ---- from a method's settings to the library's config


def config_of(spec: MethodSpec, shape: HostShape) -> Any:
    """A config object of the library.

    `bottleneck` is a setting of our own: the library ties the bottleneck to the width through
    `reduction_factor`, so the factor follows here and the module keeps its size on every host.

    Raises:
        UserError: unknown config class or setting, a kind of method that cannot be ported, or a width that
            does not divide.
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
    _check_portable(config, spec)
    if parts := getattr(config, "phm_layer", False) and config.phm_dim:
        for what, size in (("width", shape.hidden), ("bottleneck", bottleneck)):
            if size is not None and size % parts:
                raise UserError(f"method '{spec.name}': the {what} {size} must divide by phm_dim {parts}; a "
                                f"{what} of {max(size - size % parts, parts)} would fit")
    return config


def _check_portable(config: Any, spec: MethodSpec) -> None:
    """Refuse methods that are no sum or not a single one: a port could not fit them to another host."""
    if getattr(config, "architecture", None) == "union":
        raise UserError(f"method '{spec.name}': {spec.config} is several methods in one, which cannot be "
                        "ported; choose the config class of one of them (conf/method)")
    for key, wanted in PORTABLE.items():
        if (found := getattr(config, key, wanted)) != wanted:
            raise UserError(f"method '{spec.name}': {spec.config} with {key}={found} cannot be ported, only "
                            f"with {key}={wanted}; choose another config class or setting (conf/method)")
