"""Strategy "copy": same shapes only."""

from torch import Tensor

from portability.core.errors import UserError
from portability.porting.axes import AxisStrategy


def refuse_axis(tensor: Tensor, axis: int, size: int, summed: bool) -> Tensor:
    """No axis may differ.

    Raises:
        UserError: always; it is called for sizes that differ.
    """
    raise UserError("strategy 'copy' needs equal shapes: use pad or repeat (--strategy pad, or "
                    "'grid.ports=[pad]')")


COPY = AxisStrategy(refuse_axis, grown="", same_depth=True)
