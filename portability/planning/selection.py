"""Which runs of a plan a command carries out: those of some cells, or one of n parts that need nothing of
each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portability.core.errors import UserError
from portability.planning.cost import cost, stack_key
from portability.planning.plan import Plan


@dataclass(frozen=True)
class Part:
    """Which part of a plan is carried out here, and what is asked before: the grid and its cells stay whole.

    `only` maps columns of a cell (or run_id) to the values wanted; `shard` is (i, n), i from 1 on.
    """

    only: Mapping[str, Sequence[Any]]
    shard: tuple[int, int]
    retry: str  # "died" or "failed": which of the runs that failed before are tried again
    yes: bool


def select_runs(planned: Plan, part: Part) -> set[str]:
    """Ids of the runs to carry out, and of the origins they need.

    Raises:
        UserError: `only` names what no cell has, or matches none.
    """
    ids = _of_cells(planned, part.only) if part.only else set(planned.runs)
    return _of_shard(planned, ids, *part.shard)


def _of_cells(planned: Plan, only: Mapping[str, Sequence[Any]]) -> set[str]:
    """Runs of the matching cells, with the native and bare runs they are compared with, and all origins."""
    wanted = {column: {str(value) for value in values} for column, values in only.items()}
    cells = planned.cells
    for column, values in wanted.items():
        held = {str(getattr(cell, column)) for cell in planned.cells}
        if unknown := sorted(values - held):
            known = ", ".join(sorted(held)) if "_id" not in column else f"{len(held)} ids, see mode=status"
            missing = ", ".join(unknown)
            raise UserError(f"only: no cell of this grid has {column} {missing}; there is: {known}")
        cells = [cell for cell in cells if str(getattr(cell, column)) in values]
    if not cells:
        raise UserError(f"only matches no cell of this grid: no cell has all of {', '.join(wanted)} as asked")
    ids = {run_id for cell in cells for run_id in (cell.run_id, cell.native_id, cell.bare_id) if run_id}
    return ids | {str(planned.runs[run_id].origin) for run_id in ids if planned.runs[run_id].origin}


def _of_shard(planned: Plan, ids: set[str], number: int, count: int) -> set[str]:
    """The part of these runs that is number `number` (from 1) of `count`, about equally costly.

    Runs that start from each other stay together, so no shard waits for, or repeats, what another one does;
    trees whose origins may train together come side by side, so that stacks stay large.
    """
    roots: dict[str, str] = {}
    trees: dict[str, list[str]] = {}
    for run_id, run in planned.runs.items():  # each follows the run it starts from
        roots[run_id] = roots[run.origin] if run.origin else run_id
        if run_id in ids:
            trees.setdefault(roots[run_id], []).append(run_id)
    costs = {root: sum(cost(planned.runs[run_id]) for run_id in tree) for root, tree in trees.items()}
    total, before, mine = sum(costs.values()), 0.0, set()
    for root in sorted(trees, key=lambda root: (stack_key(planned.runs[root]), root)):
        if int(count * (before + costs[root] / 2) / total) + 1 == number:
            mine.update(trees[root])
        before += costs[root]
    return mine
