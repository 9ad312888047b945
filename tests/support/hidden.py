"""Hosts that compute what another host computes, in a hidden basis: their ports have known answers.

    x' = x Q along the residual stream; heads and units of the feed-forward network in another order, heads
    turned within. Gains of RMSNorms are folded into what reads them before the stream is turned; the stream of
    a host with LayerNorms can only be permuted.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES
from portability.core.specs import HostSpec
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.porting.spaces import NORM_BEFORE, Space, _norm, place_of


@dataclass(frozen=True)
class Basis:
    """What is hidden.

    Attributes:
        stream: "none", "permuted", or "turned" (RMSNorm only).
        folded: whether RMSNorms' gains are folded in.
        units: whether the feed-forward network's units stand in another order; `flipped`, whether some have
            another sign between up and down; `stretched`, another size.
        values, meetings: whether heads are turned within: values, and queries with keys.
        heads: whether heads stand in another order, query heads within their key-value head.
    """

    stream: str = "permuted"
    folded: bool = False
    units: bool = True
    flipped: bool = False
    stretched: bool = False
    values: bool = False
    meetings: bool = False
    heads: bool = False


def permutation(size: int, draw: torch.Generator) -> Tensor:
    """(size, size), one 1 in each row and column."""
    return torch.eye(size, dtype=torch.float64)[torch.randperm(size, generator=draw)]


def rotation(size: int, draw: torch.Generator) -> Tensor:
    """(size, size) orthogonal."""
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]


def turning(size: int, draw: torch.Generator) -> Tensor:
    """(size, size) that turns each pair (i, i + size / 2)."""
    angle = 6.28 * torch.rand(size // 2, generator=draw, dtype=torch.float64)
    cos, sin = angle.cos().diag(), angle.sin().diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])


class Hidden:
    """Makes the maps T of each space (x' = x T, in folded coordinates) and the host in the hidden basis."""

    def __init__(self, origin: HostSpec, basis: Basis, seed: int = 0):
        self.host, self.basis, self.shape = load_host(origin), basis, origin.shape
        self.draw = torch.Generator().manual_seed(seed)
        eye = torch.eye(origin.shape.hidden, dtype=torch.float64)
        self.stream = {"none": lambda: eye, "permuted": lambda: permutation(len(eye), self.draw),
                       "turned": lambda: rotation(len(eye), self.draw)}[basis.stream]()
        self.made: dict[tuple[str, int, str], Tensor] = {}

    def map(self, space: Space) -> Tensor:
        """T (d, d) of a space."""
        kind = space.kind
        if kind == "hidden":
            return self.stream
        if kind == "vocab":
            return torch.eye(self.host.model.config.vocab_size, dtype=torch.float64)
        if kind == "ffn":
            matrix = self._once((space.stack, space.layer, "ffn"), self._units)
            scale = self._once((space.stack, space.layer, "scale"), self._scale)
            if space.site == "ffn_gate":
                return matrix
            return matrix * scale
        cross = "cross_" if kind.startswith("cross_") else ""
        query, key, value = self._once((space.stack, space.layer, f"{cross}heads"), self._heads)
        return {"query": query[0], "key": key, "value": value, "mixed": query[1]}[kind.removeprefix("cross_")]

    def _once(self, key: tuple[str, int, str], make: Callable[[], Tensor]) -> Tensor:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _units(self) -> Tensor:
        size = self.shape.ffn
        return permutation(size, self.draw) if self.basis.units else torch.eye(size, dtype=torch.float64)

    def _scale(self) -> Tensor:
        size, scale = self.shape.ffn, torch.ones(self.shape.ffn, dtype=torch.float64)
        if self.basis.flipped:
            scale *= 2 * torch.randint(0, 2, (size,), generator=self.draw) - 1
        if self.basis.stretched:
            scale *= 0.5 + torch.rand(size, generator=self.draw, dtype=torch.float64)
        return scale

    def _heads(self) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Of queries and of what the attention gives, of keys, of values."""
        shape, draw = self.shape, self.draw
        size, rotary = shape.head_dim, FAMILIES[shape.family].rotary
        eye = torch.eye(size, dtype=torch.float64)
        order = torch.randperm(shape.kv_heads, generator=draw) if self.basis.heads else torch.arange(shape.kv_heads)
        query = torch.zeros(shape.kv_heads, shape.group, size, shape.kv_heads, shape.group, size,
                            dtype=torch.float64)
        mixed, key = query.clone(), query[:, 0, :, :, 0].clone()
        value = key.clone()
        for a, b in enumerate(order.tolist()):
            meet = (turning if rotary else rotation)(size, draw) if self.basis.meetings else eye
            turn = rotation(size, draw) if self.basis.values else eye
            key[a, :, b], value[a, :, b] = meet, turn
            places = torch.randperm(shape.group, generator=draw) if self.basis.heads else torch.arange(shape.group)
            for i, j in enumerate(places.tolist()):
                query[a, i, :, b, j], mixed[a, i, :, b, j] = meet, turn
        wide, narrow = shape.heads * size, shape.kv_heads * size
        return (query.reshape(wide, wide), mixed.reshape(wide, wide)), key.reshape(narrow, narrow), value.reshape(
            narrow, narrow)

    def write(self, folder: Path) -> HostSpec:
        """The host in the hidden basis, in a new folder."""
        source = Path(self.host.spec.source)
        shutil.copytree(source, folder)
        model, family = self.host.model, FAMILIES[self.host.family]
        tied = model.get_output_embeddings() is not None and (
            model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        if tied:
            model.get_output_embeddings().weight = torch.nn.Parameter(
                model.get_output_embeddings().weight.detach().clone())
            model.config.tie_word_embeddings = False
            if self.host.family in ("t5", "mt5"):  # which scales the states below a tied head
                model.get_output_embeddings().weight.data *= self.shape.hidden**-0.5
        with torch.no_grad():
            self._matrices(family)
            self._rest(family)
        model.save_pretrained(folder)
        return describe(HostSource(folder.name, path=str(folder)))

    def _matrices(self, family) -> None:
        model = self.host.model
        places = [(stack, layer, site) for stack, depth in self.shape.layers.items() for layer in range(depth)
                  for joined in family.matrices[stack].values() for site in joined.split("+")]
        if "head" in family.shared.values() and model.get_output_embeddings() is not None:
            places.append(("shared", 0, "head"))
        for stack, layer, site in dict.fromkeys(places):
            into, out = Space(stack, layer, site, "in"), Space(stack, layer, site, "out")
            module = model.get_submodule(place_of(self.host, out).module)
            place = place_of(self.host, out)
            turned = type(module).__name__ == "Conv1D"
            weight = module.weight.data.T if turned else module.weight.data
            rows = slice(place.start, place.start + place.size) if place.size else slice(None)
            own = weight[rows].double()
            gain = self._gain(into)
            if gain is not None:
                own = own * gain
            new = self.map(out).T @ own @ self.map(into)
            if site == "ffn_down":  # the scale of what it reads is undone
                new = self.map(out).T @ own @ torch.linalg.inv(self.map(into)).T
            weight[rows] = new.to(weight.dtype)
            if getattr(module, "bias", None) is not None:
                module.bias.data[rows] = (module.bias.data[rows].double() @ self.map(out)).to(module.bias.dtype)

    def _gain(self, space: Space) -> Tensor | None:
        """The gain to fold into what reads a space."""
        family = FAMILIES[self.host.family]
        site = {"key": "query", "value": "query", "ffn_gate": "ffn_up", "cross_value": "cross_key"}.get(
            space.site, space.site)
        if family.gain is None or not self.basis.folded or site not in NORM_BEFORE:
            return None
        names = [NORM_BEFORE[site]] if site != "head" else ["final_norm", "decoder_norm"]
        norm = next((one for name in names if (one := _norm(self.host, space, name)) is not None), None)
        return None if norm is None else norm.detach().double() + family.gain

    def _rest(self, family) -> None:
        """Embeddings, positions and normalisations."""
        width = self.shape.hidden
        tables = []
        for name, parameter in self.host.model.named_parameters():
            module = self.host.model.get_submodule(name.rpartition(".")[0])
            if isinstance(module, torch.nn.Embedding) and parameter.shape[1] == width:
                tables.append(parameter)
            elif parameter.ndim == 1 and ("norm" in name.lower() or "ln_" in name) and len(parameter) == width:
                if family.gain is not None and self.basis.folded:
                    parameter.data.fill_(1 - family.gain)
                else:
                    parameter.data = (parameter.data.double() @ self.stream).to(parameter.dtype)
        for table in tables:
            table.data = (table.data.double() @ self.stream).to(table.dtype)
        self._positions()

    def _positions(self) -> None:
        """T5's relative positions, which belong to heads."""
        for name, parameter in self.host.model.named_parameters():
            if "relative_attention_bias" in name and self.basis.heads:
                raise NotImplementedError("one table serves all layers, whose heads stand in their own orders")


def hide(origin: HostSpec, basis: Basis, folder: Path, seed: int = 0) -> tuple[HostSpec, Hidden]:
    """A host in a hidden basis, and the maps that hide it."""
    made = Hidden(origin, basis, seed)
    return made.write(folder), made
