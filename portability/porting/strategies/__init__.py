"""The strategies by name: ours, and those of installed packages (entry points of GROUP)."""

from typing import get_args

import torch
from torch import Tensor

from portability.core.errors import UserError, choose
from portability.core.plugins import load, plugins
from portability.porting.axes import AxisStrategy
from portability.porting.base import Need, Strategy

GROUP = "portability.strategies"


def refuse_axis(tensor: Tensor, axis: int, size: int, summed: bool) -> Tensor:
    """No axis may differ.

    Raises:
        UserError: always; it is called for sizes that differ.
    """
    raise UserError("strategy 'copy' needs equal shapes: use port=pad or port=repeat")


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


COPY = AxisStrategy(refuse_axis, grown="", same_depth=True)  # same shapes only
PAD = AxisStrategy(pad_axis, grown="padded")  # widths are cut, or filled up with zeros (our choice, D-05)
REPEAT = AxisStrategy(repeat_axis, grown="repeated")
STRATEGIES: dict[str, Strategy] = {"copy": COPY, "pad": PAD, "repeat": REPEAT}


def find_strategy(name: str) -> Strategy:
    """The strategy of a name, as `port.NAME.strategy` has it.

    Raises:
        UserError: unknown name, or a package's entry point that is no Strategy or declares unknown needs.
    """
    outside = plugins(GROUP, tuple(STRATEGIES))
    if choose(name, {*STRATEGIES, *outside}, "port strategy") in STRATEGIES:
        return STRATEGIES[name]
    found = load(outside[name])
    strategy = found() if isinstance(found, type) else found
    if not isinstance(strategy, Strategy):
        raise UserError(f"port strategy '{name}' ({outside[name].value}) is no "
                        "portability.porting.base.Strategy")
    for need in strategy.needs:
        choose(need, get_args(Need), f"need of port strategy '{name}'")
    return strategy
