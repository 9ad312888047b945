"""From a grid to cells and runs. Work that is equal has one id, so it is planned, and paid for, once. No
torch here."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

from portability.core import specs
from portability.core.architectures import FAMILIES
from portability.core.contrasts import selects
from portability.planning.grid import Grid, rated

SCRATCH = specs.InitSpec("scratch", "scratch")
BARE_INIT = specs.InitSpec(specs.BARE, specs.BARE)
OTHER_SEEDS = 1_000_000  # added to a receiving run's seed for an origin's own one


@dataclass
class Plan:
    """Cells, the distinct runs behind them, and the marks at which each run is to be evaluated."""

    cells: list[specs.Cell] = field(default_factory=list)
    runs: dict[str, specs.RunSpec] = field(default_factory=dict)
    marks: dict[str, set[int]] = field(default_factory=dict)

    def add(self, run: specs.RunSpec, *marks: int) -> str:
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

    def depth(run: specs.RunSpec) -> int:
        return 0 if run.origin is None else 1 + depth(out.runs[run.origin])

    out.runs = dict(sorted(out.runs.items(), key=lambda item: depth(item[1])))
    return out


@dataclass(frozen=True)
class _Arm:
    """All cells of one method, rate, pair, receiving set, relation and seed."""

    grid: Grid
    method: specs.MethodSpec
    rate: float
    origin: specs.HostSpec
    receiving: specs.HostSpec
    data: specs.DataSpec
    relation: str
    origin_data: specs.DataSpec
    seed: int

    def cells(self, out: Plan) -> Iterator[specs.Cell]:
        grid = self.grid
        left = [budget for init in grid.inits for port in grid.ports for budget in self._budgets(init, port)]
        if grid.exclude and not left:
            return  # nothing is trained, nor a bare host read, for cells that are all left out
        origin_id = out.add(self._origin, self._origin.train.updates) if self._trains_origin else None
        native_id = ""
        if any(left):  # some are trained
            native_id = out.add(self._trained(self.receiving, self.data), grid.origin_updates)
        place = partial(specs.Cell, **self._place, seed=self.seed, native_id=native_id)
        for port in grid.ports:
            bare_id = out.add(self._bare(origin_id, port), 0)
            cell = partial(place, port=port.name, bare_id=bare_id)
            yield cell(init=specs.BARE, budget=0, run_id=bare_id, mark=0)
            for init in grid.inits:
                budgets = self._budgets(init, port)
                if not budgets:
                    continue
                extracts = "extraction" in init.traits.needs
                source = out.add(self._extraction(init, port, origin_id), 0) if extracts else origin_id
                ahead = grid.origin_updates if init.traits.trains_extra else 0
                run = self._run(init, port, source).with_updates(ahead + budgets[-1])
                run_id = out.add(run, *(ahead + budget for budget in budgets))
                for budget in budgets:
                    yield cell(init=init.name, budget=budget, run_id=run_id, mark=ahead + budget)

    @property
    def _place(self) -> dict[str, Any]:
        grid = self.grid
        return {"method": rated(self.method, self.rate).name, "origin": self.origin.name,
                "receiving": self.receiving.name, "relation": self.relation, "data": self.data.name,
                "origin_data": grid.module.name if grid.module else self.origin_data.name}

    def _budgets(self, init: specs.InitSpec, port: specs.PortSpec) -> list[int]:
        """The budgets of an init's cells, ascending, 0 for before any update; those left out are not among
        them."""
        grid, place = self.grid, {**self._place, "seed": str(self.seed), "init": init.name, "port": port.name}
        budgets = grid.budgets if init.traits.trains_extra else (0, *grid.budgets)
        return [budget for budget in budgets
                if not any(selects(left_out, {**place, "budget": str(budget)}) for left_out in grid.exclude)]

    def _trained(self, host: specs.HostSpec, data: specs.DataSpec) -> specs.RunSpec:
        """A module trained from scratch, with a head of its own where the host needs one: an origin, or a
        native."""
        grid = self.grid
        return specs.RunSpec(
            host=host, data=data, task=grid.task_of(data), method=self.method, init=SCRATCH, port=None,
            origin=None, head="none" if _scores_labels(host) else "fresh", seed=self.seed,
            train=replace(grid.train, updates=grid.origin_updates), eval=grid.eval, precision=grid.precision,
        )

    @property
    def _origin(self) -> specs.RunSpec:
        """The run whose module is ported."""
        run = self._trained(self.origin, self.origin_data)
        if module := self.grid.module:  # one for all seeds
            init = specs.InitSpec(module.name, specs.EXTERNAL, {"digest": module.digest})
            return replace(run.with_updates(0), init=init, seed=0, folder=module.folder)
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

    def _extraction(self, init: specs.InitSpec, port: specs.PortSpec, origin_id: str | None) -> specs.RunSpec:
        """Pairs for the receiving host out of the origin host's weights, chosen by examples of the origin's
        data; an encoder is asked through the head that the origin's training gave it."""
        blind = init.options.get("scores") == "ones"  # no example is looked at
        base = self._trained(self.receiving, self.data if blind else self.origin_data).with_updates(0)
        return replace(
            base, init=specs.InitSpec(specs.EXTRACTION, specs.EXTRACTION, init.options), teacher=self.origin,
            head="shared" if self._shares_head else base.head, port=port if self._shares_head else None,
            origin_host=self.origin if self._shares_head else None,
            origin=None if _scores_labels(self.origin) else origin_id,
        )

    def _run(self, init: specs.InitSpec, port: specs.PortSpec, origin_id: str | None) -> specs.RunSpec:
        """The run of one arm on the receiving host; `origin_id` is the run that it starts from, if its init
        needs one."""
        grid, traits, shares = self.grid, init.traits, self._shares_head
        updates = max(grid.budgets) + (grid.origin_updates if traits.trains_extra else 0)
        base = self._trained(self.receiving, self.data).with_updates(updates)
        start = SCRATCH if traits.trains_extra else init
        if "extraction" in traits.needs:  # what the options say is the extraction's
            start = specs.InitSpec(init.name, init.kind)
        ports = "port" in traits.needs or shares  # a shared head is fitted, too
        return replace(
            base, method=rated(self.method, self.rate), init=start, head="shared" if shares else base.head,
            port=port if ports else None, origin_host=self.origin if ports else None,
            origin=origin_id if traits.needs or shares else None,
        )

    def _bare(self, origin_id: str | None, port: specs.PortSpec) -> specs.RunSpec:
        """The receiving host without a module; nothing of it depends on method or seed but a shared head."""
        run = self._run(SCRATCH, port, origin_id)
        seed = None if run.head == "none" else run.seed
        return replace(run, method=None, init=BARE_INIT, seed=seed).with_updates(0)


def _scores_labels(host: specs.HostSpec) -> bool:
    return FAMILIES[host.shape.family].scoring == "label"
