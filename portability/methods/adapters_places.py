"""Where the `adapters` library puts its parts in a host, and what their parameters are as slots."""

import math
import re
from typing import Any

from portability.core.architectures import FAMILIES, LORA_AXES, Slot, parse_name, within_layer
from portability.core.errors import UserError
from portability.core.specs import HostShape, MethodSpec
from portability.methods.adapters_reft import reft_slots
from portability.methods.base import ParameterLayout, SlotLayout
from portability.methods.module import Axes

_T5 = {"encoder": {"layer.0": "attention", "layer.1": "ffn"},
       "decoder": {"layer.0": "attention", "layer.1": "cross_attention", "layer.2": "ffn"}}
_BERT = {"encoder": {"attention.output": "attention", "output": "ffn"}}
_LAYER = {"attention_adapters": "attention", "output_adapters": "ffn"}
_DECODER = {"decoder": _LAYER}

BOTTLENECKS: dict[str, dict[str, dict[str, str]]] = {  # the library's families: stack -> path -> site
    "t5": _T5, "mt5": _T5,
    "bert": _BERT, "roberta": _BERT, "xlm-roberta": _BERT, "deberta-v2": _BERT,
    "distilbert": {"encoder": _LAYER},
    "gpt2": _DECODER, "llama": _DECODER, "mistral": _DECODER, "qwen2": _DECODER, "qwen3": _DECODER,
    "gemma2": _DECODER, "gemma3_text": _DECODER,
    "bart": {"encoder": _LAYER, "decoder": _LAYER | {"cross_attention_adapters": "cross_attention"}},
}
LORA_FLAGS = {"ffn_up": "intermediate_lora", "ffn_down": "output_lora"}  # site -> the library's setting
SWAPPED = ("llama", "mistral")  # whose two layers the library has the other way round
PREFIXES = {  # name in a host of two stacks -> stack, site; the other families have one of their own layers'
    "encoder_prefix": ("encoder", "self_prefix"), "self_prefix": ("decoder", "self_prefix"),
    "cross_prefix": ("decoder", "cross_prefix"),
}
CROSS = ("EncDecAttention", "encoder_attn")  # attention to the other stack's states, in names
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
    "adapters.module.gate.weight": ("gate_weight", ("one", "hidden")),
    "adapters.module.gate.bias": ("gate_bias", ("one",)),
    "adapters.module.scaling": ("scaling", ("one",)),
    "prefix_gates.module.weight": ("gate_weight", ("gates", "hidden")),
    "prefix_gates.module.bias": ("gate_bias", ("gates",)),
}


def parts_of(config: Any) -> list[Any]:
    """The methods of a config of the library: itself, or those of a union."""
    return list(getattr(config, "configs", None) or [config])


def layout_of(name: str, shape: tuple[int, ...], spec: MethodSpec, config: Any,
              host: HostShape) -> ParameterLayout:
    """The slots of a parameter; sizes of the method's own are the config's, whoever set them.

    Args:
        name: in a host, of an adapter of the name "module".

    Raises:
        UserError: a parameter whose place, meaning or size is not known.
    """
    try:
        place = _place(host.family, name)
    except KeyError as error:
        raise UserError(f"method '{spec.name}': {error.args[0]}") from error
    part = {one.architecture: one for one in parts_of(config)}
    if match := re.search(r"prefix_tunings\.module\.\w+\.(.+)$", name):
        slots = _prefix_slots(match[1], shape, part["prefix_tuning"].prefix_length, host, place)
    elif match := re.search(r"\.loras\.module\.(.+)$", name):
        slots = _lora_slots(match[1], part["lora"], host, place, name, spec)
    elif ".refts.module." in name:
        slots = reft_slots(name, part.get("reft"), host, place)
    else:
        slots = _own_slots(name, shape, part.get(None), host, place, spec)
    if sum(math.prod(slot.sizes) for slot in slots) != math.prod(shape):
        raise UserError(f"method '{spec.name}': parameter {name} has shape {shape}, which does not belong to "
                        f"a {host.family} host of width {host.hidden}: it was made on another base, or the "
                        "library takes other sizes than the host has")
    return ParameterLayout(name, shape, tuple(slots), 1 if name.endswith("control_trans") else 0)


