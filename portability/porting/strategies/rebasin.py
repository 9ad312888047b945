"""Strategy "rebasin": the units of two hosts of one shape are matched by their weights alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError, validate_choice
from portability.core.seeds import stream
from portability.core.specs import HOST_AXES, HostSpec
from portability.hosts.host import Host
from portability.porting.activations import Pair
from portability.porting.base import PortContext
from portability.porting.heads import Cross, attention_maps
from portability.porting.maps import MapStrategy
from portability.porting.measured import meets
from portability.porting.rotary import turner
from portability.porting.spaces import Space
from portability.porting.weighed import Folded, folded, has_site, shared_embeddings

OPTIONS = ("starts",)
STARTS = 4
SWEEPS = 100  # at most; each of them raises the objective, and few are ever needed
Groups = dict[str, Tensor]  # name of a group of spaces -> for each receiving unit the origin's, (d,)
STREAM = "stream"
KINDS = ("query", "key", "value", "mixed")  # of one attention, solved together


class Rebasin(MapStrategy):
    """T is the permutation of the residual stream, of each feed-forward network's units and of each
    attention's heads and what is in them, with the largest sum over all matrices of <W_r, T_out^T W_o T_in>
    and <E_r, E_o T> of shared tokens, by coordinate descent from several starts; under rotary positions
    queries and keys keep their order within a head. Hosts of one shape only.

    Options:
        starts: how many (4): the first begins with the stream as the embeddings alone match it, the others
            with one drawn at random, the same for all seeds; the best is taken (our choice). Measured on
            hosts in a hidden basis: the first finds it, also under noise of a standard deviation on the
            weights; where no token is shared, one random start in two to twelve does.

    Source: weight matching of Git Re-Basin (Ainsworth et al. 2023, arXiv 2209.04836, algorithm 1), heads
        first after TransFusion (arXiv 2505.22697).
    """

    needs = frozenset({"origin_weights", "receiving_weights"})
    lasting = True
    by_unit = True

    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """See MapStrategy.maps.

        Raises:
            UserError: hosts of unequal shapes, spaces of different layers, or as `turner`.
        """
        options = context.spec.options
        for name in options:
            validate_choice(str(name), OPTIONS, f"option of port '{context.spec.name}' (rebasin)")
        starts = options.get("starts", STARTS)
        if type(starts) is not int or starts < 1:
            raise UserError(f"port.{context.spec.name}.options.starts must be a whole number from 1 on, got "
                            f"{starts!r}")
        check_alike(context, pairs)
        for pair in filter(meets, pairs):
            turner(context, pair, True, kept)
        work = Matching(context)
        found = max((work.descend(start) for start in range(starts)), key=work.objective)
        return {pair: permutation(found[group_of(pair[1])]) for pair in pairs}


def check_alike(context: PortContext, pairs: Sequence[Pair]) -> None:
    """Refuse hosts of two shapes, and layers that change their places."""
    one, other = (_numbers(host) for host in (context.origin, context.receiving))
    if one != other:
        axis = next(name for name in one | other if one.get(name) != other.get(name))
        raise UserError(f"port strategy 'rebasin' {context.pair}: it matches hosts of one shape, and these "
                        f"differ in {axis} ({one.get(axis)} and {other.get(axis)}); use embed, or procrustes "
                        "with texts")
    moved = next((pair for pair in pairs if pair[0][:3] != pair[1][:3]), None)
    if moved:
        raise UserError(f"port strategy 'rebasin' {context.pair}: it matches each layer with its own, and "
                        f"the layer map sends {moved[0].words} to {moved[1].words}; use layer_map=stretch")


def _numbers(host: HostSpec) -> dict[str, object]:
    """Sizes and matrices, by name."""
    shape = host.shape
    return {axis: shape.size(axis) for axis in HOST_AXES} | {
        f"{stack} layers": depth for stack, depth in shape.layers.items()} | {
        "matrices": ", ".join(_sites(shape.family))}


def _sites(family: str) -> list[str]:
    return sorted({site for matrices in FAMILIES[family].matrices.values() for joined in matrices.values()
                   for site in joined.split("+")})


def group_of(space: Space) -> str:
    """Spaces of one group have one permutation."""
    kind = space.kind
    return STREAM if kind == "hidden" else f"{space.stack}.{space.layer}.{kind}"


def permutation(picks: Tensor) -> Tensor:
    """T (d, d) float64 that sends unit picks[j] to j."""
    return torch.eye(len(picks), dtype=torch.float64)[picks].T


def assigned(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The permutations with the largest inner product with each of (N, d, d), and that product (Hungarian
    method)."""
    maps = torch.zeros_like(moments)
    for one, matrix in zip(moments, maps, strict=True):
        matrix[linear_sum_assignment(one.numpy(), maximize=True)] = 1
    return maps, (moments * maps).sum((-2, -1))


