"""From a grid to cells and runs. Work that is equal has one id, so it is planned, and paid for, once. No
torch here."""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeVar

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import (
    BARE,
    EXTRACTION,
    AnswerSpec,
    Cell,
    DataSpec,
    EvalSpec,
    HostSpec,
    InitSpec,
    MethodSpec,
    PortSpec,
    RunSpec,
    TaskSpec,
    TrainSpec,
    digest,
)

T = TypeVar("T")
SCRATCH = InitSpec("scratch", "scratch")
BARE_INIT = InitSpec(BARE, BARE)
OTHER_SEEDS = 1_000_000  # added to a receiving run's seed for an origin's own one
SELF, NEXT = "self", "next"  # of a relation: the receiving set itself, and the one that follows in grid.data


@dataclass(frozen=True)
class Grid:
    """The question: every combination of these axes is a cell.

    `data` are the sets the receiving module is trained and evaluated on; `relations` maps a relation's name
    to the set the origin is trained on, by the name of the receiving set; `budgets` are optimiser updates on
    the receiving host (zero-shot comes on top); `head` is "shared" or "fresh" and concerns hosts with a
    classification head only; `task` is that of sets of texts with labels, `answers` has those of sets of
    prompts, by the set's name. `rates` are factors on each method's learning rate on the receiving host, each
    a method of its own ("lora x3"); origins and natives keep the common rate. With `origin_seeds` "other" an
    origin has a seed of its own, so a receiving run does not see its origin's batches again.
    """

    methods: Sequence[MethodSpec]
    pairs: Sequence[tuple[HostSpec, HostSpec]]  # (origin, receiving), in that order
    relations: Mapping[str, Mapping[str, DataSpec]]
    data: Sequence[DataSpec]
    inits: Sequence[InitSpec]
    ports: Sequence[PortSpec]
    seeds: Sequence[int]
    budgets: Sequence[int]
    origin_updates: int
    task: TaskSpec
    train: TrainSpec
    eval: EvalSpec
    precision: str
    head: str
    answers: Mapping[str, AnswerSpec] = field(default_factory=dict)
    rates: Sequence[float] = (1.0,)
    origin_seeds: str = "same"

    def task_of(self, data: DataSpec) -> TaskSpec | AnswerSpec:
        """How a set's texts or prompts are asked and scored."""
        return self.answers.get(data.name, self.task)

    @property
    def size(self) -> int:
        """Number of cells: the product of the axes, zero-shot and bare hosts not counted."""
        axes = (self.methods, self.rates, self.pairs, self.data, self.relations, self.inits, self.ports,
                self.seeds, self.budgets)
        return math.prod(map(len, axes))


def origins(relation: str, value: str, received: Sequence[str]) -> dict[str, str]:
    """By receiving set, the set that its origin is trained on: the one named, or `self`, or the `next`
    receiving set.

    Raises:
        UserError: there is no next one.

    Example:
        >>> origins("different", "next", ["sums", "quiz"])
        {'sums': 'quiz', 'quiz': 'sums'}
    """
    if value == NEXT and len(received) < 2:
        raise UserError(f"grid.relations.{relation} is '{NEXT}', the receiving set that follows in "
                        "grid.data, which names one set only; name another set there, or a set here, or "
                        f"leave it out: '~grid.relations.{relation}'")
    following = dict(zip(received, [*received[1:], received[0]], strict=True))
    return {name: {SELF: name, NEXT: following[name]}.get(value, value) for name in received}


def check_relations(relations: Mapping[str, Mapping[str, str]], received: Sequence[str]) -> None:
    """Refuse two relations that are one: seed examples would be compared with themselves.

    Args:
        relations: what `origins` gives, by relation.

    Raises:
        UserError: two of them name one set for a receiving set.
    """
    for own in received:
        sources = [given[own] for given in relations.values()]
        if len(set(sources)) < len(sources):
            raise UserError(f"grid.relations takes the seed examples of '{own}' twice from the same set "
                            f"({', '.join(f'{name}: {given[own]}' for name, given in relations.items())}); "
                            "name different ones")


@dataclass
class Plan:
    """Cells, the distinct runs behind them, and the marks at which each run is to be evaluated."""

    cells: list[Cell] = field(default_factory=list)
    runs: dict[str, RunSpec] = field(default_factory=dict)
    marks: dict[str, set[int]] = field(default_factory=dict)

    def add(self, run: RunSpec, *marks: int) -> str:
        """Plan a run (once) with these marks, and give back its id."""
        run_id = run.run_id
        self.runs.setdefault(run_id, run)
        self.marks.setdefault(run_id, set()).update(marks)
        return run_id

    def part(self, ids: Set[str]) -> "Plan":
        """These runs alone, with the cells that read them."""
        runs = {run_id: run for run_id, run in self.runs.items() if run_id in ids}
        cells = [cell for cell in self.cells if cell.run_id in ids]
        return Plan(cells, runs, {run_id: self.marks[run_id] for run_id in runs})


