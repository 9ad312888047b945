"""Hosts that compute what another host computes, in a hidden basis: their ports have known answers.

    x' = x Q along the residual stream; heads and units of the feed-forward network in another order, heads
    turned within. Gains of RMSNorms are folded into what reads them before the stream is turned; the stream
    of a host with LayerNorms can only be permuted.

The error of a port is |ported - known| / |known - bare| in what the hosts answer to texts.
"""

import functools
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from portability.core.architectures import FAMILIES
from portability.core.specs import HostSpec, MethodSpec, PortSpec
from portability.derivation.basis import untie, write_matrices, write_rest
from portability.hosts.attention import body, lm_logits, text_mask
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.porting.activations import Pair
from portability.porting.base import Port, PortContext, Strategy
from portability.porting.calibration import Calibration, calibration
from portability.porting.maps import MapStrategy
from portability.porting.port import fit_head, port
from portability.porting.spaces import Space
from portability.porting.strategies import STRATEGIES
from support.tiny import model, noisy, sentences, tokenizer

# what hosts answer is of one length: adapters' gates average over padding, too, on which none are compared
TEXTS = tuple(row["text"] for row in sentences(99, 3) if len(row["text"].split()) == 7)[:8]
NUMBERS = itertools.count()  # names of tests' strategies: maps are kept in memory by name
READ = tuple(row["text"] for row in sentences(200, 5))  # that hosts are compared on


