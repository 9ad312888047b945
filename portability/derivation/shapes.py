"""A smaller host out of parts of a larger one: fewer layers, or fewer coordinates."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, within_layer
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import model_class
from portability.hosts.recipes import Narrowed, Thinned
from portability.porting.spaces import Space


def rebuilt(model: Any, config: Any, state: Mapping[str, Tensor]) -> Any:
    """A model of a changed configuration with these weights, all of them and no others."""
    new = model_class(model.config.model_type).from_config(config)
    missing, unexpected = new.load_state_dict(state, strict=False)
    tied = set(getattr(new, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise ValueError(f"weights do not fit: {[*missing, *unexpected][:3]}")
    new.tie_weights()
    return new


def thinned(
    model: Any, _: Any, change: Thinned, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """Layers evenly spaced, the first and the last among them.

    Raises:
        UserError: a stack has not so many layers, or one layer alone is to be kept of several.
    """
    config, kept = model.config, dict[str, list[int]]()
    for stack, key in FAMILIES[config.model_type].stacks.items():
        depth = getattr(config, key, None) or config.num_layers
        if not 2 <= change.layers <= depth:
            raise UserError(f"thinned.layers must be from 2 to {depth}, the layers of the {stack}, got "
                            f"{change.layers}")
        kept[stack] = [round(i * (depth - 1) / (change.layers - 1)) for i in range(change.layers)]
        if isinstance(own := getattr(config, "layer_types", None), list):  # of kinds of attention
            config.layer_types = [own[layer] for layer in kept[stack]]
    state = {}
    for name, value in model.state_dict().items():
        inside = within_layer(config.model_type, name)
        if inside is None:
            state[name] = value
        elif inside[1] in kept[inside[0]]:
            new = kept[inside[0]].index(inside[1])
            before, after = name[: -len(inside[2]) - 1], inside[2]
            state[f"{before.rpartition('.')[0]}.{new}.{after}"] = value
    for key in FAMILIES[config.model_type].stacks.values():
        setattr(config, key, change.layers)
    return rebuilt(model, config, state), {"layers": kept}


def narrowed(
    model: Any, _: Any, change: Narrowed, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """Coordinates of the residual stream whose shares of the norm of all matrices that read or write them are
    the largest; of each feed-forward network the units with the largest product of their rows' and column's
    norms (our choice).

    Raises:
        UserError: a family whose heads' size follows from its width, or not so many coordinates.
    """
    config, family = model.config, FAMILIES[model.config.model_type]
    keys = {axis: family.widths[axis] for axis in ("hidden", "ffn")}
    if "head_dim" not in family.widths:
        raise UserError(f"a {config.model_type} host cannot be narrowed: the size of its heads follows from "
                        "its width")
    for axis, wanted in (("hidden", change.hidden), ("ffn", change.ffn)):
        if wanted > (own := getattr(config, keys[axis])):
            raise UserError(f"narrowed.{axis} must be at most {own}, got {wanted}")
    if not getattr(config, family.widths["head_dim"], None):
        setattr(config, family.widths["head_dim"],
                getattr(config, keys["hidden"]) // getattr(config, family.widths["heads"]))
    hidden = _strongest(model, change.hidden)
    units = {place: _units(model, place, change.ffn) for place in _places(model)}
    state = {name: _kept(model, name, value, hidden, units) for name, value in model.state_dict().items()}
    setattr(config, keys["hidden"], change.hidden)
    setattr(config, keys["ffn"], change.ffn)
    return rebuilt(model, config, state), {"coordinates": hidden.tolist()}


def _sites(model: Any, name: str) -> tuple[str, int, list[str]] | None:
    """Stack, layer and sites of a matrix's own number, or None."""
    family, inside = FAMILIES[model.config.model_type], within_layer(model.config.model_type, name)
    if inside is None:
        path = name.rpartition(".")[0]
        site = next((site for end, site in family.shared.items() if f".{path}".endswith(f".{end}")), None)
        return ("shared", 0, [site]) if site in ("embedding", "head") else None
    joined = family.matrices[inside[0]].get(inside[2].rpartition(".")[0])
    return (inside[0], inside[1], joined.split("+")) if joined else None


def _places(model: Any) -> set[tuple[str, int]]:
    inside = (within_layer(model.config.model_type, name) for name, _ in model.named_parameters())
    return {found[:2] for found in inside if found}


def _kinds(name: str, place: tuple[str, int, list[str]]) -> list[str]:
    """Kinds of a number's axes, the first of each site's rows."""
    stack, layer, sites = place
    out, into = (Space(stack, layer, sites[0], side).kind for side in ("out", "in"))
    if sites[0] == "embedding":
        return [into, out]
    return [out] if name.endswith(".bias") else [out, into]


def _strongest(model: Any, number: int) -> Tensor:
    score: Tensor | float = 0.0
    for name, value in model.named_parameters():
        place = _sites(model, name)
        if place is not None and value.ndim == 2:
            for axis, kind in enumerate(_kinds(name, place)):
                if kind == "hidden":
                    score = score + value.square().sum(1 - axis) / value.square().sum()
    assert isinstance(score, Tensor)
    return score.topk(number).indices.sort().values


def _units(model: Any, place: tuple[str, int], number: int) -> Tensor:
    score: Tensor | float = 1.0
    for name, value in model.named_parameters():
        found = _sites(model, name)
        if found is None or found[:2] != place or value.ndim != 2:
            continue
        for axis, kind in enumerate(_kinds(name, found)):
            if kind == "ffn":
                rows = value if axis == 0 else value.T
                for part in rows.chunk(len(found[2]) if axis == 0 else 1):
                    score = score * part.norm(dim=1)
    assert isinstance(score, Tensor)
    return score.topk(number).indices.sort().values


def _kept(
    model: Any, name: str, value: Tensor, hidden: Tensor, units: Mapping[tuple[str, int], Tensor]
) -> Tensor:
    place, width = _sites(model, name), getattr(
        model.config, FAMILIES[model.config.model_type].widths["hidden"])
    if place is None:  # a normalisation, or what has no coordinates
        return value[hidden] if value.shape == (width,) else value
    for axis, kind in enumerate(_kinds(name, place)):
        if kind == "hidden":
            value = value.index_select(axis, hidden)
        elif kind == "ffn":
            own, size = units[place[:2]], value.shape[axis] // (len(place[2]) if axis == 0 else 1)
            rows = torch.cat([own + start for start in range(0, value.shape[axis], size)])
            value = value.index_select(axis, rows)
    return value
