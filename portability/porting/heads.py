"""Maps of an attention's spaces that keep what the architecture ties together.

Queries and keys meet head by head, so both get one map a key-value head, and under rotary positions one that
turns each pair of coordinates (i, i + head_dim / 2), because anything else does not commute with the
position. Values get one map a key-value head, which repeats on what the attention gives, once a query head.
Heads are
matched whole: key-value heads first, then the query heads of each.

A *solver* finds the map of two heads from their cross-moments, and says how well they match.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from portability.core.specs import HostShape

Solver = Callable[[Tensor], tuple[Tensor, Tensor]]  # (N, d_o, d_r) -> maps (N, d_o, d_r), scores (N,)


class Cross(NamedTuple):
    """Cross-moments of two hosts' spaces of one attention, (d_o, d_r) each: of queries, keys and values."""

    query: Tensor
    key: Tensor
    value: Tensor


class AttentionMaps(NamedTuple):
    """Maps (d_o, d_r) of what an attention's matrices give, and of `mixed`, what its output matrix reads."""

    query: Tensor
    key: Tensor
    value: Tensor
    mixed: Tensor


def attention_maps(cross: Cross, origin: HostShape, receiving: HostShape, solve: Solver,
                   turn: Solver | None = None) -> AttentionMaps:
    """Maps that send whole heads to whole heads; what is left over of either side is sent nowhere.

    Args:
        solve: of heads that may be mixed freely.
        turn: of queries and keys under rotary positions, where both hosts have them (rotary.py).

    Source: matching of heads after LoRASuite (arXiv 2505.13515) and TransFusion (arXiv 2505.22697); that
        queries and keys are solved together is our choice (D-133).
    """
    sizes = origin.head_dim, receiving.head_dim
    meet = turn or solve
    queries = _blocks(cross.query, (origin.kv_heads, origin.group), (receiving.kv_heads, receiving.group))
    keys, values = (_blocks(one, (origin.kv_heads, 1), (receiving.kv_heads, 1))[:, 0, :, 0]
                    for one in (cross.key, cross.value))
    of_queries = _solved(queries, meet)[1]
    places = {(a, b): linear_sum_assignment(of_queries[a, :, b].numpy(), maximize=True)
              for a in range(origin.kv_heads) for b in range(receiving.kv_heads)}
    within = torch.zeros(origin.kv_heads, receiving.kv_heads, dtype=torch.float64)
    for (a, b), (rows, columns) in places.items():
        within[a, b] = of_queries[a, rows, b, columns].sum()
    value_maps, of_values = _solved(values, solve)
    total = torch.stack([one / one.sum().clamp_min(1e-300)
                         for one in (within, _solved(keys, meet)[1], of_values)]).sum(0)
    query = cross.query.new_zeros(origin.kv_heads, origin.group, sizes[0],
                                  receiving.kv_heads, receiving.group, sizes[1])
    mixed, key = torch.zeros_like(query), query[:, 0, :, :, 0].clone()
    value = key.clone()
    for a, b in zip(*(one.tolist() for one in linear_sum_assignment(total.numpy(), maximize=True)),
                    strict=True):
        rows, columns = (one.tolist() for one in places[a, b])
        both = _unit(keys[a, b]) + _unit(queries[a, rows, b, columns].sum(0))
        key[a, :, b], value[a, :, b] = meet(both[None])[0][0], value_maps[a, b]
        for i, j in zip(rows, columns, strict=True):
            query[a, i, :, b, j], mixed[a, i, :, b, j] = key[a, :, b], value[a, :, b]
    wide = origin.heads * sizes[0], receiving.heads * sizes[1]
    narrow = origin.kv_heads * sizes[0], receiving.kv_heads * sizes[1]
    return AttentionMaps(query.reshape(wide), key.reshape(narrow), value.reshape(narrow), mixed.reshape(wide))


def _blocks(cross: Tensor, origin: tuple[int, int], receiving: tuple[int, int]) -> Tensor:
    """(d_o, d_r) by heads: (kv_o, group_o, kv_r, group_r, head_o, head_r)."""
    sizes = (*origin, cross.shape[0] // (origin[0] * origin[1]),
             *receiving, cross.shape[1] // (receiving[0] * receiving[1]))
    return cross.reshape(sizes).permute(0, 1, 3, 4, 2, 5)


def _solved(blocks: Tensor, solve: Solver) -> tuple[Tensor, Tensor]:
    """A solver's maps (..., d_o, d_r) and scores (...)."""
    maps, scores = solve(blocks.reshape(-1, *blocks.shape[-2:]))
    return maps.reshape(blocks.shape), scores.reshape(blocks.shape[:-2])


def _unit(moments: Tensor) -> Tensor:
    return moments / moments.norm().clamp_min(1e-300)


def polar(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with orthonormal rows or columns nearest to each of (N, d_o, d_r), and its inner product
    with it (the sum of singular values): orthogonal Procrustes (Schoenemann 1966)."""
    left, scale, right = torch.linalg.svd(moments, full_matrices=False)
    return left @ right, scale.sum(-1)


def turned(moments: Tensor) -> tuple[Tensor, Tensor]:
    """As `polar`, among the maps that turn each pair (i, i + d / 2) by an angle of its own: (N, d, d)."""
    return _turning(moments, lambda pairs: torch.where(pairs == 0, pairs, pairs / pairs.abs()))


def flipped(moments: Tensor) -> tuple[Tensor, Tensor]:
    """As `turned`, among those that leave a pair as it is, or turn it half round."""
    return _turning(moments, lambda pairs: torch.complex(pairs.real.sign(), torch.zeros_like(pairs.real)))


def _turning(moments: Tensor, unit: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    half = moments.shape[-1] // 2
    corner = moments[:, :half, :half], moments[:, :half, half:], moments[:, half:, :half], moments[:, half:,
                                                                                                   half:]
    one, two, three, four = (part.diagonal(dim1=-2, dim2=-1) for part in corner)
    pairs = torch.complex(one + four, two - three)  # sum of conj(z_o) z_r, with z = x[i] + j x[i + half]
    turn = unit(pairs)
    real, imaginary = turn.real.diag_embed(), turn.imag.diag_embed()
    maps = torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)
    return maps, (pairs.conj() * turn).real.sum(-1)


def signed_permutations(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices with at most one entry, 1 or -1, in a row and column, that have the largest inner product
    with each of (N, d_o, d_r), and that product (Hungarian method on absolute values)."""
    maps = torch.zeros_like(moments)
    for one, matrix in zip(moments, maps, strict=True):
        rows, columns = linear_sum_assignment(one.abs().numpy(), maximize=True)
        matrix[rows, columns] = one[rows, columns].sign()
    return maps, (moments * maps).sum((-2, -1))
