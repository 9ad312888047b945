"""Which maps of an attention's heads keep what rotary positions and normalised heads mean.

A query and its key turn by their positions, each pair of coordinates (i, i + head_dim / 2) at a speed of its
own. A map of both that turns each pair by an angle commutes with that where the pair turns at one speed in
both hosts; under a normalisation of each head, whose gains differ within a pair, half turns alone do (D-149).
"""

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, NORM_AXES, within_layer
from portability.core.errors import UserError
from portability.hosts.host import Host
from portability.porting.activations import Pair
from portability.porting.base import PortContext
from portability.porting.heads import Solver, flipped
from portability.porting.spaces import Space


def turner(context: PortContext, attention: Pair, asked: bool, turn: Solver) -> Solver | None:
    """What solves the queries and keys of an attention: `turn`, or under normalised heads `flipped`; None of
    heads that do not turn with their position, and of such as turn unlike each other where nobody asks for a
    map of queries and keys.

    Args:
        attention: spaces of it, of the origin and of the receiving host.

    Raises:
        UserError: a map of queries and keys is asked for, and they turn unlike each other.
    """
    families = [FAMILIES[host.shape.family] for host in (context.origin, context.receiving)]
    if not any(family.rotary for family in families):
        return None
    if reason := _unlike(context, attention):
        if asked:
            raise UserError(f"port {context.pair}: {reason}: no map of them is defined; leave query and key "
                            "out of the method's sites, or use pad")
        return None
    normalised = any(site in NORM_AXES for family in families for stack in family.norms.values()
                     for site in stack.values())
    return flipped if normalised else turn


def _unlike(context: PortContext, attention: Pair) -> str:
    """Why queries and keys, of which some turn, do not turn alike; nothing where they do."""
    shapes, what = (context.origin.shape, context.receiving.shape), "turn with the position"
    if not all(FAMILIES[shape.family].rotary for shape in shapes):
        return f"the queries and keys of one of them {what}, those of the other do not"
    sizes = [shape.head_dim for shape in shapes]
    if sizes[0] != sizes[1]:
        return f"queries and keys of heads of sizes {sizes[0]} and {sizes[1]} {what} at unequal speeds"
    hosts = context.origin_host(), context.receiving_host()
    one, other = (speeds(host, space) for host, space in zip(hosts, attention, strict=True))
    if {len(one) * 2, len(other) * 2} != set(sizes):
        return f"in one of them only parts of queries and keys {what} (partial_rotary_factor)"
    if not torch.allclose(one, other, rtol=1e-4, atol=0):
        places = " and ".join(f"{space.stack}.{space.layer}" for space in attention)
        return f"queries and keys of {places} {what} at unequal speeds (rope_theta, or its scaling)"
    return ""


def speeds(host: Host, space: Space) -> Tensor:
    """How fast each pair of coordinates of a layer's queries and keys turns, (n,) float64 in radians a
    position, as the host's model has it before texts that are longer than those it was trained on."""
    kinds = getattr(host.model.config, "layer_types", None)
    kind = kinds[space.layer] if kinds else ""
    found = {}
    for name, part in host.model.named_modules():
        inside, last = within_layer(host.family, f"{name}.x"), name.rpartition(".")[2]
        if last.startswith("rotary_emb") and (inside is None or inside[:2] == space[:2]):
            found[last] = part
    local = kind == "sliding_attention" and "rotary_emb_local" in found  # Gemma 3's, by transformers 4
    part = found["rotary_emb_local" if local else "rotary_emb"]
    names = (f"{kind}_original_inv_freq", "original_inv_freq", "inv_freq")  # the first by transformers 5
    return next(getattr(part, name) for name in names if hasattr(part, name)).detach().cpu().double()
