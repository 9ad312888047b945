"""Strategy "embed": spaces are mapped by both hosts' weights alone, from the tokens that both know."""

from collections.abc import Mapping, Sequence, Set

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from portability.core.errors import UserError, validate_choice
from portability.hosts.host import Host
from portability.porting.activations import Pair, activation_of
from portability.porting.base import PortContext, yes_or_no
from portability.porting.heads import AttentionMaps, Cross, attention_maps, polar, turned
from portability.porting.maps import MapStrategy
from portability.porting.measured import attention_pairs, meets
from portability.porting.rotary import turner
from portability.porting.spaces import Space
from portability.porting.weighed import folded, has_site, shared_embeddings

OPTIONS = ("least_squares",)


class Embeddings(MapStrategy):
    """The residual stream gets the orthogonal map T = U V^T of E_o^T E_r = U S V^T, with the embeddings E of
    shared tokens; an attention's heads are matched and rotated by W_o T W_r^T; units of the feed-forward
    network are matched by the cosines of what opens them (`units`). No texts; the widths may differ.

    Options:
        least_squares: the published map lstsq(E_o, E_r) in place of T (false). Measured on hosts in a hidden
            basis, with noise of .1 to .6 standard deviations on their weights and 31 tokens for 16
            coordinates: the updates' relative errors are 1.5 to 2 times those of T (.36 and .18 at .3); with
            ten times the tokens, at .3 to 1, they are 1 to 1.2 times (.105 and .098 at .3). Both are exact
            without noise.

    Source: LoRASuite (arXiv 2505.13515): the stream, the matching of heads; the orthogonal map, one map for
        whole heads, and the units are our choice (D-133).
    """

    needs = frozenset({"origin_weights", "receiving_weights"})
    lasting = True

    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """See MapStrategy.maps.

        Raises:
            UserError: fewer shared tokens than the wider host's width.
        """
        for name in context.spec.options:
            validate_choice(str(name), OPTIONS, f"option of port '{context.spec.name}' (embed)")
        work = _Work(context, yes_or_no(context.spec, "least_squares"),
                     {attention_pairs(pair) for pair in pairs if meets(pair)})
        return {pair: work.map(pair) for pair in pairs}


class _Work:
    """Both hosts, and what was solved of them; `meeting` are the attentions whose queries or keys are asked
    for."""

    def __init__(self, context: PortContext, least_squares: bool, meeting: Set[tuple[Pair, ...]]):
        self.meeting = meeting
        self.context, self.hosts = context, (context.origin_host(), context.receiving_host())
        one, other = shared_embeddings(*self.hosts)
        if len(one) < (least := max(one.shape[1], other.shape[1])):
            raise UserError(f"port {context.pair}: their vocabularies share {len(one)} tokens, and a map of "
                            f"{least} coordinates needs at least {least}; compare them on texts instead "
                            "(procrustes)")
        self.stream = (torch.linalg.lstsq(one, other, driver="gelsd").solution if least_squares
                       else polar((one.T @ other)[None])[0][0])
        self.attentions: dict[tuple[Pair, ...], AttentionMaps] = {}
        self.networks: dict[tuple[Space, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def map(self, pair: Pair) -> Tensor:
        """T (d_o, d_r) of a pair of spaces."""
        space = pair[0]
        if space.kind == "hidden":
            return self.stream
        if space.kind == "ffn":
            key = tuple(one._replace(site="ffn_up", side="out") for one in pair)
            if key not in self.networks:
                self.networks[key] = self._network((key[0], key[1]))
            matched, ahead, back = self.networks[key]
            if space.site == "ffn_gate":
                return matched
            return matched * (ahead if space.side == "out" else back)
        places = attention_pairs(pair)
        if places not in self.attentions:
            rows = [self._rows(one) for one in places]
            self.attentions[places] = attention_maps(
                Cross(*(one @ other.T for one, other in rows)), self.context.origin.shape,
                self.context.receiving.shape, polar,
                turner(self.context, places[0], places in self.meeting, turned))
        found: Tensor = getattr(self.attentions[places], space.kind.removeprefix("cross_"))
        return found

    def _rows(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Rows of both hosts' matrices, (n_o, d_r) and (n_r, d_r), in the receiving stream's coordinates."""
        one, other = (folded(host, *space[:3]).matrix()
                      for host, space in zip(self.hosts, pair, strict=True))
        return one @ self.stream, other

    def _network(self, ups: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """`units` of a feed-forward network; their sizes are free where a gate stands beside them, or where
        the activation leaves them so."""
        gated = all(has_site(host, space.stack, space.layer, "ffn_gate")
                    for host, space in zip(self.hosts, ups, strict=True))
        opening = self._rows((ups[0]._replace(site="ffn_gate"), ups[1]._replace(site="ffn_gate"))
                             if gated else ups)
        return units(opening, self._rows(ups) if gated or all(map(scales, self.hosts)) else None)


def units(opening: tuple[Tensor, Tensor], sized: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor,
                                                                                        Tensor]:
    """How units answer to units, (n_o, n_r), at most one 1 in a row and column; and for each receiving unit
    what the origin unit's numbers are multiplied by where they are written, and where they are read, (n_r,)
    each.

    Args:
        opening: rows (n_o, d) and (n_r, d) of which the cosines are matched (Hungarian method).
        sized: rows u and w of the same units that give the sizes, with their signs: (u . w) / |u|^2 is
            written and (u . w) / |w|^2 read, each by least squares, so that neither grows without bound;
            where w = c u these are c and 1 / c. None: all are 1.
    """
    cosine = normalize(opening[0]) @ normalize(opening[1]).T
    rows, columns = (torch.as_tensor(one) for one in linear_sum_assignment(cosine.numpy(), maximize=True))
    matched, ahead, back = torch.zeros_like(cosine), *torch.ones(2, cosine.shape[1], dtype=cosine.dtype)
    matched[rows, columns] = 1
    if sized is not None:
        one, other = sized[0][rows], sized[1][columns]
        inner = (one * other).sum(1)
        ahead[columns] = inner / one.square().sum(1).clamp_min(1e-300)
        back[columns] = inner / other.square().sum(1).clamp_min(1e-300)
    return matched, ahead, back


def scales(host: Host) -> bool:
    """Whether a host's activation takes twice the number to twice the number, as a ReLU does."""
    activation, points = activation_of(host), torch.linspace(-2, 2, 9)
    return torch.allclose(activation(2 * points), 2 * activation(points), atol=1e-6)


EMBED = Embeddings()
