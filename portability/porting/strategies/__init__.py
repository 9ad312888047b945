"""The strategies by name: ours, one file each, and those of installed packages (entry points of GROUP)."""

from typing import get_args

from portability.core.errors import UserError, validate_choice
from portability.core.plugins import load, plugins
from portability.porting.base import Need, Strategy
from portability.porting.strategies.auto import AUTO
from portability.porting.strategies.copy import COPY
from portability.porting.strategies.corr import CORR
from portability.porting.strategies.distill import DISTILL
from portability.porting.strategies.embed import EMBED
from portability.porting.strategies.gradmask import GRADMASK
from portability.porting.strategies.pad import PAD
from portability.porting.strategies.procrustes import PROCRUSTES
from portability.porting.strategies.random import RANDOM
from portability.porting.strategies.rebasin import REBASIN
from portability.porting.strategies.repeat import REPEAT
from portability.porting.strategies.svd_subspace import SVD_SUBSPACE
from portability.porting.strategies.warm import WARM

GROUP = "portability.strategies"
STRATEGIES: dict[str, Strategy] = {
    "auto": AUTO, "copy": COPY, "pad": PAD, "repeat": REPEAT, "procrustes": PROCRUSTES, "corr": CORR,
    "embed": EMBED, "rebasin": REBASIN, "svd_subspace": SVD_SUBSPACE, "random": RANDOM,
    "gradmask": GRADMASK, "warm": WARM, "distill": DISTILL,
}


def find_strategy(name: str) -> Strategy:
    """The strategy of a name, as `port.NAME.strategy` has it.

    Raises:
        UserError: unknown name, or a package's entry point that is no Strategy or declares unknown needs.
    """
    outside = plugins(GROUP, tuple(STRATEGIES))
    if validate_choice(name, {*STRATEGIES, *outside}, "port strategy") in STRATEGIES:
        return STRATEGIES[name]
    found = load(outside[name])
    strategy = found() if isinstance(found, type) else found
    if not isinstance(strategy, Strategy):
        raise UserError(f"port strategy '{name}' ({outside[name].value}) is no "
                        "portability.porting.base.Strategy")
    for need in strategy.needs:
        validate_choice(need, get_args(Need), f"need of port strategy '{name}'")
    return strategy
