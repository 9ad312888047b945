"""Which runs a command carries out."""

import pytest

from portability.core.errors import UserError
from portability.planning.cost import cost, stack_key
from portability.planning.plan import plan
from portability.planning.selection import Part, select_runs
from support.plans import grid

PLANNED = plan(grid())


def part(**changes):
    return Part(**({"only": {}, "shard": (1, 1), "retry": "died", "yes": False} | changes))


def test_everything_is_chosen_where_nothing_is_said():
    assert select_runs(PLANNED, part()) == set(PLANNED.runs)


def test_only_takes_the_cells_runs_with_their_origins_and_references():
    ids = select_runs(PLANNED, part(only={"method": ["lora"], "init": ["ported"], "seed": [1]}))
    cells = [c for c in PLANNED.cells if c.method == "lora" and c.init == "ported" and c.seed == 1]
    assert {c.run_id for c in cells} <= ids and {c.native_id for c in cells} <= ids
    assert {c.bare_id for c in cells} <= ids
    assert all(PLANNED.runs[i].origin in (None, *ids) for i in ids)
    assert {PLANNED.runs[i].init.name for i in ids} == {"ported", "scratch", "bare"}
    assert {PLANNED.runs[i].seed for i in ids} == {1, None}


def test_only_takes_cells_without_a_native_too():
    planned = plan(grid(exclude=[{"budget": ["50", "100", "200"]}]))
    ids = select_runs(planned, part(only={"method": ["lora"], "init": ["ported"], "seed": [1]}))
    cells = [c for c in planned.cells if c.method == "lora" and c.init == "ported" and c.seed == 1]
    assert {c.native_id for c in cells} == {""} and {c.run_id for c in cells} <= ids <= set(planned.runs)


def test_only_can_name_a_run():
    cell = next(c for c in PLANNED.cells if c.init == "ported")
    assert cell.run_id in select_runs(PLANNED, part(only={"run_id": [cell.run_id]}))


def test_only_that_matches_nothing_says_what_there_is():
    with pytest.raises(UserError, match="no cell of this grid has method loraa; there is: adapter, "
                       "compacter, lora, prefix"):
        select_runs(PLANNED, part(only={"method": ["lora", "loraa"]}))
    with pytest.raises(UserError, match="no cell of this grid has seed 99; there is: 0, 1"):
        select_runs(PLANNED, part(only={"seed": [0, 99]}))
    with pytest.raises(UserError, match="no cell has all of init, budget"):
        select_runs(PLANNED, part(only={"init": ["bare"], "budget": [50]}))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_cover_the_plan_need_nothing_of_each_other_and_cost_about_the_same(count):
    shards = [select_runs(PLANNED, part(shard=(number, count))) for number in range(1, count + 1)]
    assert sorted(i for shard in shards for i in shard) == sorted(PLANNED.runs)  # every run in exactly one
    for shard in shards:
        assert all(PLANNED.runs[i].origin in (None, *shard) for i in shard)
    costs = [sum(cost(PLANNED.runs[i]) for i in shard) for shard in shards]
    assert max(costs) < 1.35 * sum(costs) / count


def test_a_shard_of_some_cells_is_a_part_of_their_runs():
    whole = select_runs(PLANNED, part(only={"method": ["lora"]}))
    shards = [select_runs(PLANNED, part(only={"method": ["lora"]}, shard=(number, 3)))
              for number in (1, 2, 3)]
    assert sorted(i for shard in shards for i in shard) == sorted(whole)
    costs = [sum(cost(PLANNED.runs[i]) for i in shard) for shard in shards]
    assert max(costs) < 1.35 * sum(costs) / 3


def test_shards_keep_runs_together_that_may_train_together():
    kinds = [{stack_key(PLANNED.runs[i]) for i in select_runs(PLANNED, part(shard=(n, 2)))} for n in (1, 2)]
    shared = kinds[0] & kinds[1]
    assert len(shared) <= len(kinds[0] | kinds[1]) / 2