def kept(moments: Tensor) -> tuple[Tensor, Tensor]:
    """As `assigned`, of the identity alone."""
    maps = torch.eye(moments.shape[-1], dtype=moments.dtype).expand_as(moments)
    return maps, (moments * maps).sum((-2, -1))


@dataclass
class Edge:
    """A matrix of both hosts, and the groups of what it reads and writes. Doubles are made of one matrix at a
    time: those of all would take twice to four times the hosts' own memory."""

    hosts: tuple[Folded, Folded]
    into: str
    out: str

    @property
    def one(self) -> Tensor:
        """The origin's, (out, in), float64."""
        return self.hosts[0].matrix()

    @property
    def other(self) -> Tensor:
        """The receiving host's."""
        return self.hosts[1].matrix()


class Matching:
    """Coordinate descent on the permutations of two hosts."""

    def __init__(self, context: PortContext):
        self.context = context
        hosts = context.origin_host(), context.receiving_host()
        self.tables = shared_embeddings(*hosts)
        self.edges = list(_edges(hosts))
        names = [name for edge in self.edges for name in (edge.into, edge.out)]
        shapes = [edge.hosts[0].weight.shape for edge in self.edges]
        self.sizes = {edge.out: shape[0] for edge, shape in zip(self.edges, shapes, strict=True)} | {
            edge.into: shape[1] for edge, shape in zip(self.edges, shapes, strict=True)}
        self.blocks = list(dict.fromkeys(_block(name) for name in names))

    def objective(self, found: Groups) -> float:
        """Sum of the inner products of both hosts' matrices."""
        total = (self.tables[0][:, found[STREAM]] * self.tables[1]).sum()
        for edge in self.edges:
            total += (edge.one[found[edge.out]][:, found[edge.into]] * edge.other).sum()
        return float(total)

    def descend(self, start: int) -> Groups:
        """Permutations that no change of a single block makes better."""
        draw = stream("port", "rebasin", start)  # the maps are the hosts', whatever the run's seed
        found: Groups = {}  # what is not there yet says nothing
        if start:
            found[STREAM] = torch.randperm(self.sizes[STREAM], generator=draw)
        else:
            found |= self._solve(STREAM, found)
        for block in self.blocks:
            if block != STREAM:
                found |= self._solve(block, found)
        best = self.objective(found)
        for _ in range(SWEEPS):
            before = best
            for place in torch.randperm(len(self.blocks), generator=draw).tolist():
                tried = found | self._solve(self.blocks[place], found)
                if (value := self.objective(tried)) > best:
                    found, best = tried, value
            if best <= before * (1 + 1e-12):
                break
        return found

    def _solve(self, block: str, found: Groups) -> Groups:
        """The permutations of a block, with those of all others as they are."""
        if not block.endswith("heads"):
            moments = self._moments(block, found)
            if block == STREAM:
                moments += self.tables[0].T @ self.tables[1]
            return {block: assigned(moments[None])[0][0].argmax(0)}
        place = block.removesuffix("heads")
        shape = self.context.origin.shape
        query, key, value, mixed = (self._moments(f"{place}{kind}", found) for kind in KINDS)
        if shape.group == 1:  # what the attention gives has the values' permutation
            value = value + mixed
        maps = attention_maps(Cross(query, key, value), shape, self.context.receiving.shape, assigned,
                              kept if FAMILIES[shape.family].rotary else None)
        return {f"{place}{kind}": getattr(maps, kind).argmax(0) for kind in KINDS}

    def _moments(self, group: str, found: Groups) -> Tensor:
        """What the matrices say of a group's permutation, (d, d): origin units by receiving units."""
        total = torch.zeros(self.sizes[group], self.sizes[group], dtype=torch.float64)
        for edge in self.edges:
            if edge.out == group and edge.into in found:
                total += edge.one[:, found[edge.into]] @ edge.other.T
            if edge.into == group and edge.out in found:
                total += edge.one[found[edge.out]].T @ edge.other
        return total


def _block(group: str) -> str:
    """Groups that are solved together: those of one attention."""
    place, _, kind = group.rpartition(".")
    base = kind.removeprefix("cross_")
    return f"{place}.{kind.removesuffix(base)}heads" if base in KINDS else group


def _edges(hosts: tuple[Host, Host]) -> Iterator[Edge]:
    """The matrices of all layers; one that only one of the hosts has is refused by name."""
    shape = hosts[1].spec.shape
    for stack, depth in shape.layers.items():
        for layer, site in product(range(depth), _sites(shape.family)):
            if any(has_site(host, stack, layer, site) for host in hosts):
                one, other = (folded(host, stack, layer, site) for host in hosts)
                into, out = (group_of(Space(stack, layer, site, side)) for side in ("in", "out"))
                yield Edge((one, other), into, out)


REBASIN = Rebasin()
