"""Layer maps: which origin layers feed each receiving layer, and how several become one."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from portability.core.errors import UserError, validate_choice
from portability.core.wording import counted
from portability.methods.module import ModuleState

LayerMap = Callable[[int, int], list[list[int]]]
# receiving stack, origin stack -> origin layers of each layer
LayersOf = Callable[[str, str], list[list[int]]]


def skip(origin: int, receiving: int) -> list[list[int]]:
    """Keep every k-th origin layer, k = floor(L_o / L_r), as in Klimaszewski et al. (2024), arXiv 2403.18804.

    Raises:
        UserError: the receiving stack is deeper, so there is nothing to skip.

    Example:
        >>> skip(6, 3)
        [[0], [2], [4]]
    """
    if receiving > origin:
        raise UserError(f"layer map 'skip' only drops layers ({origin} -> {receiving}); use 'stretch' or "
                        "'average'")
    return [[layer * (origin // receiving)] for layer in range(receiving)]


def stretch(origin: int, receiving: int) -> list[list[int]]:
    """Spread the origin's layers evenly over the receiving depth, first on first and last on last (our
    choice, D-06).

    Example:
        >>> stretch(3, 6), stretch(6, 3)
        ([[0], [0], [1], [1], [2], [2]], [[0], [2], [5]])
    """
    if receiving == 1:
        return [[origin - 1]]
    return [[round(layer * (origin - 1) / (receiving - 1))] for layer in range(receiving)]


def average(origin: int, receiving: int) -> list[list[int]]:
    """Give each receiving layer its even share of neighbouring origin layers (Klimaszewski et al. 2024,
    `avg`).

    Example:
        >>> average(6, 3), average(2, 3)
        ([[0, 1], [2, 3], [4, 5]], [[0], [0], [1]])
    """
    starts = [layer * origin // receiving for layer in range(receiving + 1)]
    return [list(range(first, max(last, first + 1))) for first, last in zip(starts, starts[1:], strict=False)]


SUM = "sum"
LAYER_MAPS: dict[str, LayerMap] = {"skip": skip, "stretch": stretch, "average": average, SUM: average}
MEASURED = "cka"  # the layer map that hosts are looked at for (porting/layer_similarity.py)
EXPLICIT = re.compile(r"\d+(\+\d+)*(,\d+(\+\d+)*)*")


def check_layer_map(words: str) -> None:
    """Refuse a layer map that is no name and no list of layers."""
    if not EXPLICIT.fullmatch(words):
        try:
            validate_choice(words, {*LAYER_MAPS, MEASURED}, "layer map")
        except UserError as error:
            raise UserError(f"{error} (or list the origin layers behind each receiving one, as "
                            "0,2,4+5)") from error


def named_layers(words: str, origin: int, receiving: int) -> list[list[int]]:
    """A layer map by its name, or as a list of the origin layers behind each receiving one.

    Raises:
        UserError: no such name, or a list that does not go with these depths.

    Example:
        >>> named_layers("0,2+3", 4, 2), named_layers("stretch", 4, 2)
        ([[0], [2, 3]], [[0], [3]])
    """
    check_layer_map(words)
    if not EXPLICIT.fullmatch(words):
        return LAYER_MAPS["stretch" if words == MEASURED else words](origin, receiving)
    layers = [[int(one) for one in part.split("+")] for part in words.split(",")]
    if len(layers) != receiving or max(map(max, layers)) >= origin:
        example = ",".join(str(layer) for (layer,) in stretch(origin, receiving))
        raise UserError(f"layer map {words}: the receiving stack has {counted(receiving, 'layer')}, the "
                        f"origin's layers are 0 to {origin - 1}; type such as {example}")
    return layers


def stack_map(module: ModuleState, fresh: ModuleState) -> dict[str, str]:
    """Receiving stack -> origin stack: the same name, or the only one where each side has just one."""
    have = {slot.stack for slot in module.tensors}
    want = {slot.stack for slot in fresh.tensors}
    pairs = {stack: stack for stack in sorted(want & have)}
    single = [stacks - {"shared"} for stacks in (want, have)]
    if all(len(stacks) == 1 for stacks in single) and single[0] != single[1]:
        pairs[single[0].pop()] = single[1].pop()
    return pairs


PAIRED = ("A", "E", "B", "down_weight", "down_bias", "up_weight")  # roles that are averaged as products
ADDED = ("up_bias", "fourierft_spectrum", "c3a_kernel", "miss_block")  # in which an effect is linear, added
MULTIPLIED = ("magnitude", "ia3_l", "weight", "bias")  # as ADDED, multiplied or in place of the host's own


def check_mixed(roles: Iterable[str], sums: bool) -> None:
    """Refuse several layers' tensors of one site as one, where no mean, or no sum, of what they do is defined
    (D-149). What is not known to have one has none.

    Raises:
        UserError: names the first role.

    Example:
        >>> check_mixed(["A", "B_query", "B_key"], sums=True)
    """
    for role in sorted(roles):
        known = next((one for one in (*PAIRED, *ADDED, *MULTIPLIED) if f"{role}_".startswith(f"{one}_")), "")
        if not known:
            raise UserError(f"no mean of several layers' {role} is defined: it is one factor of several, or "
                            "acts on its own in no linear way")
        if sums and known in MULTIPLIED:
            raise UserError(f"no sum of several layers' {role} is defined: it multiplies what the host has, "
                            "or stands in its place")


def average_layers(layers: Sequence[Mapping[str, Tensor]], sums: bool = False) -> dict[str, Tensor]:
    """One layer's tensors from several layers' (role -> tensor of one site), of roles that `check_mixed` lets
    pass.

    Low-rank pairs (AdaLoRA's with E between them) are averaged as products and split again by a truncated
    SVD, because the factors of two layers have no common basis (averaging factors keeps a cosine of 0.74 with
    the averaged product); so is a bottleneck, whose nonlinearity is left out of the product and whose bias
    travels as one more input (our choice, D-07). Everything else is averaged entry by entry. With `sums`
    products and biases are added up: what the origin's layers did one after the other, one layer does (our
    choice, D-133).
    """
    if len(layers) == 1:
        return {role: tensor.clone() for role, tensor in layers[0].items()}
    roles = set(layers[0])
    out = {role: torch.stack([layer[role] for layer in layers]).mean(0) for role in roles}
    if outs := sorted(role for role in roles if "A" in roles and (role == "B" or role.startswith("B_"))):
        out |= _average_low_rank(layers, outs)
    if {"down_weight", "up_weight"} <= roles:
        widened = [{**layer, "down_weight": torch.cat([layer["down_weight"], layer["down_bias"][:, None]], 1)}
                   for layer in layers]
        pair = _average_pair(widened, "down_weight", "up_weight")
        out |= {"down_weight": pair["down_weight"][:, :-1], "down_bias": pair["down_weight"][:, -1],
                "up_weight": pair["up_weight"]}
    added = (*outs, "up_weight", *ADDED) if sums else ()
    return {role: tensor * len(layers) if role in added else tensor for role, tensor in out.items()}


def _average_low_rank(layers: Sequence[Mapping[str, Tensor]], outs: Sequence[str]) -> dict[str, Tensor]:
    """The mean product of a LoRA's A and its B, or the B of each site beside a matrix of several, one under
    the other. AdaLoRA's E is taken into A, and is 1 afterwards."""
    first, pairs = layers[0], []
    rank = len(first["A"])
    for layer in layers:
        scale = layer["E"].reshape(rank, *[1] * (first["A"].ndim - 1)) if "E" in layer else 1
        under = torch.cat([layer[out].reshape(-1, rank) for out in outs])
        pairs.append({"A": layer["A"] * scale, "B": under})
    pair = _average_pair(pairs, "A", "B")
    parts = pair["B"].split([first[out].numel() // rank for out in outs])
    found = {out: part.reshape(first[out].shape) for out, part in zip(outs, parts, strict=True)}
    found["A"] = pair["A"]
    return found | ({"E": torch.ones_like(first["E"])} if "E" in first else {})


def _average_pair(layers: Sequence[Mapping[str, Tensor]], into: str, out: str) -> dict[str, Tensor]:
    """Best rank-r factors of the mean of B_l A_l, with the mean norm of the layers' A kept.

    Shapes: A (r, *in), B (*out, r).
    """
    first_a, first_b = layers[0][into], layers[0][out]
    rank = first_a.shape[0]
    products = [layer[out].reshape(-1, rank) @ layer[into].reshape(rank, -1) for layer in layers]
    product = torch.stack(products).double().mean(0)
    left, scale, right = torch.linalg.svd(product, full_matrices=False)
    root = scale[:rank].sqrt()
    a, b = root[:, None] * right[:rank], left[:, :rank] * root
    if a.shape[0] < rank:  # a matrix narrower than the rank: the missing directions are zero
        a = torch.cat([a, a.new_zeros(rank - a.shape[0], a.shape[1])])
        b = torch.cat([b, b.new_zeros(b.shape[0], rank - b.shape[1])], 1)
    wanted = torch.stack([x[into].double().norm() for x in layers]).mean()
    ratio = wanted / a.norm() if a.norm() > 0 else wanted.new_tensor(1.0)
    return {
        into: (a * ratio).to(first_a.dtype).reshape(first_a.shape),
        out: (b / ratio).to(first_b.dtype).reshape(first_b.shape),
    }