def plan(grid: Grid) -> Plan:
    """Expand a grid; runs come in an order in which each follows the run it starts from.

    A scratch run has no origin, so all origins share it, and an origin training is a scratch run on its host;
    budgets nest, so one run of the largest budget yields the cells of all of them.
    """
    out = Plan()
    axes = product(grid.methods, grid.rates, grid.pairs, grid.data, grid.relations.items(), grid.seeds)
    for method, rate, pair, data, (relation, sources), seed in axes:
        arm = _Arm(grid, method, rate, *pair, data, relation, sources[data.name], seed)
        out.cells.extend(arm.cells(out))

    def depth(run: RunSpec) -> int:
        return 0 if run.origin is None else 1 + depth(out.runs[run.origin])

    out.runs = dict(sorted(out.runs.items(), key=lambda item: depth(item[1])))
    return out


@dataclass(frozen=True)
class _Arm:
    """All cells of one method, rate, pair, receiving set, relation and seed."""

    grid: Grid
    method: MethodSpec
    rate: float
    origin: HostSpec
    receiving: HostSpec
    data: DataSpec
    relation: str
    origin_data: DataSpec
    seed: int

    def cells(self, out: Plan) -> Iterator[Cell]:
        grid = self.grid
        origin_id = out.add(self._origin, grid.origin_updates) if self._trains_origin else None
        native_id = out.add(self._trained(self.receiving, self.data), grid.origin_updates)
        for port in grid.ports:
            bare_id = out.add(self._bare(origin_id, port), 0)
            yield self._cell(BARE, port, 0, bare_id, 0, native_id, bare_id)
            for init in grid.inits:
                extracts = "extraction" in init.traits.needs
                source = out.add(self._extraction(init, port, origin_id), 0) if extracts else origin_id
                run = self._run(init, port, source)
                ahead = grid.origin_updates if init.traits.trains_extra else 0
                budgets = grid.budgets if ahead else (0, *grid.budgets)
                run_id = out.add(run, *(ahead + budget for budget in budgets))
                for budget in budgets:
                    yield self._cell(init.name, port, budget, run_id, ahead + budget, native_id, bare_id)

    def _cell(
        self, init: str, port: PortSpec, budget: int, run_id: str, mark: int, native: str, bare: str
    ) -> Cell:
        return Cell(
            method=rated(self.method, self.rate).name, origin=self.origin.name, receiving=self.receiving.name,
            relation=self.relation, origin_data=self.origin_data.name, data=self.data.name, init=init,
            port=port.name, seed=self.seed, budget=budget, run_id=run_id, mark=mark, native_id=native,
            bare_id=bare,
        )

    def _trained(self, host: HostSpec, data: DataSpec) -> RunSpec:
        """A module trained from scratch, with a head of its own where the host needs one: an origin, or a
        native."""
        grid = self.grid
        return RunSpec(
            host=host, data=data, task=grid.task_of(data), method=self.method, init=SCRATCH, port=None,
            origin=None, head="none" if _scores_labels(host) else "fresh", seed=self.seed,
            train=replace(grid.train, updates=grid.origin_updates), eval=grid.eval, precision=grid.precision,
        )

    @property
    def _origin(self) -> RunSpec:
        """The run whose module is ported."""
        run = self._trained(self.origin, self.origin_data)
        return run if self.grid.origin_seeds == "same" else replace(run, seed=self.seed + OTHER_SEEDS)

    @property
    def _shares_head(self) -> bool:
        """Whether the receiving host's head is the origin's."""
        return not _scores_labels(self.receiving) and self.grid.head == "shared"

    @property
    def _trains_origin(self) -> bool:
        """Whether a module is to be trained on the origin host: not where it only lends its own weights."""
        kinds = [init.traits for init in self.grid.inits]
        if any("origin_module" in kind.needs for kind in kinds) or self._shares_head:
            return True
        return not (any(kind.subtracts_start for kind in kinds) and _scores_labels(self.origin))

    def _extraction(self, init: InitSpec, port: PortSpec, origin_id: str | None) -> RunSpec:
        """Pairs for the receiving host out of the origin host's weights, chosen by examples of the origin's
        data; an encoder is asked through the head that the origin's training gave it."""
        blind = init.options.get("scores") == "ones"  # no example is looked at
        base = self._trained(self.receiving, self.data if blind else self.origin_data).with_updates(0)
        return replace(
            base, init=InitSpec(EXTRACTION, EXTRACTION, init.options), teacher=self.origin,
            head="shared" if self._shares_head else base.head, port=port if self._shares_head else None,
            origin=None if _scores_labels(self.origin) else origin_id,
        )

    def _run(self, init: InitSpec, port: PortSpec, origin_id: str | None) -> RunSpec:
        """The run of one arm on the receiving host; `origin_id` is the run that it starts from, if its init
        needs one."""
        grid, traits, shares = self.grid, init.traits, self._shares_head
        updates = max(grid.budgets) + (grid.origin_updates if traits.trains_extra else 0)
        base = self._trained(self.receiving, self.data).with_updates(updates)
        start = SCRATCH if traits.trains_extra else init
        if "extraction" in traits.needs:  # what the options say is the extraction's
            start = InitSpec(init.name, init.kind)
        return replace(
            base, method=rated(self.method, self.rate), init=start, head="shared" if shares else base.head,
            port=port if "port" in traits.needs or shares else None,
            origin=origin_id if traits.needs or shares else None,
            origin_host=self.origin if "port" in traits.needs else None,
        )

    def _bare(self, origin_id: str | None, port: PortSpec) -> RunSpec:
        """The receiving host without a module; nothing of it depends on method or seed but a shared head."""
        run = self._run(SCRATCH, port, origin_id)
        seed = None if run.head == "none" else run.seed
        return replace(run, method=None, init=BARE_INIT, seed=seed).with_updates(0)


