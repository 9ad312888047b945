"""A host that computes what another computes, in a basis that cannot be seen."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, Family
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import Host
from portability.hosts.recipes import Hidden
from portability.hosts.sources import host_shape
from portability.porting.spaces import END_NORMS, NORM_BEFORE, SAME_INPUT, Space, norm_of, place_of

Maps = Callable[[Space], Tensor | None]  # x' = x T of a space, None where it stays


def hidden(
    model: Any, _: Any, change: Hidden, find: Callable[[str], HostSpec]
) -> tuple[Any, Mapping[str, Any]]:
    """The residual stream turned by a random rotation, out of which the gains of RMSNorms are folded first;
    each feed-forward network's units in another order. Head and embedding part where they were one.

    Raises:
        UserError: a host with LayerNorms, or with normalisations behind its matrices: it cannot be turned.
    """
    config = model.config
    family, shape = FAMILIES[config.model_type], host_shape(config.to_dict())
    if family.gain is None or any("_out_norm" in site for sites in family.norms.values()
                                  for site in sites.values()) or family.seq2seq:
        raise UserError(f"a {config.model_type} host has no hidden basis here: its residual stream cannot be "
                        "turned without changing what it computes; llama, mistral, qwen and phi3 hosts can")
    draw = torch.Generator().manual_seed(change.seed)
    stream = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden, generator=draw, dtype=torch.float64))[0]
    units = {layer: torch.eye(shape.ffn, dtype=torch.float64)[torch.randperm(shape.ffn, generator=draw)]
             for layer in range(shape.layers["decoder"])}

    def maps(space: Space) -> Tensor | None:
        return stream if space.kind == "hidden" else units[space.layer] if space.kind == "ffn" else None

    host = Host(HostSpec("turned", "", None, "", shape), model, None)
    with torch.no_grad():
        untie(host)
        write_matrices(host, maps, folded=True)
        write_rest(host, stream, folded=True)
    return model, {}


def untie(host: Host) -> None:
    """Give the head weights of its own, as gains folded into it ask for."""
    model, head = host.model, host.model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    if host.family in ("t5", "mt5"):  # which scales the states below a tied head
        head.weight.data *= host.spec.shape.hidden**-0.5


def write_matrices(host: Host, maps: Maps, folded: bool) -> None:
    """Write a host's matrices, and its head where it has weights of its own, in other coordinates.

    Args:
        folded: whether RMSNorms' gains go into the matrices that read behind them.
    """
    model, family, shape = host.model, FAMILIES[host.family], host.spec.shape
    places = [(stack, layer, site) for stack, depth in shape.layers.items() for layer in range(depth)
              for joined in family.matrices[stack].values() for site in joined.split("+")]
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if "head" in family.shared.values() and head is not None and not tied:
        places.append(("shared", 0, "head"))
    for stack, layer, site in dict.fromkeys(places):
        into, out = Space(stack, layer, site, "in"), Space(stack, layer, site, "out")
        place = place_of(host, out)
        module = model.get_submodule(place.module)
        weight: Tensor = module.weight.data
        if type(module).__name__ == "Conv1D":
            weight = weight.T
        rows = slice(place.start, place.start + place.size if place.size else None)
        own, left, right = weight[rows].double(), maps(out), maps(into)
        if folded and (gain := _gain(host, into, family)) is not None:
            own = own * gain
        own = own if right is None else own @ right
        weight[rows] = (own if left is None else left.T @ own).to(weight.dtype)
        if (bias := getattr(module, "bias", None)) is not None and left is not None:
            bias.data[rows] = (bias.data[rows].double() @ left).to(bias.dtype)


def _gain(host: Host, space: Space, family: Family) -> Tensor | None:
    """The gain to fold into what reads a space."""
    site = SAME_INPUT.get(space.site, space.site)
    if family.gain is None or site not in NORM_BEFORE:
        return None
    names = [NORM_BEFORE[site]] if site != "head" else list(END_NORMS)
    norm = next((one for name in names if (one := norm_of(host, space, name)) is not None), None)
    return None if norm is None else norm.detach().double() + family.gain


def write_rest(host: Host, stream: Tensor, folded: bool) -> None:
    """Write a host's embeddings, positions and normalisations with its residual stream turned, (d, d) x' = x
    stream; RMSNorms whose gains are `folded` get a gain of 1."""
    family, width = FAMILIES[host.family], host.spec.shape.hidden
    for name, parameter in host.model.named_parameters():
        module = host.model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, torch.nn.Embedding) and parameter.shape[1] == width:
            parameter.data = (parameter.data.double() @ stream).to(parameter.dtype)
        elif parameter.shape == (width,) and ("norm" in name.lower() or "ln_" in name):
            if family.gain is not None and folded:
                parameter.data.fill_(1 - family.gain)
            else:
                turned = stream if family.gain is None else stream.abs()
                parameter.data = (parameter.data.double() @ turned).to(parameter.dtype)