@dataclass(frozen=True)
class Basis:
    """What is hidden.

    Attributes:
        stream: "none", "permuted", or "turned" (RMSNorm only).
        folded: whether RMSNorms' gains are folded in.
        units: whether the feed-forward network's units stand in another order; `flipped`, whether some have
            another sign between up and down; `stretched`, another size.
        values, meetings: whether heads are turned within: values, and queries with keys.
        signed: whether the stream changes signs, too (RMSNorm only), and heads that are not turned do, and
            but for rotary ones their coordinates stand in another order.
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
    signed: bool = False


def permutation(size: int, draw: torch.Generator) -> Tensor:
    """(size, size), one 1 in each row and column."""
    return torch.eye(size, dtype=torch.float64)[torch.randperm(size, generator=draw)]


def signs(size: int, draw: torch.Generator) -> Tensor:
    """(size,) of 1 and -1."""
    return 2.0 * torch.randint(0, 2, (size,), generator=draw, dtype=torch.float64) - 1


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
        if basis.signed:
            self.stream = self.stream * signs(len(eye), self.draw)
        self.made: dict[tuple[str, int, str], Tensor] = {}

    def map(self, space: Space) -> Tensor:
        """T (d, d) of a space: x' = x T. Of what the feed-forward network's last matrix reads it is the
        inverse transpose, by which a row that meets x is carried; they differ where units are stretched."""
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
            return matrix / scale if space.side == "in" else matrix * scale
        cross = "cross_" if kind.startswith("cross_") else ""
        query, key, value = self._once((space.stack, space.layer, f"{cross}heads"),
                                       lambda: self._heads(space.stack))
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
            scale *= signs(size, self.draw)
        if self.basis.stretched:
            scale *= 0.5 + torch.rand(size, generator=self.draw, dtype=torch.float64)
        return scale

    def _heads(self, stack: str) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Of queries and of what the attention gives, of keys, of values."""
        shape, draw = self.shape, self.draw
        size, rotary = shape.head_dim, FAMILIES[shape.family].rotary
        order = self._order(stack)
        query = torch.zeros(shape.kv_heads, shape.group, size, shape.kv_heads, shape.group, size,
                            dtype=torch.float64)
        mixed, key = query.clone(), query[:, 0, :, :, 0].clone()
        value = key.clone()
        for a, b in enumerate(order.tolist()):
            turns = turning if rotary else rotation
            meet = turns(size, draw) if self.basis.meetings else self._flips(rotary)
            turn = rotation(size, draw) if self.basis.values else self._flips(False)
            key[a, :, b], value[a, :, b] = meet, turn
            for i, j in enumerate(self._shuffled(shape.group).tolist()):
                query[a, i, :, b, j], mixed[a, i, :, b, j] = meet, turn
        wide, narrow = shape.heads * size, shape.kv_heads * size
        both = query.reshape(wide, wide), mixed.reshape(wide, wide)
        return both, key.reshape(narrow, narrow), value.reshape(narrow, narrow)

    def _flips(self, rotary: bool) -> Tensor:
        """What becomes of a head that is not turned."""
        size = self.shape.head_dim
        if not self.basis.signed:
            return torch.eye(size, dtype=torch.float64)
        if rotary:
            return signs(size // 2, self.draw).repeat(2).diag()
        return permutation(size, self.draw) * signs(size, self.draw)

    def _order(self, stack: str) -> Tensor:
        """New places of key-value heads; of T5, whose layers share a table of positions, one for a stack."""
        if self.shape.family not in ("t5", "mt5"):
            return self._shuffled(self.shape.kv_heads)
        return self._once((stack, 0, "order"), lambda: self._shuffled(self.shape.kv_heads))

    def _shuffled(self, number: int) -> Tensor:
        return torch.randperm(number, generator=self.draw) if self.basis.heads else torch.arange(number)

    def write(self, folder: Path) -> HostSpec:
        """The host in the hidden basis, in a new folder."""
        source = Path(self.host.spec.source)
        shutil.copytree(source, folder)
        model, family = self.host.model, FAMILIES[self.host.family]
        folded = self.basis.folded and family.gain is not None
        with torch.no_grad():
            if folded:
                untie(self.host)
            write_matrices(self.host, self.map, folded)
            write_rest(self.host, self.stream, folded)
            for name, parameter in model.named_parameters():
                if "relative_attention_bias" in name:  # T5's, which belong to heads
                    parameter.data[:, self._order(name.partition(".")[0])] = parameter.data.clone()
        model.save_pretrained(folder)
        return describe(HostSource(folder.name, path=str(folder)))


def hide(origin: HostSpec, basis: Basis, folder: Path, seed: int = 0) -> tuple[HostSpec, Hidden]:
    """A host in a hidden basis, and the maps that hide it."""
    made = Hidden(origin, basis, seed)
    return made.write(folder), made


# ---- the error of a port


def strong_host(folder: Path, family: str, hidden: int = 32, layers: int = 2, heads: int = 4,
                gains: tuple[float, float] | None = (0.5, 1.5)) -> HostSpec:
    """A host whose matrices, gains and biases are far from 0 and 1, so that what is carried wrongly shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model(family, hidden, layers, heads)
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                gain = name.endswith("weight") and FAMILIES[family].gain is not None
                parameter.data.uniform_(*(gains or (1.0, 1.0)) if gain else (-0.2, 0.2))
                if name.endswith("weight") and not gain:
                    parameter.data += 1
            else:
                parameter.data.normal_(0, 1.0 if "embed" in name or "wte" in name else 0.3)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return describe(HostSource(folder.name, path=str(folder)))


@torch.no_grad()
def answers(host: Host, texts: Sequence[str] = TEXTS) -> Tensor:
    """Logits of a host's tokens, or last states where a head of its own would read them, (T, d)."""
    read = host.tokenizer(list(texts), padding=True, return_tensors="pt")
    ids, mask = read["input_ids"], read["attention_mask"]
    seen = text_mask(host.family, mask)
    if host.model.config.is_encoder_decoder:
        out = host.model(input_ids=ids, attention_mask=seen, decoder_input_ids=ids, use_cache=False).logits
    elif host.scoring == "head":
        out = host.model(input_ids=ids, attention_mask=seen).last_hidden_state
    else:
        out = lm_logits(host.model, body(host.model)(
            input_ids=ids, attention_mask=seen, position_ids=torch.arange(ids.shape[1])[None],
            use_cache=False).last_hidden_state)
    return out[mask.bool()].double()


class Mapped(MapStrategy):
    """A strategy of a test: maps of another strategy or of a hidden basis, perhaps spoilt."""

    by_unit = True

    def __init__(self, maps: Callable[[PortContext, Sequence[Pair]], Mapping[Pair, Tensor]],
                 spoil: Callable[[Tensor], Tensor] = lambda matrix: matrix,
                 needs: frozenset[Any] = frozenset(), by_unit: bool = True):
        self.given, self.spoil, self.by_unit = maps, spoil, by_unit
        self.needs = needs | {"origin_weights", "receiving_weights"}

    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """See MapStrategy.maps."""
        return {pair: self.spoil(matrix) for pair, matrix in self.given(context, pairs).items()}


def identity(matrix: Tensor) -> Tensor:
    """As if both hosts had one basis."""
    return torch.eye(*matrix.shape, dtype=matrix.dtype)


def noise(matrix: Tensor) -> Tensor:
    """Another matrix with orthonormal columns."""
    return rotation(max(matrix.shape), torch.Generator().manual_seed(7))[:matrix.shape[0], :matrix.shape[1]]


def shuffled(matrix: Tensor) -> Tensor:
    """The map's rows in another order: other units, each with a unit of its own."""
    return matrix[torch.randperm(len(matrix), generator=torch.Generator().manual_seed(7))]


class Scene:
    """A host, the same in a hidden basis, and ports of methods between them."""

    def __init__(self, folder: Path, family: str, basis: Basis, hidden: int = 32, layers: int = 2,
                 heads: int = 4, gains: tuple[float, float] | None = (0.5, 1.5)):
        folder.mkdir()
        self.origin = strong_host(folder / "origin", family, hidden, layers, heads, gains)
        self.receiving, self.made = hide(self.origin, basis, folder / "hidden")
        self.load = functools.cache(load_host)  # hosts without a method
        self.learned: dict[str, tuple[ModuleState, Tensor, Tensor]] = {}

    def true(self, spoil: Callable[[Tensor], Tensor] = lambda matrix: matrix) -> Mapped:
        """The strategy that knows the hidden basis."""
        return Mapped(lambda _, pairs: {pair: self.made.map(pair[0]) for pair in pairs}, spoil)

    def here(self, seen: Tensor) -> Tensor:
        """What the receiving host answers, in the origin's coordinates."""
        return seen @ self.made.stream.T if self.made.host.scoring == "head" else seen

    def known(self, method: MethodSpec) -> tuple[ModuleState, Tensor, Tensor]:
        """A module on the origin, the host's answers with it, and without."""
        if method.name not in self.learned:
            host = load_host(self.origin)
            bare, attached = answers(host), attach(host, method)
            module = noisy(attached, 1)
            put(host, attached.to_parameters(module))
            self.learned[method.name] = module, answers(host), bare
        return self.learned[method.name]

    def port(self, method: MethodSpec, strategy: str | Strategy, tokens: int = 600,
             texts: Sequence[str] = READ, **options: Any) -> tuple[Port, Host]:
        """The port by `portability.porting.port`, and the hidden host with it."""
        module, host = self.known(method)[0], load_host(self.receiving)
        attached = attach(host, method)
        read: Calibration = calibration("sentences", texts, tokens)
        name = strategy if isinstance(strategy, str) else f"of a test {next(NUMBERS)}"
        before = dict(STRATEGIES)
        try:
            STRATEGIES[name] = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
            done = port(module, PortContext(
                self.origin, self.receiving, attached.init_parameters(0),
                PortSpec(name, name, "stretch", options=options), self.load, lambda: read))
        finally:
            STRATEGIES.clear()
            STRATEGIES.update(before)
        put(host, attached.to_parameters(done.module))
        return done, host

    def head(self, head: Mapping[str, Tensor], strategy: str) -> dict[str, Tensor]:
        """A classification head by `portability.porting.port`."""
        empty, read = ModuleState({}, {}), calibration("sentences", READ, 600)
        return fit_head(head, PortContext(self.origin, self.receiving, empty,
                                          PortSpec(strategy, strategy, "stretch"), self.load, lambda: read))

    def error(self, method: MethodSpec, strategy: str | Strategy, **how: Any) -> float:
        """|ported - known| / |known - bare| of the answers."""
        _, known, bare = self.known(method)
        got = self.here(answers(self.port(method, strategy, **how)[1]))
        return float((got - known).norm() / (known - bare).norm())


def scenes(folders: pytest.TempPathFactory, table: Mapping[str, Sequence[Any]]) -> Callable[[str], Scene]:
    """A name of the table -> the scene of its arguments, made once."""
    return functools.cache(lambda name: Scene(folders.mktemp("hidden") / "scene", *table[name]))


def put(host: Host, values: Mapping[str, Tensor]) -> None:
    """Set a host's parameters."""
    own = dict(host.model.named_parameters())
    for name, value in values.items():
        own[name].data.copy_(value)
