"""Which layers of two hosts go together, by looking at them: layer map "cka"."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.hashing import remember, remembered
from portability.core.specs import digest
from portability.core.versions import own_code
from portability.hosts.host import Host
from portability.porting.activations import Reader, aligned_batches
from portability.porting.base import PortContext
from portability.porting.calibration import Calibration
from portability.porting.similarity import FEWEST, cka, gram, match
from portability.porting.spaces import Space, fold, weight_of

TEXTS, TOKENS = 256, 512  # that layers are compared on at most (our choice)
ADDED = ("attention_out", "ffn_down")  # sites whose outputs a layer adds to the residual stream
POINTS = 64  # of a spectrum
INHERITED = 0.25  # mean squared cosine from which on layers count as the same ones (our choice)
KEPT = 64  # layer maps that are kept in memory
Scored = tuple[int, int, list[int]]  # how alike, how even, and the map
_known: dict[tuple[object, ...], list[list[int]]] = {}


def cka_layers(context: PortContext, stack: str, source: str) -> list[list[int]]:
    """The origin layer of `source` behind each layer of the receiving stack, as lists of one: the map that
    goes back nowhere and whose layers are most alike in sum (`best_map`).

    Alike by their weights where these are still the same (`same_weights`): a host that was thinned and not
    healed makes nothing sensible of texts. Else by what they make of the calibration texts
    (`alike_in_states`), or without texts by what weights tell in any basis (`alike_in_weights`).

    Raises:
        UserError: as `alike_in_states` and `alike_in_weights`.

    Source: CKA of layers after Kornblith et al. (ICML 2019); the map of largest sum is our choice (D-133).
    """
    texts = context.texts() if context.texts is not None else None
    hosts, stacks = (context.origin_host(), context.receiving_host()), (source, stack)
    marks = context.origin.fingerprint, context.receiving.fingerprint
    key = (*marks, *(host.precision for host in hosts), stack, source, texts.mark if texts else None)
    if key not in _known or not all(marks):
        entry = digest([own_code(), torch.get_num_threads(), *key])
        found = remembered("layer_maps", entry) if all(marks) else None
        if found is None:
            found = _found(hosts, stacks, texts)
            if all(marks):
                remember("layer_maps", entry, found)
        while len(_known) >= KEPT:
            _known.pop(next(iter(_known)))
        _known[key] = [[layer] for layer in found]
    return [list(layers) for layers in _known[key]]


def _found(hosts: tuple[Host, Host], stacks: tuple[str, str], texts: Calibration | None) -> list[int]:
    """The origin layer behind each receiving layer, by looking."""
    alike = same_weights(hosts, stacks)
    if sum(float(alike[layer, place]) for place, layer in enumerate(best_map(alike))) < (
            INHERITED * alike.shape[1]):  # the layers do not stem from one another
        alike = alike_in_states(hosts, stacks, texts) if texts else alike_in_weights(hosts, stacks)
    return best_map(alike)


def best_map(alike: Tensor) -> list[int]:
    """Of all maps from receiving layers to origin layers that do not go back, the one with the largest sum
    of `alike` (origin layers, receiving layers), to 9 decimals; among equals the one nearest to an even
    spread, in squares. A dynamic programme over the receiving layers.

    Example:
        >>> best_map(torch.tensor([[0.9, 0.2], [0.3, 0.4], [0.1, 0.8]])), best_map(torch.ones(3, 5))
        ([0, 2], [0, 0, 1, 1, 2])
    """
    depth, width = alike.shape
    # exact integers: alike, and how far from even
    worth = [[(round(float(alike[i, j]) * 1e9),
               -(i * (width - 1) - j * (depth - 1))**2 if width > 1 else -(depth - 1 - i)**2)
              for i in range(depth)] for j in range(width)]
    best: list[Scored] = [(0, 0, []) for _ in range(depth)]
    for row in worth:
        # the best map of the layers before that ends at this layer or an earlier one
        ahead = accumulate(best, _better)
        best = [(total + score, off + even, [*layers, i])
                for i, ((total, off, layers), (score, even)) in enumerate(zip(ahead, row, strict=True))]
    return reduce(_better, best)[2]


def _better(one: Scored, other: Scored) -> Scored:
    return other if other[:2] > one[:2] else one


def alike_in_states(hosts: tuple[Host, Host], stacks: tuple[str, str], texts: Calibration) -> Tensor:
    """Linear CKA of what each origin layer and each receiving layer add to the residual stream, (layers_o,
    layers_r), at most 1, on up to `TOKENS` aligned tokens spread over up to `TEXTS` texts.

    What a layer adds, attention and feed-forward network side by side, tells layers apart; the stream behind
    them is much the same from one to the next.

    Raises:
        UserError: too few aligned tokens, a host that is not finite, or whose layer adds the same everywhere.
    """
    batches = list(aligned_batches(*hosts, replace(texts, texts=texts.texts[:TEXTS])))
    count = sum(aligned.tokens for aligned in batches)
    if count < FEWEST:
        raise UserError(f"calibration texts '{texts.name}' give {count} tokens that hosts "
                        f"'{hosts[0].spec.name}' and '{hosts[1].spec.name}' both have; layers are compared "
                        f"on at least {FEWEST}: name more texts")
    step = -(-count // TOKENS)
    grams: list[list[Tensor]] = []
    for side, (host, stack) in enumerate(zip(hosts, stacks, strict=True)):
        layers = [[Space(stack, layer, site, "out") for site in ADDED]
                  for layer in range(host.spec.shape.layers[stack])]
        reader = Reader(host, [space for spaces in layers for space in spaces])
        parts: list[list[Tensor]] = [[] for _ in layers]
        seen = 0
        for aligned in batches:
            ids, mask, picks = (aligned.origin, aligned.receiving)[side]
            own = slice(-seen % step, None, step)
            seen += aligned.tokens
            found = reader.read(ids, mask, (picks[0][own], picks[1][own]))
            for part, spaces in zip(parts, layers, strict=True):
                part.append(torch.cat([found[space].double() for space in spaces], 1))
        grams.append([gram(torch.cat(part)) for part in parts])
        if flat := [layer for layer, one in enumerate(grams[-1]) if not one.isfinite().all()]:
            raise UserError(f"layer {flat[0]} of host '{host.spec.name}' adds the same to all tokens of "
                            f"calibration texts '{texts.name}'; name other texts, or another layer map")
    return torch.tensor([[cka(one, other) for other in grams[1]] for one in grams[0]], dtype=torch.float64)


def matched_layers(hosts: tuple[Host, Host], stacks: tuple[str, str], texts: Calibration) -> list[float]:
    """Of `alike_in_states` that of each layer of the shallower stack with the one of the deeper at the same
    relative depth (`similarity.match`).

    Raises:
        UserError: as `alike_in_states`.
    """
    alike = alike_in_states(hosts, stacks, texts)
    return [float(alike[pair]) for pair in match(*alike.shape)]


def same_weights(hosts: tuple[Host, Host], stacks: tuple[str, str]) -> Tensor:
    """Mean over the sites of the squared cosine of the matrices of each origin layer and each receiving
    layer, (layers_o, layers_r), in [0, 1]; a site counts 0 where shapes differ. Gains of RMSNorms are folded
    in.

    Raises:
        UserError: as `alike_in_weights`.

    Source: our choice (D-133).
    """
    common, depths = _common(hosts, stacks)
    total = torch.zeros(*depths, dtype=torch.float64)
    for site in common:
        own = _matrices(hosts, stacks, depths, site)
        if own[0][0].shape == own[1][0].shape:
            left, right = (torch.stack([one.flatten() / one.norm().clamp_min(1e-30) for one in matrices])
                           for matrices in own)
            total += (left @ right.T).square() / len(common)
    return total


def alike_in_weights(hosts: tuple[Host, Host], stacks: tuple[str, str]) -> Tensor:
    """How alike the matrices of each origin layer and each receiving layer are, (layers_o, layers_r): the
    mean over the sites that both have of the squared cosine, where their shapes agree, plus the likeness of
    their spectra, in [0, 2].

    The likeness of two spectra a and b is 1 - |a - b| / (|a| + |b|), with the singular values at `POINTS`
    places from the largest to the smallest, each host's divided by their root mean square over its layers.
    It is the same in every basis; the cosine outweighs it where hosts share theirs. Gains of RMSNorms are
    folded in.

    Raises:
        UserError: the hosts have no site in common, or a weight is not finite.

    Source: our choice (D-133).
    """
    common, depths = _common(hosts, stacks)
    total = same_weights(hosts, stacks)
    for site in common:
        one, other = (_spectra(matrices) for matrices in _matrices(hosts, stacks, depths, site))
        apart = (one[:, None] - other).norm(dim=2) / (
            one.norm(dim=1)[:, None] + other.norm(dim=1)).clamp_min(1e-30)
        total += (1 - apart) / len(common)
    return total


def _common(hosts: tuple[Host, Host], stacks: tuple[str, str]) -> tuple[list[str], list[int]]:
    """The sites that both hosts' stacks have, and their depths."""
    sites = [_sites(host, stack) for host, stack in zip(hosts, stacks, strict=True)]
    common = [site for site in sites[0] if site in sites[1]]
    if not common:
        raise UserError(f"the layers of hosts '{hosts[0].spec.name}' and '{hosts[1].spec.name}' have no "
                        "matrix of one role: they cannot be compared; use another layer map")
    return common, [host.spec.shape.layers[stack] for host, stack in zip(hosts, stacks, strict=True)]