def _place(family: str, name: str) -> tuple[str, int, str]:
    """Stack, layer and site of a parameter's name.

    Raises:
        KeyError: no place is known for it.
    """
    stacks = FAMILIES[family].stacks
    if "shared_parameters." in name:
        return "shared", 0, "phm"
    if match := re.search(r"prefix_tunings\.module\.(\w+)\.", name):
        places = PREFIXES if len(stacks) == 2 else dict.fromkeys(("self_prefix", "self"),
                                                                  (next(iter(stacks)), "self_prefix"))
        if match[1] in places:
            stack, site = places[match[1]]
            return stack, 0, site
    elif inside := within_layer(family, name):
        stack, layer, rest = inside
        if ".refts." in name:
            return stack, layer, "states"
        if ".prefix_gates." in name:
            return stack, layer, "cross_prefix" if any(one in rest for one in CROSS) else "self_prefix"
        if bottleneck := BOTTLENECKS[family][stack].get(rest.partition(".adapters.")[0]):
            return stack, layer, bottleneck
    return parse_name(family, name)


def _own_slots(name: str, shape: tuple[int, ...], bottleneck: Any, host: HostShape,
               place: tuple[str, int, str], spec: MethodSpec) -> list[SlotLayout]:
    """Of a parameter that is one slot: of a bottleneck or a gate."""
    for ending, (role, labels) in PARTS.items():
        if name.endswith(ending):
            if role == "scaling" and bottleneck.scaling == "channel":
                labels = ("hidden",)
            if len(labels) != len(shape):
                break
            axes = tuple(axis.replace("phm]", str(getattr(bottleneck, "phm_dim", ""))) for axis in labels)
            sizes = tuple(host.size(axis) or size for axis, size in zip(axes, shape, strict=True))
            return [SlotLayout(Slot(*place, role), axes, sizes)]
    raise UserError(f"method '{spec.name}': no meaning is known for parameter {name} "
                    "(portability/methods/adapters_places.py)")


def _lora_slots(part: str, config: Any, host: HostShape, place: tuple[str, int, str], name: str,
                spec: MethodSpec) -> list[SlotLayout]:
    """A pair's A (r, in) or B (out, r), the factors of (IA)3 (out, 1), or a gate (1, in).

    Beside a matrix of query, key and value each has its own, one after the other.
    """
    stack, layer, joined = place
    slots = []
    for site in joined.split("+"):
        if "+" in joined and site[0] not in config.attn_matrices:
            continue
        into, out = LORA_AXES[site.removeprefix("cross_")]
        role, axes = {
            "lora_A": ("A", ("rank", *into)),
            "lora_B": ("B", (*out, "rank")) if config.composition_mode == "add" else ("ia3_l", (*out, "one")),
            "gate.weight": ("gate_weight", ("one", *into)), "gate.bias": ("gate_bias", ("one",)),
        }.get(part, ("", ()))
        if not role:
            raise UserError(f"method '{spec.name}': no meaning is known for parameter {name} "
                            "(portability/methods/adapters_places.py)")
        sizes = tuple(config.r if axis == "rank" else int(host.size(axis) or 1) for axis in axes)
        slots.append(SlotLayout(Slot(stack, layer, site, role), axes, sizes))
    return slots


def _prefix_slots(part: str, shape: tuple[int, ...], length: int, host: HostShape,
                  place: tuple[str, int, str]) -> list[SlotLayout]:
    """A flat prefix is one vector for all layers: (prefix, layer, key | value, heads, head_dim). An MLP makes
    it of a table (prefix, hidden): its last layer has rows for (layer, key | value, heads, head_dim)."""
    stack, _, site = place
    heads, sizes = ("kv_heads", "head_dim"), (host.kv_heads, host.head_dim)
    layers = [(layer, one) for layer in range(host.layers[stack]) for one in ("key", "value")]
    if part == "control_trans":
        return [SlotLayout(Slot(stack, layer, site, f"prefix_{one}"), ("prefix", *heads), (length, *sizes))
                for layer, one in layers]
    if part == "control_trans.2.weight":
        return [SlotLayout(Slot(stack, layer, site, f"mlp_{one}"), (*heads, "mlp"), (*sizes, shape[1]))
                for layer, one in layers]
    if part == "control_trans.2.bias":
        return [SlotLayout(Slot(stack, layer, site, f"mlp_{one}_bias"), heads, sizes)
                for layer, one in layers]
    role, axes = {"wte.weight": ("tokens", ("prefix", "hidden")),
                  "control_trans.0.weight": ("mlp_in", ("mlp", "hidden")),
                  "control_trans.0.bias": ("mlp_in_bias", ("mlp",))}[part]
    found = tuple(host.size(axis) or size for axis, size in zip(axes, shape, strict=True))
    return [SlotLayout(Slot("shared", 0, f"{stack}_{site}", role), axes, found)]
