"""The spaces in which a module's numbers are written: what goes into a matrix of the host, what comes out of
it, and the residual stream behind a layer.

Two hosts that compute the same may do so in other coordinates. A porting strategy maps each space of the
origin host onto one of the receiving host; this file says which numbers belong to which space.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from portability.core.architectures import FAMILIES, LORA_AXES, NORM_AXES, Slot, within_layer
from portability.core.errors import UserError
from portability.core.specs import HOST_AXES, HostShape
from portability.hosts.host import Host

LAST = -1  # as a layer: the last one of a stack; of the stack "" the one that answers
STREAM = "layer"  # as a site: the residual stream, as a layer hands it on
SAME_INPUT = {"key": "query", "value": "query", "ffn_gate": "ffn_up", "cross_value": "cross_key"}
NORM_BEFORE = {  # site -> the normalisation whose output it reads, where the family has it
    "query": "attention_norm", "ffn_up": "ffn_norm", "cross_query": "cross_attention_norm",
    "cross_key": "encoder_norm", "head": "final_norm",
}
END_NORMS = ("final_norm", "decoder_norm")  # of the stack that answers, by family
NORM_AFTER = {"attention_out": "attention_out_norm", "ffn_down": "ffn_out_norm"}  # Gemma's
INTO = ("A", "w1_b", "w2_b", "u", "gate_weight")  # roles beside a matrix that meet what goes into it


class Space(NamedTuple):
    """`side` "in" or "out" of a matrix at (stack, layer, site); site `STREAM`, "out" is the residual
    stream."""

    stack: str
    layer: int
    site: str
    side: str

    @property
    def kind(self) -> str:
        """What its coordinates are: "hidden", "ffn", "vocab", or the heads of "query", "key", "value", or of
        what the attention gives ("mixed"), as those of the other stack's states ("cross_query", ...)."""
        base = self.site.removeprefix("cross_")
        if self.side == "in":
            return {"attention_out": self.site.replace("attention_out", "mixed"), "ffn_down": "ffn",
                    "embedding": "vocab"}.get(base, "hidden")
        if base in ("query", "key", "value"):
            return self.site
        return {"ffn_up": "ffn", "ffn_gate": "ffn", "head": "vocab"}.get(base, "hidden")

    @property
    def words(self) -> str:
        """For messages: ``what goes into decoder.0.query``."""
        place = f"{self.stack}.{self.layer}.{self.site}"
        return f"what {'goes into' if self.side == 'in' else 'comes out of'} {place}"

    def size(self, shape: HostShape) -> int:
        """Number of coordinates on a host; of a vocabulary 0."""
        heads = {"query": shape.heads, "mixed": shape.heads, "key": shape.kv_heads, "value": shape.kv_heads}
        if (kind := self.kind.removeprefix("cross_")) in heads:
            return heads[kind] * shape.head_dim
        return {"hidden": shape.hidden, "ffn": shape.ffn}.get(kind, 0)


class Run(NamedTuple):
    """Axes [first, last) of a tensor, which together are the coordinates of a space."""

    first: int
    last: int
    space: Space


def runs(slot: Slot, axes: Sequence[str], apart: bool = False) -> list[Run]:
    """The axes of a module's tensor that belong to spaces of its host, next to each other taken together.

    Args:
        apart: whether matrices that read the same each have a space of their own.

    Raises:
        UserError: an axis that is a part of a space (Compacter's blocks), or numbers that go with the host's
            own widths (VeRA's).

    Example:
        >>> runs(Slot("decoder", 2, "query", "B"), ("kv_heads", "group", "head_dim", "rank"))
        [Run(first=0, last=3, space=Space(stack='decoder', layer=2, site='query', side='out'))]
    """
    found: list[Run] = []
    for axis, label in enumerate(axes):
        if "/" in label or " at " in label:
            raise UserError("the method's numbers are not written in the host's coordinates one by one: no "
                            "map of them is defined; use copy or pad" + (
                                ", or turn it into a LoRA first (--via lora)" if " at " in label else ""))
        if label not in (*HOST_AXES, "vocab"):
            continue
        if found and found[-1].last == axis:
            found[-1] = found[-1]._replace(last=axis + 1)
        else:
            found.append(Run(axis, axis + 1, _space(slot, axes, apart)))
    return found


def _space(slot: Slot, axes: Sequence[str], apart: bool = False) -> Space:
    stack, layer, site, role = slot
    if site in NORM_AXES or stack == "shared" and site.endswith("_prefix"):
        raise UserError(f"no map of {slot.key} is defined: " + (
            "it stands beside the normalisation of a head" if site in NORM_AXES else
            "several layers share it" if role in ("prefix_key", "prefix_value") else
            "the network that makes a prefix has coordinates of its own; train the prefix flat"))
    if site in ("self_prefix", "cross_prefix"):
        part = "value" if "value" in role else "key"
        if role == "gate_weight":
            return Space(stack, layer, "query" if site == "self_prefix" else "cross_query", "in")
        return Space(stack, layer, part if site == "self_prefix" else f"cross_{part}", "out")
    if role == "prompt":
        return Space("shared", 0, "embedding", "out")
    if site == "embedding_norm":
        return Space("shared", 0, "embedding", "out")
    if site.removeprefix("cross_").split("+")[0] not in LORA_AXES:  # adapters' own places, and normalisations
        if stack == "shared":  # at the end of a stack
            return Space("encoder" if site == "encoder_norm" else "", LAST, STREAM, "out")
        return Space(stack, layer, STREAM, "out")
    if "+" in site:  # a matrix of several sites: what comes out is a tensor each
        sites = site.split("+")
        site = next((one for one in sites if role.endswith(f"_{one}")), sites[0])
    if role in INTO or role.startswith("ia3_l") and axes[0] == "one":
        return Space(stack, layer, site if apart else SAME_INPUT.get(site, site), "in")
    return Space(stack, layer, site, "out")


