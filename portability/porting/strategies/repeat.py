"""Strategy "repeat": widths are cut, or repeated so that a host of repeated units computes the same
(Net2WiderNet)."""

import torch
from torch import Tensor

from portability.porting.axes import AxisStrategy


def repeat_axis(tensor: Tensor, axis: int, size: int, summed: bool) -> Tensor:
    """Cut an axis of a tensor of any shape at `size`, or repeat it from its start; along a summed axis each
    entry is divided by how often it stands there, so a host whose units are repeated alike computes the same.

    Source: Net2WiderNet (Chen et al. 2016, arXiv 1511.05641, section 2.2).

    Example:
        >>> repeat_axis(torch.tensor([1.0, 2.0]), 0, 3, True).tolist()
        [0.5, 2.0, 0.5]
    """
    width = tensor.shape[axis]
    if size <= width:
        return tensor.narrow(axis, 0, size)
    picks = torch.arange(size) % width
    repeated = tensor.index_select(axis, picks)
    if not summed:
        return repeated
    counts = torch.bincount(picks, minlength=width)[picks].to(tensor.dtype)
    return repeated / counts.view([-1 if i == axis else 1 for i in range(tensor.ndim)])


REPEAT = AxisStrategy(repeat_axis, grown="repeated")
