"""A LoRA of our own, beside any matrix of a host, whose start can be taken off again so that training begins
at the host.

Pairs A (r, in), B (out, r) (Hu et al. 2021, section 4.1) stand beside linear layers, GPT-2's transposed ones
(query, key and value are one layer there, with up to three pairs), the embedding and the language-model head:

    y = W x + s B A x                    s = alpha / r
    y = W x + s (B A x - B0 A0 x)        where a frozen start (A0, B0) is given, ``subtract: product``
    y = W x + s (B A x - D x)            where the frozen block D behind it is given, ``subtract: block``

The second is what the reference code of Zhong et al. (ICLR 2024) does, the third their formula: it begins
beside the host by what of D lies outside rank r. An embedding's matrix is its transpose (hidden, vocab),
which takes a token to its vector. Where a host ties head and embedding, each has a pair of its own on top of
the one matrix. There is no dropout.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from portability.core.architectures import LORA_AXES, SITE_GROUPS, Slot, parse_name
from portability.core.errors import UserError, validate_choice
from portability.core.specs import MethodSpec
from portability.hosts.host import Host
from portability.methods.base import AttachedMethod, ParameterLayout, SlotLayout

FROZEN = {"product": {"A0": "A", "B0": "B"}, "block": {"D": "D"}}  # what is subtracted: tensors -> roles
Layer = nn.Linear | nn.Embedding  # or the Conv1D of transformers' GPT-2, whose weight is the transpose


@dataclass(frozen=True)
class LoraSettings:
    """A method's settings: rank, sites or groups of sites (architectures.SITE_GROUPS; "query" stands for a
    decoder's cross-attention query too), alpha (null: r, a scale of 1), and what a start subtracts."""

    r: int
    sites: tuple[str, ...]
    alpha: float | None = None
    subtract: str = "product"

    @property
    def scale(self) -> float:
        """What a pair's product is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.r

    def wants(self, site: str) -> bool:
        """Whether a pair stands at a site.

        Example:
            >>> LoraSettings(r=4, sites=("attention",)).wants("cross_query")
            True
        """
        return any(site.removeprefix("cross_") in SITE_GROUPS.get(name, (name,)) for name in self.sites)


def lora_settings(values: Mapping[str, Any], method: str) -> LoraSettings:
    """Settings as a method's file has them.

    Raises:
        UserError: a setting is unknown, missing or out of range.
    """
    where = f"method '{method}'"
    for name in values:
        validate_choice(name, LoraSettings.__dataclass_fields__, f"setting of {where}")
    if lacking := [name for name in ("r", "sites") if name not in values]:
        raise UserError(f"{where} lacks the setting {lacking[0]} (conf/method/{method}.yaml)")
    sites = values["sites"]
    if isinstance(sites, str) or not sites:
        raise UserError(f"{where}: sites must be a list such as [attention, ffn, embedding, head], got "
                        f"{sites!r}")
    for site in sites:
        validate_choice(site, {*SITE_GROUPS, *LORA_AXES}, f"site of {where}")
    for name in ("r", "alpha"):
        value = values.get(name)
        if value is None and name == "alpha":
            continue
        kinds, kind = (int, "whole number") if name == "r" else (int | float, "number")
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise UserError(f"{where}: {name} must be a {kind} above 0, got {value!r}")
    validate_choice(str(values.get("subtract", "product")), FROZEN, f"subtract of {where}")
    return LoraSettings(**{**values, "sites": tuple(sites)})


class Pair(nn.Module):
    """What one pair adds to its layer's output; zero until it is given values.

    Attributes:
        A, B: (r, in), (out, r).
        A0, B0, D: frozen tensors, None where nothing is subtracted; the trainer hands them in with each call.
        lookup: whether inputs are token ids, which pick columns, instead of vectors.
    """

    A0: Tensor | None
    B0: Tensor | None
    D: Tensor | None

    def __init__(self, rank: int, into: int, out: int, scale: float, lookup: bool):
        super().__init__()
        self.A = nn.Parameter(torch.zeros(rank, into))
        self.B = nn.Parameter(torch.zeros(out, rank))
        for name in ("A0", "B0", "D"):
            self.register_buffer(name, None)
        self.scale, self.lookup = scale, lookup

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) for vectors (..., in) or ids (...).

        B A - B0 A0 is computed as (B - B0) A + B0 (A - A0): exactly zero at the start, on any device, and
        under bf16 its rounding is relative to the difference, not to the start, beside which the difference
        is small.
        """
        if self.A0 is not None and self.B0 is not None:
            change = self._times(self.A, x) @ (self.B - self.B0).T
            change = change + self._times(self.A - self.A0, x) @ self.B0.T
        else:
            change = self._times(self.A, x) @ self.B.T
        if self.D is not None:
            change = change - self._times(self.D, x)
        return self.scale * change

    def _times(self, matrix: Tensor, x: Tensor) -> Tensor:
        """(..., rows) of a matrix (rows, in). Columns are picked by plain indexing: under `vmap`, torch's
        embedding would copy every member's whole matrix in each pass (4 to 8 times slower at 32,000
        tokens)."""
        return matrix[:, x].movedim(0, -1) if self.lookup else x @ matrix.T

    def fresh(self) -> dict[str, Tensor]:
        """New values in ordinary memory, by torch's global generator, as peft's `reset_lora_parameters` draws
        them: the pair's product is zero, as A is uniform and B zero, or for an embedding A zero and B
        normal."""
        first, second = torch.zeros(self.A.shape), torch.zeros(self.B.shape)
        if self.lookup:
            nn.init.normal_(second)
        else:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5))
        return {"A": first, "B": second}


