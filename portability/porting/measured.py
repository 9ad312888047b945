"""Maps of spaces from what both hosts make of the same texts."""

from collections.abc import Callable, Sequence

from torch import Tensor

from portability.porting.activations import Moments, Pair, moments
from portability.porting.base import PortContext
from portability.porting.heads import AttentionMaps, Cross, Solver, attention_maps
from portability.porting.rotary import turner

HEADS = ("query", "key", "value", "mixed")


def by_moments(context: PortContext, pairs: Sequence[Pair], read: Callable[[Moments], Tensor], solve: Solver,
               turn: Solver, alike: bool = True,
               whole: Callable[[Moments], Tensor] | None = None) -> dict[Pair, Tensor]:
    """The map (d_o, d_r) of each pair of spaces.

    Args:
        read: what of the moments is solved, (d_o, d_r).
        solve: of whole spaces, and of heads that may be mixed freely.
        turn: of heads that turn with their position.
        alike: whether what comes out of a feed-forward network's first matrix gets the map of what goes into
            its last one: before the activation its coordinates do not fill the space. A gate's is from what
            its activation gives.
        whole: gives the map of a whole space in place of `solve`; moments then have the origin's `gram`.

    Raises:
        UserError: as `moments` and `turner`.
    """
    own = {pair: read_at(pair, alike) for pair in pairs}
    found = moments(context.origin_host(), context.receiving_host(),
                    [one for many in own.values() for one in many], context.calibration(), whole is not None)
    meeting = {places for pair, places in own.items() if meets(pair)}
    solved: dict[tuple[Pair, ...], Tensor | AttentionMaps] = {}
    for places in dict.fromkeys(own.values()):
        own_moments = [found.pop(one) for one in places]  # freed before the next ones are solved
        if whole and len(places) == 1:
            solved[places] = whole(own_moments[0])
            continue
        cross = [read(one) for one in own_moments]
        solved[places] = solve(cross[0][None])[0][0] if len(places) == 1 else attention_maps(
            Cross(*cross), context.origin.shape, context.receiving.shape, solve,
            turner(context, places[0], places in meeting, turn))
    maps = {}
    for pair, places in own.items():
        one = solved[places]
        maps[pair] = getattr(one, pair[0].kind.removeprefix("cross_")) if isinstance(one,
                                                                                     AttentionMaps) else one
    return maps


def meets(pair: Pair) -> bool:
    """Whether it is of queries or keys."""
    return pair[0].kind.endswith(("query", "key"))


def read_at(pair: Pair, alike: bool = True) -> tuple[Pair, ...]:
    """The pairs of spaces whose moments say what the map of a pair is: itself, or queries, keys and values of
    its attention."""
    kind = pair[0].kind
    if kind == "ffn" and alike and pair[0].site != "ffn_gate":
        one, other = (space._replace(site="ffn_down", side="in") for space in pair)
        return ((one, other),)
    return attention_pairs(pair) or (pair,)


def attention_pairs(pair: Pair) -> tuple[Pair, ...]:
    """Queries, keys and values of the attention that a pair of spaces belongs to; nothing of another one."""
    kind = pair[0].kind
    if (base := kind.removeprefix("cross_")) not in HEADS:
        return ()
    cross = kind.removesuffix(base)
    spaces = [[space._replace(site=f"{cross}{site}", side="out") for site in ("query", "key", "value")]
              for space in pair]
    return tuple(zip(*spaces, strict=True))
