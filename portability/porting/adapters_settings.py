"""The settings of a method of adapters on another host: the same sites and sizes, whatever its width."""

from typing import Any

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.methods.adapters_files import AdaptersFolder
from portability.methods.adapters_places import LORA_FLAGS, SWAPPED
from portability.porting.layer_maps import LayersOf
from portability.porting.settings import stack_map


def adapters_settings(
    adapter: AdaptersFolder, origin: HostShape, receiving: HostShape, layers_of: LayersOf
) -> dict[str, Any]:
    """Settings with which the library makes a module on the receiving host for what is carried to it.

    Args:
        layers_of: as `PortContext.layers_of`.

    Raises:
        UserError: a prefix in some layers only, or every receiving layer would be left out.
    """
    settings = dict(adapter.spec.settings)
    if "configs" in settings:
        return {"configs": [_one(part, origin, receiving, layers_of) for part in settings["configs"]]}
    return _one(settings, origin, receiving, layers_of)


def _one(part: dict[str, Any], origin: HostShape, receiving: HostShape,
         layers_of: LayersOf) -> dict[str, Any]:
    """Of one method: a bottleneck keeps its size, a LoRA its matrices, layers without one stay without."""
    part = dict(part)
    if (factor := part.get("reduction_factor")) is not None:
        size = max(1, int(origin.hidden // factor))
        if max(1, int(receiving.hidden // factor)) != size:
            del part["reduction_factor"]
            part["bottleneck"] = size
    if "intermediate_lora" in part:
        there, here = lora_flags(origin.family), lora_flags(receiving.family)
        part |= {here[site]: bool(part.get(there[site])) for site in LORA_FLAGS}
    if part.get("leave_out"):
        if "prefix_length" in part:
            raise UserError("a prefix in some layers only (leave_out) cannot be ported")
        part["leave_out"] = left_out(_layers(part["leave_out"], origin), origin, receiving, layers_of)
    if isinstance(part.get("layers"), list):  # of a ReFT those that have one
        without = sorted(set(range(sum(origin.layers.values()))) - set(part["layers"]))
        left = left_out(_layers(without, origin), origin, receiving, layers_of)
        part["layers"] = [one for one in range(sum(receiving.layers.values())) if one not in left]
    return part


def lora_flags(family: str) -> dict[str, str]:
    """Site -> the library's setting for a LoRA or (IA)3 beside it.

    Example:
        >>> lora_flags("llama")
        {'ffn_up': 'output_lora', 'ffn_down': 'intermediate_lora'}
    """
    if family in SWAPPED:
        return dict(zip(LORA_FLAGS, reversed(LORA_FLAGS.values()), strict=True))
    return dict(LORA_FLAGS)


def _layers(left: list[int], shape: HostShape) -> set[tuple[str, int]]:
    """Stack and layer of the library's layer numbers, which count on from one stack to the next."""
    stacks = FAMILIES[shape.family].stacks
    places = [(stack, layer) for stack in stacks for layer in range(shape.layers[stack])]
    return {places[number] for number in left if 0 <= number < len(places)}


def left_out(left: set[tuple[str, int]], origin: HostShape, receiving: HostShape,
             layers_of: LayersOf) -> list[int]:
    """The library's numbers of the receiving layers without a module: one of their origin layers has none.

    Raises:
        UserError: all of them.
    """
    stacks, found, number = stack_map(origin, receiving), [], 0
    for stack in FAMILIES[receiving.family].stacks:
        source = stacks.get(stack)
        layers = layers_of(stack, source) if source else [[]] * receiving.layers[stack]
        for origins in layers:
            if any((source, one) in left for one in origins):
                found.append(number)
            number += 1
    if len(found) == number:
        raise UserError("no receiving layer would have a module (leave_out)")
    return found
