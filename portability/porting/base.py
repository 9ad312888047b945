"""What a porting strategy is, what it may use, and what it gives back."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import AnswerSpec, HostSpec, MethodSpec, PortSpec, TaskSpec
from portability.core.wording import spans
from portability.data.examples import LabelledText
from portability.hosts.host import Host
from portability.methods.module import ModuleState
from portability.porting.calibration import Calibration
from portability.porting.layer_maps import SUM, named_layers

Need = Literal["origin_weights", "receiving_weights", "text", "labels", "forward_passes", "training"]
ORIGIN = " (origin)"  # ending of an origin slot's key in a report
LOOKED_AT: frozenset[Need] = frozenset({"origin_weights", "receiving_weights"})  # by layer map "cka"


def _no_host(spec: HostSpec) -> Host:
    raise UserError(f"the weights of host '{spec.name}' are not available here")


def no_options(spec: PortSpec) -> None:
    """Refuse options of a strategy that has none.

    Raises:
        UserError: names the first.
    """
    for name in spec.options:
        raise UserError(f"port '{spec.name}' ({spec.strategy}) has no options, got '{name}'")


def no_texts(spec: PortSpec, pair: str) -> UserError:
    """Says that a strategy reads texts, and that none are named."""
    return UserError(f"port strategy '{spec.strategy}' {pair} compares what both hosts make of texts, and "
                     "none are named: name some (--calibrate FILE; in a study "
                     f"'port.{spec.name}.calibration={{texts: SET}}', or a file)")


def yes_or_no(spec: PortSpec, name: str) -> bool:
    """An option that is true or false; false where it is not given.

    Raises:
        UserError: it is something else.
    """
    value = spec.options.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"port.{spec.name}.options.{name} must be true or false, got {value!r}")
    return value


@dataclass(frozen=True)
class Purpose:
    """What a module is ported for, for strategies that look at the task.

    Attributes:
        methods: of the module on the origin, and on the receiving host.
        labelled: gives labelled examples of the receiving host's task; None where there are none.
        heads: give the classification heads of origin and receiving host, where these answer by one; None
            where there are none.
    """

    task: TaskSpec | AnswerSpec
    methods: tuple[MethodSpec, MethodSpec]
    labelled: Callable[[], Sequence[LabelledText]] | None = None
    heads: tuple[Callable[[], Mapping[str, Tensor]], Callable[[], Mapping[str, Tensor]]] | None = None


@dataclass(frozen=True)
class PortContext:
    """What a strategy may use.

    Attributes:
        fresh: a module of the same method on the receiving host, as its library initialises it.
        load: gives a host as it is on disk, without a method; called when a strategy asks for it.
        texts: gives the texts that hosts are compared on.
        seed: of what a strategy draws.
        needs: what the strategy declared; asking for anything else is an error.
        purpose: what the module is for, where that is known.
    """

    origin: HostSpec
    receiving: HostSpec
    fresh: ModuleState
    spec: PortSpec
    load: Callable[[HostSpec], Host] = _no_host
    texts: Callable[[], Calibration] | None = None
    seed: int = 0
    needs: frozenset[Need] = frozenset()
    purpose: Purpose | None = None

    def layers_of(self, stack: str, source: str) -> list[list[int]]:
        """The origin layers of `source` behind each layer of the receiving stack.

        Raises:
            UserError: an unknown layer map, or one that does not fit the hosts' depths.
        """
        if stack == "shared":  # what stands outside the layers
            return [[0]]
        depths = self.origin.shape.layers.get(source, 1), self.receiving.shape.layers.get(stack, 1)
        if self.spec.layer_map == "cka" and max(depths) > 1:
            from portability.porting.layer_similarity import cka_layers

            return cka_layers(self, stack, source)
        return named_layers(self.spec.layer_map, *depths)

    @property
    def sums(self) -> bool:
        """Whether layers that become one are added up, not averaged."""
        return self.spec.layer_map == SUM

    def calibration(self) -> Calibration:
        """The texts that hosts are compared on.

        Raises:
            UserError: the strategy does not declare "text", or none are named.
        """
        self._check_declared("text")
        if self.texts is None:
            raise no_texts(self.spec, self.pair)
        return self.texts()

    def for_task(self) -> Purpose:
        """What the module is for.

        Raises:
            UserError: the strategy declares neither "labels" nor "training", or it is not known.
        """
        if "training" not in self.needs:
            self._check_declared("labels")
        if self.purpose is None:
            raise UserError(f"port strategy '{self.spec.strategy}' {self.pair} looks at a task, and none is "
                            "given: name it (portability.port_adapter(task=...))")
        return self.purpose

    def labelled(self) -> Sequence[LabelledText]:
        """Labelled examples of the receiving host's task.

        Raises:
            UserError: the strategy does not declare "labels", or there are none.
        """
        self._check_declared("labels")
        if (given := self.for_task().labelled) is None:
            raise UserError(f"port strategy '{self.spec.strategy}' {self.pair} learns from labelled "
                            "examples, and none are named: name some (--labels FILE)")
        return given()

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
        self._check_declared(need)
        return self.load(spec)

    def _check_declared(self, need: Need) -> None:
        if need not in self.needs:
            raise UserError(f"port strategy '{self.spec.strategy}' uses {need}, which it does not declare "
                            "(Strategy.needs)")


@dataclass
class PortReport:
    """What a port did. Fractions are of the origin module (carried) or of the receiving one (filled), in [0,
    1].

    `tensors` maps each receiving slot to its action (carried, mapped, transported, cut, padded, repeated,
    averaged, drawn, fresh) and each unused origin slot to "dropped"; `layer_map` gives the origin layers
    behind each receiving layer.
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
    calibration_tokens: int = 0
    updates: int = 0  # of the module on the receiving host, beyond those that a study counts
    notes: list[str] = field(default_factory=list)  # what else a reader of the numbers should know
    effect_fraction: float | None = None  # logit change of a start scaled to the port's, over the port's

    def summary(self) -> dict[str, Any]:
        """The report for a run's record: everything but the list of tensors, which becomes counts, and
        `left`, where something is."""
        values = {key: value for key, value in vars(self).items() if key != "tensors"}
        values["actions"] = dict(sorted(Counter(self.tensors.values()).items()))
        return values | ({"left": left} if (left := self.left()) else {})

    def left(self) -> dict[str, list[str]]:
        """Sites of the origin's tensors that were dropped, and of the receiving module's that stay fresh, by
        action.

        Example:
            >>> keys = [f"decoder.{layer}.{site}.A" for layer in (0, 1, 3) for site in ("key", "value")]
            >>> PortReport("pad", "pad", tensors={f"{key}{ORIGIN}": "dropped" for key in keys}).left()
            {'dropped': ['decoder layers 0-1, 3: key, value']}
        """
        layers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for key, action in self.tensors.items():
            if action in ("dropped", "fresh"):
                stack, layer, site, _ = Slot.parse(key.removesuffix(ORIGIN))
                layers[action, stack, site].append(layer)
        sites: dict[tuple[str, str], list[str]] = defaultdict(list)
        for (action, stack, site), found in layers.items():
            many = "s" if len(set(found)) > 1 else ""
            place = "" if stack == "shared" else f"{stack} layer{many} {spans(found)}: "
            sites[action, place].append(site)
        left: dict[str, list[str]] = {}
        for (action, place), named in sites.items():
            left.setdefault(action, []).append(f"{place}{', '.join(named)}")
        return left


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
        optional: what of these it does without where there is none.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    optional: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """A module with the slots, axes and shapes of ``context.fresh``; `module` stays as it is.

        Raises:
            UserError: the two hosts do not allow it; names both, the slot and the shapes.
        """

    def fit_head(self, head: Mapping[str, Tensor], context: PortContext) -> dict[str, Tensor]:
        """The origin's classification head ("head.weight" (C, d_o), "head.bias" (C,)) for the receiving host.

        Raises:
            UserError: the widths differ, and the strategy has no rule for it.
        """
        hidden = context.receiving.shape.hidden
        if (width := head["head.weight"].shape[1]) != hidden:
            raise UserError(f"{type(self).__name__} has no rule that fits a head of width {width} to width "
                            f"{hidden}; use head=fresh")
        return {name: tensor.clone() for name, tensor in head.items()}