# ---- spaces in a host


class Place(NamedTuple):
    """Where a space is met in a forward pass: the input or output of a module, and the part of its last
    axis."""

    module: str
    side: str
    start: int
    size: int


def place_of(host: Host, space: Space) -> Place:
    """Raises:
        UserError: the host has no such matrix.
    """
    family, shape = FAMILIES[host.family], host.spec.shape
    size = space.size(shape)
    names = [name for name, _ in host.model.named_modules()]
    if space.site == STREAM:
        stack = space.stack or list(shape.layers)[-1]
        layer = space.layer % shape.layers.get(stack, 1)
        for name in names:
            if within_layer(host.family, f"{name}.x") == (stack, layer, "x"):
                return Place(name, "out", 0, size)
    if space.stack == "shared":
        path = next((path for path, site in family.shared.items() if site == space.site), None)
        found = [name for name in names if path is not None and f".{name}".endswith(f".{path}")]
        if found:
            return Place(min(found, key=len), space.side, 0, size)
    for path, joined in family.matrices.get(space.stack, {}).items():
        sites = joined.split("+")
        if space.site not in sites:
            continue
        start = sum(Space(space.stack, space.layer, site, "out").size(shape)
                    for site in sites[:sites.index(space.site)]) if space.side == "out" else 0
        for name in names:
            if within_layer(host.family, f"{name}.x") == (space.stack, space.layer, f"{path}.x"):
                return Place(name, space.side, start, size)
    raise UserError(f"host '{host.spec.name}' has no {space.stack}.{space.layer}.{space.site}: there is no "
                    "counterpart to carry it to")


def weight_of(host: Host, space: Space) -> Tensor:
    """The matrix (out, in) whose input or output the space is, as y = x W^T, of a matrix of several sites the
    site's own rows; in ordinary memory, wherever the host is.

    Raises:
        UserError: as `place_of`, or it is not finite.
    """
    place = place_of(host, space)
    module = host.model.get_submodule(place.module)
    weight: Tensor = module.weight.detach().cpu()
    if type(module).__name__ in ("Conv1D", "Embedding"):  # GPT-2, and tables, keep it transposed
        weight = weight.T
    if space.side == "out" and place.size:
        weight = weight[place.start:place.start + place.size]
    if not weight.isfinite().all():
        raise UserError(f"host '{host.spec.name}' has weights that are not finite at {space.stack}."
                        f"{space.layer}.{space.site}; it cannot be compared with another")
    return weight


def fold(host: Host, space: Space) -> Tensor | None:
    """What a space's coordinates are multiplied by so that a normalisation's gain is out of them, (d,)
    float64: 1 / gain of what a matrix reads behind an RMSNorm, the gain of what goes through one; None where
    there is nothing to fold. What a T5 multiplies the states below a tied head by is folded out with it.

    A gain below a thousandth of the largest one is taken as that (our choice: 1 / gain after mixing would
    otherwise blow a module up).
    """
    family = FAMILIES[host.family]
    if family.gain is None or space.site == STREAM:
        return None
    wanted = (NORM_BEFORE if space.side == "in" else NORM_AFTER).get(SAME_INPUT.get(space.site, space.site))
    names = END_NORMS if wanted in END_NORMS else () if wanted is None else (wanted,)
    weight = next((one for name in names if (one := norm_of(host, space, name)) is not None), None)
    if weight is None:
        return None
    gain = weight.double() + family.gain
    config = host.model.config
    if family.scaled and space.site == "head" and getattr(
            config, "scale_decoder_outputs", config.tie_word_embeddings):  # the first by transformers 5
        gain = gain * host.spec.shape.hidden**-0.5
    return gain if space.side == "out" else 1 / _away(gain)


def gain_of(host: Host, slot: Slot) -> Tensor | None:
    """What a host's RMSNorm at a slot multiplies by, (d,) float64, kept away from 0 as in `fold`; None of a
    LayerNorm, and where there is none."""
    offset, weight = FAMILIES[host.family].gain, norm_of(host, slot, slot.site)
    return None if offset is None or weight is None else _away(weight.double() + offset)


def _away(gain: Tensor) -> Tensor:
    least = gain.abs().max() / 1000
    return gain.where(gain.abs() >= least, least.copysign(gain))


def norm_of(host: Host, space: Space | Slot, site: str) -> Tensor | None:
    """The weight of the host's normalisation `site` in a space's or slot's layer, or outside the layers, in
    ordinary memory; None where it has none."""
    family = FAMILIES[host.family]
    own = next((path for path, name in family.norms.get(space.stack, {}).items() if name == site), None)
    shared = next((path for path, name in family.shared.items() if name == site), None)
    for name, parameter in host.model.named_parameters():
        inside = within_layer(host.family, name)
        if own and inside == (space.stack, space.layer, f"{own}.weight"):
            return parameter.detach().cpu()
        if shared and inside is None and f".{name}".endswith(f".{shared}.weight"):
            return parameter.detach().cpu()
    return None
