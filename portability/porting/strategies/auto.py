"""Strategy "auto": one of the others, chosen by what can be seen of the two hosts before any work."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.methods.module import ModuleState
from portability.porting.base import LOOKED_AT, Port, PortContext, Strategy
from portability.porting.basis import Basis, basis
from portability.porting.spaces import runs
from portability.porting.transport import BY_UNIT


class Choice(NamedTuple):
    """A strategy, and why it."""

    strategy: str
    why: str


def choice(origin: HostSpec, receiving: HostSpec, found: Basis | None, texts: bool,
           module: Callable[[], ModuleState] | None = None) -> Choice:
    """Which strategy for such a pair.

    In the same coordinates nothing is mapped: no map was ahead of copying there. In others the spaces are
    rotated onto each other: by texts where there are some, else by the embeddings of shared tokens. Numbers
    that belong to one unit each (DoRA, IA3, LoHa, normalisations) cannot be rotated: by texts units are sent
    to units. Nothing is cut off or padded in any of these cases, but `corr` leaves out units of which one
    host has more.

    Args:
        texts: whether there are texts to calibrate on.
        module: gives the module, asked for where its numbers have to be mapped; None: any map carries it.

    Raises:
        UserError: no map carries the module, or only one that asks for texts.

    Source: our choice (D-133), on prototypes with real hosts; what the studies say of it is in D-150.
    """
    alike = same_widths(origin, receiving)
    if alike and found is None:
        return Choice("pad", "the hosts have the same widths; their coordinates could not be compared and "
                             "are taken to be the same, and where they are not, copying does harm")
    if alike and found is not None and found.inherited:
        return Choice("pad", "the hosts have the same widths and write in the same coordinates")
    why = "the hosts write in other coordinates" if alike else "the hosts' widths differ"
    port = f"auto from '{origin.name}' to '{receiving.name}': {why}"
    unit = module and _of_one_unit(module(), port)
    if unit and not texts:
        raise UserError(f"{port}, and the numbers of {unit.key} belong to one unit each, which corr "
                        "alone carries there: name texts (--calibrate FILE; in a study "
                        "port.NAME.calibration={texts: SET}), or turn the module into a LoRA first where "
                        "that can be done (--via lora)")
    if unit:
        left = "" if alike else "; units without a counterpart are left out"
        return Choice("corr", f"{why}, there are texts to compare them on, and the module has numbers that "
                              f"belong to one unit each{left}")
    if texts:
        return Choice("procrustes", f"{why}, and there are texts to compare them on")
    return Choice("embed", f"{why}, and there are no texts to compare them on (--calibrate FILE)")


def same_widths(origin: HostSpec, receiving: HostSpec) -> bool:
    """Whether all that a module's numbers are written along is of one size in both hosts."""
    return all(getattr(origin.shape, axis) == getattr(receiving.shape, axis)
               for axis in ("hidden", "ffn", "kv_heads", "group", "head_dim"))


def _of_one_unit(module: ModuleState, port: str) -> Slot | None:
    """The first slot whose numbers belong to one unit each, or None.

    Raises:
        UserError: a slot of which no map is defined.
    """
    found = []
    for slot, axes in module.axes.items():
        try:
            spaces = [run.space for run in runs(slot, axes)]
        except UserError as error:
            raise UserError(f"{port}, and {slot.key} cannot be mapped: {error}") from error
        if slot.role.startswith(BY_UNIT) and any(space.kind != "vocab" for space in spaces):
            found.append(slot)
    return found[0] if found else None


class Auto(Strategy):
    """Fits by the strategy that `choice` names."""

    needs = frozenset({"origin_weights", "receiving_weights", "text", "forward_passes"})
    optional = frozenset({"text"})

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See Strategy.fit; the report's notes say what was chosen, and why."""
        found, strategy, inner = self._chosen(context, lambda: module)
        done = strategy.fit(module, inner)
        done.report.notes.append(f"auto chose {found.strategy}: {found.why}")
        return done

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The head, as if any map carried the module: hosts without one begin with the same head."""
        _, strategy, inner = self._chosen(context)
        return strategy.fit_head(head, inner)

    def _chosen(self, context: PortContext, module: Callable[[], ModuleState] | None = None
                ) -> tuple[Choice, Strategy, PortContext]:
        from portability.porting.strategies import find_strategy

        found = choice(context.origin, context.receiving, basis(context.origin, context.receiving),
                       context.texts is not None, module)
        strategy = find_strategy(found.strategy)
        return found, strategy, replace(context, needs=strategy.needs | LOOKED_AT)


AUTO = Auto()
