"""Strategy "procrustes": each space is rotated onto the other host's, by what both make of the same texts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from portability.core.errors import UserError, validate_choice
from portability.porting.activations import Moments, Pair
from portability.porting.base import PortContext, yes_or_no
from portability.porting.heads import polar, turned
from portability.porting.maps import MapStrategy
from portability.porting.measured import by_moments

OPTIONS = ("centred", "ridge")


class Procrustes(MapStrategy):
    """T = U V^T of the cross-moments X_o^T X_r = U S V^T of aligned tokens, in float64 and uncentred; the
    widths may differ. Heads are sent to heads (`heads.attention_maps`).

    Options:
        centred: take the means out first (false).
        ridge: take the least-squares map of whole spaces instead, with this share of the mean square of the
            origin's coordinates added to each square (none); heads keep their rotations.

    Source: Theseus (arXiv 2602.12952): maps of inputs and outputs from activations. Folding of RMSNorms'
        gains, heads and rotary pairs are our choice (D-133).
    """

    needs = frozenset({"origin_weights", "receiving_weights", "text", "forward_passes"})
    lasting = True
    by_layer = True

    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """See MapStrategy.maps."""
        options = context.spec.options
        for name in options:
            validate_choice(str(name), OPTIONS, f"option of port '{context.spec.name}' (procrustes)")
        centred, ridge = yes_or_no(context.spec, "centred"), options.get("ridge")
        if ridge is not None and not (type(ridge) in (int, float) and 0 < ridge < float("inf")):
            raise UserError(f"port.{context.spec.name}.options.ridge must be a number above 0, got {ridge!r}")

        def read(found: Moments) -> Tensor:
            return found.centred if centred else found.cross

        def whole(found: Moments) -> Tensor:
            least = found.gram.diagonal().mean() * (ridge or 0.0)
            return torch.linalg.solve(found.gram + least * torch.eye(len(found.gram)).double(), found.cross)

        return by_moments(context, pairs, read, polar, turned, whole=None if ridge is None else whole)


PROCRUSTES = Procrustes()
