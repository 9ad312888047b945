"""The settings of a method of peft on another architecture: the same sites, ranks and scales under that
host's names."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from portability.core.architectures import FAMILIES, Slot
from portability.core.errors import UserError
from portability.core.specs import HostShape, MethodSpec
from portability.methods.module import ModuleState, Place
from portability.methods.peft_backend import NAMED, PROJECTIONS, PROMPTS, endings, layout_of
from portability.methods.peft_files import PLACES, PeftFolder, parameter_name
from portability.porting.layer_maps import LayersOf
from portability.porting.roles import different


class Low(NamedTuple):
    """Rank and alpha of a low-rank pair."""

    rank: int
    alpha: float


def stack_map(origin: HostShape, receiving: HostShape) -> dict[str, str]:
    """Receiving stack -> origin stack: the same name, or the only one where each side has just one.

    Example:
        >>> from portability.core.specs import HostShape
        >>> bert = HostShape("bert", {"encoder": 2}, 8, 16, 2, 2, 4)
        >>> stack_map(bert, HostShape("gpt2", {"decoder": 3}, 8, 16, 2, 2, 4))
        {'decoder': 'encoder', 'shared': 'shared'}
    """
    pairs = {stack: stack for stack in receiving.layers if stack in origin.layers}
    if not pairs and len(origin.layers) == len(receiving.layers) == 1:
        pairs = {next(iter(receiving.layers)): next(iter(origin.layers))}
    return pairs | {"shared": "shared"}


def peft_settings(
    adapter: PeftFolder, module: ModuleState, origin: HostShape, receiving: HostShape, layers_of: LayersOf
) -> dict[str, Any]:
    """Settings with which the library makes a module on the receiving host for what is carried to it.

    Args:
        module: of the folder, on the origin.
        layers_of: as `PortContext.layers_of`.

    Raises:
        UserError: a pair without its A, layers that become one have unequal ranks or scales, or the
            receiving family has none of the module's sites.
    """
    settings = {key: value for key, value in adapter.spec.settings.items() if key not in PLACES}
    if adapter.spec.config in PROMPTS:
        return settings
    have = {(slot.stack, slot.layer, slot.site) for slot in module.tensors if slot.site not in ("prompt",)}
    have = {place for place in have if place[2] != "vblora_vector_bank"}
    own = replace(origin, layers={stack: depth for stack, depth in origin.layers.items()
                                  if stack in {place[0] for place in have}})
    low, inward = low_ranks(adapter, origin), _inward(module)
    paths: dict[Place, list[str]] = defaultdict(list)  # receiving place -> paths of its modules
    sources: dict[Place, list[Place]] = {}
    for stack, source in stack_map(own, receiving).items():
        layers = ([[0]] if stack == "shared" else
                  layers_of(stack, source))
        for layer, origins in enumerate(layers):
            for site, path in sites_of(receiving.family, stack):
                behind = [_counterparts(have, (source, one, site)) for one in origins]
                if all(behind):
                    paths[(stack, layer, site)].append(path)
                    sources[(stack, layer, site)] = [place for places in behind for place in places]
    if not paths:
        raise UserError(f"a {receiving.family} host has none of the module's sites "
                        f"{', '.join(sorted({site for _, _, site in have}))}")
    settings["target_modules"] = _targets(paths, receiving)
    if inward:
        feeding = {place: names for place, names in paths.items() if sources[place][0] in inward}
        settings["feedforward_modules"] = _targets(feeding, receiving) if feeding else []
    settings |= _other_patterns(adapter, origin, sources, paths, receiving)
    if low:
        if half := sorted({place for found in sources.values() for place in found} - low.keys()):
            raise UserError(f"{adapter.folder} has half of a pair at {'.'.join(map(str, half[0]))}: lora_B "
                            "without lora_A")
        joined = {}
        for place, many in sources.items():
            by_layer = [list(ones) for _, ones in groupby(many, lambda one: one[1])]
            joined[place] = _one([_joined(low, module, ones, bool(settings.get("use_rslora")))
                                  for ones in by_layer], place)
        settings |= _patterns(joined, paths, receiving)
    return settings


def _counterparts(have: Set[Place], place: Place) -> list[Place]:
    """The module's places of one layer that share a site with a place, perhaps of several sites in one
    matrix."""
    sites = set(place[2].split("+"))
    return sorted(one for one in have if one[:2] == place[:2] and sites & set(one[2].split("+")))


def _joined(low: Mapping[Place, Low], module: ModuleState, places: list[Place], rooted: bool) -> Low:
    """Rank and alpha of one layer's pairs together: beside a matrix of several sites the ranks of the
    origin's separate pairs add up, as far as their A differ, so that nothing is lost; the scale stays.

    Args:
        rooted: whether the scale is alpha over the rank's root, not over the rank.
    """
    first, power = low[places[0]], 0.5 if rooted else 1.0
    scales = {round(low[one].alpha / low[one].rank**power, 9) for one in places}
    if len(scales) > 1:
        raise UserError(f"pairs of unequal scale (lora_alpha over the rank) would become one, those of "
                        f"{', '.join('.'.join(map(str, one)) for one in places)}: the receiving host has one "
                        "matrix for them")
    rank = sum(map(len, different([module.tensors[Slot(*one, "A")] for one in places])[0]))
    return first if rank == first.rank else Low(rank, first.alpha * (rank / first.rank)**power)


def sites_of(family: str, stack: str) -> list[tuple[str, str]]:
    """Site and path of each of a stack's modules, or of those outside the layers."""
    rows = FAMILIES[family]
    if stack == "shared":
        return [(site, path) for path, site in rows.shared.items()]
    return [(site, path) for path, site in {**rows.matrices[stack], **rows.norms[stack]}.items()]