def rated(method: MethodSpec, rate: float) -> MethodSpec:
    """A method with its learning rate times `rate`, and a name that says so.

    Example:
        >>> rated(MethodSpec("lora", "adapters", "LoRAConfig", {}, 3e-3), 3.0).name
        'lora x3'
    """
    if rate == 1:
        return method
    return replace(method, name=f"{method.name} x{rate:g}", learning_rate=method.learning_rate * rate)


def updates_of(planned: Plan) -> tuple[int, int]:
    """Module-updates of a plan, and of the same cells if each one and its origin were trained for
    themselves."""
    def alone(cell: Cell) -> int:
        origin = planned.runs[cell.run_id].origin
        return cell.mark + (planned.runs[origin].train.updates if origin else 0)

    shared = sum(run.train.updates for run in planned.runs.values())
    return shared, sum(alone(cell) for cell in planned.cells if cell.budget > 0)


def _scores_labels(host: HostSpec) -> bool:
    return FAMILIES[host.shape.family].scoring == "label"


def alike(run: RunSpec) -> str:
    """Runs with the same answer may train together: same host, method, data, task, protocol, precision and
    updates."""
    identity = run.identity()
    shared = {k: v for k, v in identity.items() if k not in ("seed", "init", "origin", "port", "head")}
    return digest([shared, run.method is None])


def stacks(runs: Mapping[str, RunSpec], size: int) -> list[list[str]]:
    """Group runs that may train together, at most `size` in a stack.

    A group is cut evenly, and the longest stacks come first, so that the last worker to finish is not left
    with one.
    """
    groups: dict[str, list[str]] = {}
    for run_id, run in runs.items():
        groups.setdefault(alike(run), []).append(run_id)
    parts = [part for ids in groups.values() for part in evenly(ids, size)]
    return sorted(parts, key=lambda ids: -cost(runs[ids[0]]) * len(ids))


def evenly(ids: list[T], size: int) -> Iterator[list[T]]:
    """Cut a list into the fewest parts of at most `size`, no two of which differ by more than one."""
    count = -(-len(ids) // size)
    edges = [len(ids) * i // count for i in range(count + 1)]
    return (ids[a:b] for a, b in zip(edges, edges[1:], strict=False))


def cost(run: RunSpec) -> float:
    """Relative cost of a run: updates times the host's parameters in its layers (an order, not a time)."""
    return (run.train.updates * run.train.batch_size + 1) * _weight(run)


def _weight(run: RunSpec) -> int:
    """Parameters of the host's layers, about."""
    shape = run.host.shape
    per_layer = 4 * shape.hidden * shape.heads * shape.head_dim + 3 * shape.hidden * shape.ffn
    return sum(shape.layers.values()) * per_layer


def work(run: RunSpec, updates: int, marks: float) -> float:
    """Units of work in so many updates and evaluations: examples times the parameters they pass; an evaluated
    example is a third of a trained one in each of its task's passes, because it has no backward pass."""
    return _weight(run) * (updates * run.train.batch_size + marks * run.data.counts["eval"] * run.task.passes
                           / 3)