class Beside(nn.Module):
    """A host's layer with pairs beside it.

    Args:
        base: the layer, called as it is.
        places: stack, layer and site of each part of its output, in order; the parts are of one size.
        pairs: site -> pair, for some or all of the places.
    """

    def __init__(self, base: Layer, places: list[tuple[str, int, str]], pairs: Mapping[str, Pair]):
        super().__init__()
        self.base, self.places, self.pairs, self.loras = base, places, pairs, nn.ModuleDict(pairs)

    @property
    def weight(self) -> Tensor:
        """The layer's own: T5's feed-forward asks its last layer for the number format."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output (..., out) with what the pairs add."""
        parts = zip(self.places, self.base(x).chunk(len(self.places), -1), strict=True)
        changed = [part + self.loras[site](x) if site in self.loras else part for (_, _, site), part in parts]
        return changed[0] if len(changed) == 1 else torch.cat(changed, -1)


class LoraBackend:
    """Our LoRA as a `MethodBackend`."""

    def attach(self, host: Host, spec: MethodSpec) -> "SubtractiveLora":
        """As `MethodBackend.attach`."""
        validate_choice(spec.config, ("LoRA",), "config class of portability")
        return SubtractiveLora(host, spec, lora_settings(spec.settings, spec.name))


class SubtractiveLora(AttachedMethod):
    """Pairs on a host: one `Beside` stands for each layer that has some.

    Attributes:
        besides: name of each of these layers -> what stands for it.

    Raises:
        UserError: the host has no such site, or none of the groups of sites.
    """

    def __init__(self, host: Host, spec: MethodSpec, settings: LoraSettings):
        super().__init__(host, spec)
        self.settings, self.scale = settings, settings.scale
        self.layouts: list[ParameterLayout] = []
        self.frozen: list[ParameterLayout] = []
        self.besides: dict[str, Beside] = {}
        layers = _layers(host)
        have = {site for _, places in layers.values() for _, _, site in places}
        _check_sites(host, settings, have, spec.name)
        for name, (layer, places) in layers.items():
            if any(settings.wants(site) for _, _, site in places):
                if len({self._width(site) for _, _, site in places}) > 1:
                    raise UserError(f"method '{spec.name}': {name} of host '{host.spec.name}' holds matrices "
                                    "of unequal widths in one, which library portability cannot part; use a "
                                    "LoRA of peft (method=lora_peft)")
                pairs = {place[2]: self._pair(f"{name}.loras.{place[2]}", layer, Slot(*place, ""))
                         for place in places if settings.wants(place[2])}
                self.besides[name] = Beside(layer, places, pairs)
        self._holders = [  # several of one layer where it is shared, as a T5's embedding is
            (parent, attribute, beside) for beside in self.besides.values() for parent in host.model.modules()
            for attribute, child in parent._modules.items() if child is beside.base]
        self._attach()

    def _width(self, site: str) -> int:
        """Of what comes out of a site's matrix; 0 for a vocabulary."""
        axes = LORA_AXES[site.removeprefix("cross_")][1]
        return math.prod(int(self.host.spec.shape.size(axis) or 0) for axis in axes)

    def _pair(self, name: str, layer: Layer, place: Slot) -> Pair:
        """A new pair of a place, whose tensors are entered in the layouts."""
        weight, shape = layer.weight, self.host.spec.shape
        into, out = LORA_AXES[place.site.removeprefix("cross_")]
        size = {axis: int(shape.size(axis) or 0) for axis in into + out}
        size |= {"rank": self.settings.r, "vocab": len(weight)}

        def layout(key: str, role: str) -> ParameterLayout:
            first, second = {"A": (("rank",), into), "B": (out, ("rank",)), "D": (out, into)}[role]
            flat = tuple(math.prod(size[axis] for axis in axes) for axes in (first, second))
            axes = first + second
            slot = SlotLayout(place._replace(role=role), axes, tuple(size[axis] for axis in axes))
            return ParameterLayout(f"{name}.{key}", flat, (slot,))

        trained = [layout(role, role) for role in ("A", "B")]
        self.layouts += trained
        self.frozen += [layout(key, role) for key, role in FROZEN[self.settings.subtract].items()]
        (_, width), (height, _) = (one.shape for one in trained)
        lookup = isinstance(layer, nn.Embedding)
        return Pair(self.settings.r, width, height, self.scale, lookup).to(weight.device)

    def _attach(self) -> None:
        for parent, attribute, beside in self._holders:
            parent._modules[attribute] = beside

    def detach(self) -> None:
        """Put the host's own layers back."""
        for parent, attribute, beside in self._holders:
            parent._modules[attribute] = beside.base

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The host's own layers stand in their places within it."""
        self.detach()
        try:
            yield
        finally:
            self._attach()

    def draw(self, seed: int) -> dict[str, Tensor]:
        """Values of a new module; those in the host stay."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {f"{name}.loras.{site}.{role}": value for name, beside in self.besides.items()
                    for site, pair in beside.pairs.items() for role, value in pair.fresh().items()}


def _layers(host: Host) -> dict[str, tuple[Layer, list[tuple[str, int, str]]]]:
    """Name -> layer, and stack, layer number and site of each part of its output, wherever a pair can
    stand."""
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, layer in host.model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D | nn.Embedding):
            try:
                stack, number, site = parse_name(host.family, f"{name}.weight")
            except KeyError:  # tables of positions and the like
                continue
            found[name] = layer, [(stack, number, one) for one in site.split("+")]
    return found


def _check_sites(host: Host, settings: LoraSettings, have: set[str], method: str) -> None:
    plain = {site.removeprefix("cross_") for site in have}
    for site in settings.sites:
        if site not in plain | set(SITE_GROUPS):
            raise UserError(f"method '{method}': host '{host.spec.name}' ({host.family}) has no site "
                            f"'{site}'; it has {', '.join(sorted(plain))}")
    if not any(settings.wants(site) for site in have):
        raise UserError(f"method '{method}': host '{host.spec.name}' ({host.family}) has none of the sites "
                        f"{', '.join(settings.sites)}")
