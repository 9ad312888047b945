"""Strategy "auto": one of the others, chosen by what can be seen of the two hosts before any work."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from portability.core.specs import HostSpec
from portability.methods.module import ModuleState
from portability.porting.base import LOOKED_AT, Port, PortContext, Strategy
from portability.porting.basis import Basis, basis


class Choice(NamedTuple):
    """A strategy, and why it."""

    strategy: str
    why: str


def choice(origin: HostSpec, receiving: HostSpec, found: Basis | None, texts: bool) -> Choice:
    """Which strategy for such a pair.

    In the same coordinates nothing is mapped: copying was unbeaten there. In others the spaces are rotated
    onto each other: by texts where there are some, else by the embeddings of shared tokens. Nothing is cut
    off or padded in either case.

    Args:
        texts: whether there are texts to calibrate on.

    Source: our choice (D-133), on prototypes with real hosts; docs/porting.md has the rule.
    """
    one, other = origin.shape, receiving.shape
    sizes = [(getattr(one, axis) == getattr(other, axis)) for axis in ("hidden", "ffn", "kv_heads", "group",
                                                                        "head_dim")]
    if all(sizes) and (found is None or found.inherited):
        why = "the hosts have the same widths" + (
            ", and whether they have the same coordinates could not be looked up" if found is None
            else " and write in the same coordinates")
        return Choice("pad", why)
    why = "the hosts' widths differ" if not all(sizes) else "the hosts write in other coordinates"
    if texts:
        return Choice("procrustes", f"{why}, and there are texts to compare them on")
    return Choice("embed", f"{why}, and there are no texts to compare them on (--calibrate FILE)")


class Auto(Strategy):
    """Fits by the strategy that `choice` names."""

    needs = frozenset({"origin_weights", "receiving_weights", "text", "forward_passes"})
    optional = frozenset({"text"})

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See Strategy.fit; the report's notes say what was chosen, and why."""
        found, strategy, inner = self._chosen(context)
        done = strategy.fit(module, inner)
        done.report.notes.append(f"auto chose {found.strategy}: {found.why}")
        return done

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The head, by the strategy that fits the module."""
        _, strategy, inner = self._chosen(context)
        return strategy.fit_head(head, inner)

    def _chosen(self, context: PortContext) -> tuple[Choice, Strategy, PortContext]:
        from portability.porting.strategies import find_strategy

        found = choice(context.origin, context.receiving, basis(context.origin, context.receiving),
                       context.texts is not None)
        strategy = find_strategy(found.strategy)
        return found, strategy, replace(context, needs=strategy.needs | LOOKED_AT)


AUTO = Auto()