def _matrices(hosts: tuple[Host, Host], stacks: tuple[str, str], depths: Sequence[int],
              site: str) -> list[list[Tensor]]:
    return [[_folded(host, Space(stack, layer, site, "out")) for layer in range(depth)]
            for host, stack, depth in zip(hosts, stacks, depths, strict=True)]


def _sites(host: Host, stack: str) -> list[str]:
    """The sites of a stack's matrices, as far as the host has them (T5's network has a gate in some)."""
    names = [name for name, _ in host.model.named_modules()]
    return list(dict.fromkeys(
        site for path, joined in FAMILIES[host.family].matrices[stack].items() for site in joined.split("+")
        if any(name.endswith(f".{path}") for name in names)))


def _folded(host: Host, space: Space) -> Tensor:
    """A site's matrix (out, in) with the gain of the normalisation before it."""
    weight = weight_of(host, space).double()
    inverse = fold(host, space._replace(side="in"))
    return weight if inverse is None else weight / inverse


def _spectra(matrices: Sequence[Tensor]) -> Tensor:
    """(layers, POINTS)."""
    values = torch.stack([torch.linalg.svdvals(matrix) for matrix in matrices])
    points = interpolate(values[:, None], POINTS, mode="linear", align_corners=True)[:, 0]
    return points / points.square().mean().sqrt().clamp_min(1e-30)
