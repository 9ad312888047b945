"""Strategy "pad": widths are cut, or filled up with zeros (our choice, D-05)."""

import torch
from torch import Tensor

from portability.porting.axes import AxisStrategy


def pad_axis(tensor: Tensor, axis: int, size: int, summed: bool) -> Tensor:
    """Cut an axis of a tensor of any shape at `size`, or fill it up with zeros. `summed` changes nothing
    here.

    Example:
        >>> pad_axis(torch.tensor([1.0, 2.0]), 0, 3, True).tolist()
        [1.0, 2.0, 0.0]
    """
    if size <= tensor.shape[axis]:
        return tensor.narrow(axis, 0, size)
    shape = list(tensor.shape)
    shape[axis] = size - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


PAD = AxisStrategy(pad_axis, grown="padded")
