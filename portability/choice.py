"""Which runs of a plan a command carries out: those of some cells, or one of n parts that need nothing of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from portability.errors import UserError, choose
from portability.plan import Plan, alike, cost
from portability.spec import Cell

RETRIES = ("died", "failed")  # which of the runs that failed before are tried again


@dataclass(frozen=True)
class Part:
    """Which part of a plan is carried out here, and what is asked before: the grid and its cells stay whole.

    `only` maps columns of a cell (or run_id) to the values wanted; `shard` is (i, n), i from 1 on.
    """

    only: Mapping[str, Sequence[Any]]
    shard: tuple[int, int]
    retry: str
    yes: bool


def part_of(raw: Mapping[str, Any]) -> Part:
    """What the configuration says of the part.

    Raises:
        UserError: an unknown column, retry, or shard.
    """
    only = raw["only"] or {}
    if not isinstance(only, Mapping):
        raise UserError(f"only must map columns of a cell to values, as in 'only={{method: lora, seed: [0, 1]}}', got {only!r}")
    columns = [field.name for field in fields(Cell)]
    wanted = {choose(str(key), columns, "column in only"): value if isinstance(value, list) else [value]
              for key, value in only.items()}
    return Part(wanted, _shard(raw["shard"]), choose(str(raw["retry"]), RETRIES, "retry"), bool(raw["yes"]))


def _shard(value: Any) -> tuple[int, int]:
    try:
        part, _, count = str(value or "1/1").partition("/")
        shard = int(part), int(count)
    except ValueError:
        shard = 0, 0
    if not 1 <= shard[0] <= shard[1]:
        raise UserError(f"shard must be i/n with i from 1 to n, as in shard=2/3, got {value!r}")
    return shard


def chosen(planned: Plan, part: Part) -> set[str]:
    """Ids of the runs to carry out, and of the origins they need.

    Raises:
        UserError: `only` matches no cell.
    """
    ids = set(planned.runs)
    if part.only:
        ids = _of_cells(planned, part.only)
    if part.shard != (1, 1):
        ids &= _of_shard(planned, *part.shard)
    return ids


def _of_cells(planned: Plan, only: Mapping[str, Sequence[Any]]) -> set[str]:
    """Runs of the matching cells, with the native and bare runs they are compared with, and all origins."""
    wanted = {column: {str(value) for value in values} for column, values in only.items()}
    cells = [cell for cell in planned.cells if all(str(getattr(cell, column)) in wanted[column] for column in wanted)]
    if not cells:
        columns = [column for column in only if "_id" not in column]
        held = {column: sorted({str(getattr(cell, column)) for cell in planned.cells}) for column in columns}
        choices = "; ".join(f"{column} is one of {', '.join(values)}" for column, values in held.items())
        raise UserError(f"only matches no cell of this grid{': ' + choices if choices else ''}")
    ids = {run_id for cell in cells for run_id in (cell.run_id, cell.native_id, cell.bare_id)}
    return ids | {str(planned.runs[run_id].origin) for run_id in ids if planned.runs[run_id].origin}


def _of_shard(planned: Plan, number: int, count: int) -> set[str]:
    """The part of all runs that is number `number` (from 1) of `count`, about equally costly.

    Runs that start from each other stay together, so no shard waits for, or repeats, what another one does; trees whose
    origins may train together come side by side, so that stacks stay large.
    """
    trees: dict[str, list[str]] = {}
    for run_id in planned.runs:  # origins come first in a plan
        root = run_id
        while origin := planned.runs[root].origin:
            root = origin
        trees.setdefault(root, []).append(run_id)
    roots = sorted(trees, key=lambda root: (alike(planned.runs[root]), root))
    costs = {root: sum(cost(planned.runs[run_id]) for run_id in trees[root]) for root in roots}
    total, before, mine = sum(costs.values()), 0.0, set()
    for root in roots:
        middle = before + costs[root] / 2
        before += costs[root]
        if int(count * middle / total) + 1 == number:
            mine.update(trees[root])
    return mine
