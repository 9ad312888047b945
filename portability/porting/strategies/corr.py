"""Strategy "corr": each unit is sent to the unit of the other host with which it goes up and down."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from portability.core.errors import validate_choice
from portability.porting.activations import Moments, Pair
from portability.porting.base import PortContext, yes_or_no
from portability.porting.heads import flipped, signed_permutations
from portability.porting.maps import MapStrategy
from portability.porting.measured import by_moments

OPTIONS = ("signed",)


class Correlation(MapStrategy):
    """T is the signed permutation with the largest sum of |Pearson's correlation| over aligned tokens
    (Hungarian method), each space by itself; units that are left over of either width are sent nowhere.

    Options:
        signed: match on the correlation itself and flip nothing, as published (false).

    Source: Klimaszewski et al. (2024), arXiv 2403.18804, section 3, whose correlation is signed and who use
        the input's permutation for what a LoRA writes, too; absolute values, and each space by itself, are
        our choice (D-133).
    """

    needs = frozenset({"origin_weights", "receiving_weights", "text", "forward_passes"})
    lasting = True
    by_layer = True
    by_unit = True

    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """See MapStrategy.maps."""
        for name in context.spec.options:
            validate_choice(str(name), OPTIONS, f"option of port '{context.spec.name}' (corr)")
        signed = yes_or_no(context.spec, "signed")

        def read(found: Moments) -> Tensor:
            return found.correlation.clamp_min(0) if signed else found.correlation

        return by_moments(context, pairs, read, signed_permutations, flipped, alike=False)


CORR = Correlation()
