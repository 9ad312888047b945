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
    ids = set(planned.runs)
    if part.only:
        ids = _of_cells(planned, part.only)
    if part.shard != (1, 1):
        ids = _of_shard(planned, ids, *part.shard)
    return ids


def _of_cells(planned: Plan, only: Mapping[str, Sequence[Any]]) -> set[str]:
    """Runs of the matching cells, with the native and bare runs they are compared with, and all origins."""
    wanted = {column: {str(value) for value in values} for column, values in only.items()}
    for column, values in wanted.items():
        held = {str(getattr(cell, column)) for cell in planned.cells}
        if unknown := sorted(values - held):
            choices = ", ".join(sorted(held)) if "_id" not in column else f"{len(held)} ids, see mode=status"
            raise UserError(f"only: no cell of this grid has {column} {', '.join(unknown)}; there is: "
                            f"{choices}")
    cells = [cell for cell in planned.cells
             if all(str(getattr(cell, column)) in values for column, values in wanted.items())]
    if not cells:
        raise UserError(f"only matches no cell of this grid: no cell has all of {', '.join(wanted)} as asked")
    ids = {run_id for cell in cells for run_id in (cell.run_id, cell.native_id, cell.bare_id)}
    return ids | {str(planned.runs[run_id].origin) for run_id in ids if planned.runs[run_id].origin}


def _of_shard(planned: Plan, ids: set[str], number: int, count: int) -> set[str]:
    """The part of these runs that is number `number` (from 1) of `count`, about equally costly.

    Runs that start from each other stay together, so no shard waits for, or repeats, what another one does;
    trees whose origins may train together come side by side, so that stacks stay large.
    """
    trees: dict[str, list[str]] = {}
    for run_id in planned.runs:
        if run_id not in ids:
            continue
        root = run_id
        while origin := planned.runs[root].origin:
            root = origin
        trees.setdefault(root, []).append(run_id)
    roots = sorted(trees, key=lambda root: (stack_key(planned.runs[root]), root))
    costs = {root: sum(cost(planned.runs[run_id]) for run_id in trees[root]) for root in roots}
    total, before, mine = sum(costs.values()), 0.0, set()
    for root in roots:
        middle = before + costs[root] / 2
        before += costs[root]
        if int(count * middle / total) + 1 == number:
            mine.update(trees[root])
    return mine