def full_name(place: Place, path: str, family: str) -> str:
    """A module's name, from the model's own prefix on."""
    stack, layer, _ = place
    if stack == "shared":
        return path
    return f"{FAMILIES[family].layer.format(stack=stack, layer=layer)}.{path}"


def _targets(paths: Mapping[Place, list[str]], shape: HostShape) -> list[str] | str:
    """Names for peft's target_modules: endings where every layer has them, else whole names."""
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for (stack, layer, _), names in paths.items():
        for name in names:
            layers[stack, name].add(layer)
    stacks: dict[str, set[str]] = defaultdict(set)  # ending -> stacks that have it in some layer
    for stack in shape.layers:
        for _, name in sites_of(shape.family, stack):
            stacks[name].add(stack)
    whole = {name for name, held in stacks.items()
             if all(len(layers.get((stack, name), ())) == shape.layers[stack] for stack in held)}
    short = endings({name for names in paths.values() for name in names}, shape.family)
    if isinstance(short, str) and all(name in whole for stack, name in layers if stack != "shared"):
        return short
    clear = whole if isinstance(short, list) else set()
    return sorted({name if name in clear or place[0] == "shared" else full_name(place, name, shape.family)
                   for place, names in paths.items() for name in names})


def low_ranks(adapter: PeftFolder, shape: HostShape) -> dict[Place, Low]:
    """Rank and alpha of each of a LoRA's pairs; empty for other methods."""
    spec, found = adapter.spec, {}
    if spec.config != "LoraConfig":
        return {}
    for place, name, part, tensor in _named(adapter, spec, shape):
        if part in ("lora_A", "lora_embedding_A"):
            alpha = _by_pattern(spec.settings.get("alpha_pattern", {}), name)
            usual = spec.settings.get("lora_alpha", 8)
            found[place] = Low(tensor.shape[0], float(usual if alpha is None else alpha))
    return found


def _named(
    adapter: PeftFolder, spec: MethodSpec, shape: HostShape
) -> Iterator[tuple[Place, str, str, Tensor]]:
    """Place of each tensor, its module's name on the origin, its part of the method, and itself."""
    for key, tensor in adapter.tensors.items():
        name = NAMED.match(parameter_name(key))
        if name and name["part"] not in PROJECTIONS:
            (slot, _, _), *_ = layout_of(parameter_name(key), tuple(tensor.shape), spec, shape).slots
            yield (slot.stack, slot.layer, slot.site), name["place"], name["part"], tensor


def _by_pattern(pattern: Mapping[str, Any], name: str) -> Any:
    """The number that a pattern of peft says for a module, or None.

    Raises:
        UserError: it is no regular expression, or says something else than a number.
    """
    from peft.utils.other import get_pattern_key

    try:
        value = pattern.get(get_pattern_key(pattern, name))
    except re.error as error:
        raise UserError(f"rank_pattern or alpha_pattern has a key that is no regular expression: "
                        f"{error}") from error
    if not isinstance(value, int | float | None):
        raise UserError(f"rank_pattern or alpha_pattern says {str(value)[:80]!r} for {name}, which is no "
                        "number")
    return value


def _other_patterns(adapter: PeftFolder, origin: HostShape, sources: Mapping[Place, list[Place]],
                    paths: Mapping[Place, list[str]], receiving: HostShape) -> dict[str, Any]:
    """Ranks and scales of single modules of other methods than LoRA, under the receiving host's names."""
    spec = adapter.spec
    found: dict[str, Any] = {}
    if spec.config == "LoraConfig":
        return {}
    for key in ("rank_pattern", "alpha_pattern"):
        if not (pattern := spec.settings.get(key)):
            continue
        said = {place: _by_pattern(pattern, name) for place, name, _, _ in _named(adapter, spec, origin)}
        for place, ones in sources.items():
            if len(values := {said[one] for one in ones}) > 1:
                raise UserError(f"layers of unequal {key} would become one at {'.'.join(map(str, place))}; "
                                "use --layer-map stretch")
            if (value := values.pop()) is not None:
                found.setdefault(key, {}).update(
                    {full_name(place, path, receiving.family): value for path in paths[place]})
    return found


def _inward(module: ModuleState) -> set[Place]:
    """Places whose (IA)3 scale meets what goes in."""
    return {slot[:3] for slot, axes in module.axes.items() if slot.role == "ia3_l" and axes[0] == "one"}


def _one(lows: list[Low], place: Place) -> Low:
    if len(set(lows)) > 1:
        raise UserError(f"layers of unequal rank or alpha would become one at {'.'.join(map(str, place))} "
                        f"({', '.join(str(tuple(low)) for low in lows)}); use --layer-map stretch")
    return lows[0]


def _patterns(
    lows: Mapping[Place, Low], paths: Mapping[Place, list[str]], shape: HostShape
) -> dict[str, Any]:
    """r and lora_alpha of most pairs, and patterns for the others."""
    usual = max(set(lows.values()), key=lambda low: (list(lows.values()).count(low), low))
    others = {full_name(place, name, shape.family): low for place, low in lows.items() if low != usual
              for name in paths[place]}
    found: dict[str, Any] = {"r": usual.rank, "lora_alpha": _number(usual.alpha)}
    for key, field, same in (("rank_pattern", 0, usual.rank), ("alpha_pattern", 1, usual.alpha)):
        if pattern := {name: _number(low[field]) for name, low in others.items() if low[field] != same}:
            found[key] = pattern
    return found


def _number(value: float) -> float | int:
    return int(value) if math.isclose(value, round(value)) else value
