"""What a porting strategy is, what it may use, and what it gives back."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import HostSpec, PortSpec
from portability.hosts.host import Host
from portability.methods.module import ModuleState

Need = Literal["origin_weights", "receiving_weights", "text", "labels", "forward_passes", "training"]


def _no_host(spec: HostSpec) -> Host:
    raise UserError(f"the weights of host '{spec.name}' are not available here")


@dataclass(frozen=True)
class PortContext:
    """What a strategy may use.

    Attributes:
        fresh: a module of the same method on the receiving host, as its library initialises it.
        load: gives a host as it is on disk, without a method; called when a strategy asks for it.
        needs: what the strategy declared; asking for anything else is an error.
    """

    origin: HostSpec
    receiving: HostSpec
    fresh: ModuleState
    spec: PortSpec
    load: Callable[[HostSpec], Host] = _no_host
    needs: frozenset[Need] = frozenset()

    @property
    def pair(self) -> str:
        """Both hosts' names, for messages."""
        return f"from '{self.origin.name}' to '{self.receiving.name}'"

    def origin_host(self) -> Host:
        """The host that the module was trained on, loaded.

        Raises:
            UserError: the strategy does not declare "origin_weights".
        """
        return self._host(self.origin, "origin_weights")

    def receiving_host(self) -> Host:
        """The host that the module is fitted to, loaded.

        Raises:
            UserError: the strategy does not declare "receiving_weights".
        """
        return self._host(self.receiving, "receiving_weights")

    def _host(self, spec: HostSpec, need: Need) -> Host:
        if need not in self.needs:
            raise UserError(f"port strategy '{self.spec.strategy}' uses {need}, which it does not declare "
                            "(Strategy.needs)")
        return self.load(spec)


@dataclass
class PortReport:
    """What a port did. Fractions are of the origin module (carried) or of the receiving one (filled), in [0,
    1].

    `tensors` maps each receiving slot to its action (carried, mapped, cut, padded, repeated, averaged, fresh)
    and each unused origin slot to "dropped"; `layer_map` gives the origin layers behind each receiving layer.
    """

    name: str
    strategy: str
    layer_map: dict[str, list[list[int]]] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    carried_fraction: float = 0.0  # by number of tensors
    carried_entries_fraction: float = 0.0  # by number of parameters
    carried_norm_fraction: float = 0.0  # by squared norm
    filled_fraction: float = 0.0  # receiving parameters that hold something of the origin
    seconds: float = 0.0
    calibration_examples: int = 0
    effect_fraction: float | None = None  # logit change of a start scaled to the port's, over the port's

    def summary(self) -> dict[str, Any]:
        """The report for a run's record: everything but the list of tensors, which becomes counts."""
        values = {key: value for key, value in vars(self).items() if key != "tensors"}
        return {**values, "actions": dict(sorted(Counter(self.tensors.values()).items()))}


@dataclass
class Port:
    """A ported module, where in it something was carried (bool tensors of the slots' shapes), and the
    report."""

    module: ModuleState
    carried: dict[Slot, Tensor]
    report: PortReport


class Strategy(ABC):
    """Fits a module trained on one host to another one.

    Attributes:
        needs: what it uses besides the two modules and the hosts' shapes. Weights and texts are handed out
            only where they are declared; "forward_passes" and "training" say what a port costs.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """A module with the slots, axes and shapes of ``context.fresh``; `module` stays as it is.

        Raises:
            UserError: the two hosts do not allow it; names both, the slot and the shapes.
        """

    def fit_head(self, head: Mapping[str, Tensor], hidden: int) -> dict[str, Tensor]:
        """The origin's classification head ("head.weight" (C, d_o), "head.bias" (C,)) in width `hidden`.

        Raises:
            UserError: the widths differ, and the strategy has no rule for it.
        """
        if (width := head["head.weight"].shape[1]) != hidden:
            raise UserError(f"{type(self).__name__} has no rule that fits a head of width {width} to width "
                            f"{hidden}; use head=fresh")
        return {name: tensor.clone() for name, tensor in head.items()}
