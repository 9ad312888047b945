"""From a grid to runs: the product, the sharing, and the names."""

from dataclasses import asdict, replace

import pytest

from portability.core.specs import (
    AnswerSpec,
    InitSpec,
    RunSpec,
    from_dict,
)
from portability.planning.cost import stacks
from portability.planning.plan import plan
from support.plans import grid, host


def trained(planned):
    return [cell for cell in planned.cells if cell.budget > 0]


def test_the_studys_product_is_1440_cells_and_sharing_makes_them_few_runs():
    planned = plan(grid())
    assert len(trained(planned)) == 1440
    scratch = {cell.run_id for cell in trained(planned) if cell.init == "scratch"}
    assert sum(cell.init == "scratch" for cell in trained(planned)) == 480 and len(scratch) == 60
    ported = {cell.run_id for cell in trained(planned) if cell.init in ("ported", "sampled")}
    assert len(ported) == 4 * 4 * 2 * 2 * 5  # method, pair, relation, init, seed: budgets nest
    origins_elsewhere = 4 * 3 * 5  # trained on meals: method, host, seed
    bare = 3
    assert len(planned.runs) == 60 + 320 + origins_elsewhere + bare


def test_every_run_follows_the_run_it_starts_from():
    planned = plan(grid())
    seen = set()
    for run_id, run in planned.runs.items():
        assert run.run_id == run_id and (run.origin is None or run.origin in seen)
        seen.add(run_id)


def test_an_origin_training_is_a_scratch_run_and_the_native_too():
    planned = plan(grid())
    for cell in trained(planned):
        if cell.init == "ported" and cell.relation == "same":
            back = next(c for c in planned.cells if c.init == "scratch" and c.receiving == cell.origin
                        and c.method == cell.method and c.seed == cell.seed)
            assert planned.runs[cell.run_id].origin == back.run_id
        if cell.init == "scratch":
            assert cell.native_id == cell.run_id


def test_zero_shot_and_bare_come_on_top():
    planned = plan(grid())
    zero = [cell for cell in planned.cells if cell.budget == 0]
    assert {cell.init for cell in zero} == {"ported", "sampled", "scratch", "bare"}
    assert all(0 in planned.marks[cell.run_id] for cell in zero)
    bare = {cell.run_id for cell in zero if cell.init == "bare"}
    assert len(bare) == 3 and all(planned.runs[i].method is None and planned.runs[i].train.updates == 0
                                  for i in bare)


def test_with_a_shared_head_every_arm_starts_from_the_origins():
    pair = (host("six", "bert"), host("three", "bert"))
    planned = plan(grid(pairs=[pair, pair[::-1]]))
    for cell in planned.cells:
        run = planned.runs[cell.run_id]
        assert run.head == "shared" and run.origin in planned.runs and planned.runs[
            run.origin].head == "fresh"
        # records hold no path, and a head is fitted by what its origin host makes of texts
        assert run.port is not None and run.origin_host == pair[cell.receiving == "six"]
    fresh = plan(grid(pairs=[pair, pair[::-1]], head="fresh"))
    scratch = [fresh.runs[cell.run_id] for cell in trained(fresh) if cell.init == "scratch"]
    assert all(run.origin is None for run in scratch)


def test_compute_matched_scratch_trains_for_the_origins_updates_too():
    planned = plan(grid(inits=[InitSpec("compute_matched", "compute_matched")]))
    cell = next(cell for cell in planned.cells if cell.init == "compute_matched" and cell.budget == 50)
    assert not [c for c in planned.cells if c.init == "compute_matched" and c.budget == 0]
    assert cell.mark == 250 and planned.runs[cell.run_id].train.updates == 400


def test_rates_are_methods_of_their_own_whose_origins_and_natives_keep_the_common_rate():
    planned = plan(grid(rates=(0.5, 1.0, 3.0)))
    assert len(trained(planned)) == 3 * 1440
    names = {cell.method for cell in planned.cells}
    assert len(names) == 12 and {"lora x0.5", "lora", "lora x3"} <= names
    for cell in trained(planned):
        run, factor = planned.runs[cell.run_id], {"x0.5": 0.5, "x3": 3.0}.get(cell.method.partition(" ")[2],
                                                                              1.0)
        assert run.method.learning_rate == pytest.approx(1e-3 * factor) and run.method.name == cell.method
        assert planned.runs[cell.native_id].method.learning_rate == 1e-3
        assert run.origin is None or planned.runs[run.origin].method.learning_rate == 1e-3
    common = {cell.run_id for cell in trained(planned) if " " not in cell.method}
    assert common == {cell.run_id for cell in trained(plan(grid()))}


def test_origins_of_other_seeds_are_no_receiving_run_of_the_grid():
    same, other = plan(grid()), plan(grid(origin_seeds="other"))
    assert {run.seed for run in other.runs.values()} == {None, *range(5), *range(1_000_000, 1_000_005)}
    for cell in trained(other):
        run = other.runs[cell.run_id]
        assert run.seed == cell.seed and (run.origin is None
                                          or other.runs[run.origin].seed == cell.seed + 1_000_000)
    scratch = [{cell.run_id for cell in trained(planned) if cell.init == "scratch"}
               for planned in (same, other)]
    assert scratch[0] == scratch[1] and not scratch[1] & {run.origin for run in other.runs.values()}


def test_no_two_starts_of_a_seed_draw_the_same_numbers():
    planned = plan(grid())
    ported = [run for run in planned.runs.values() if run.init.kind == "sampled" and run.seed == 0]
    assert len({run.stream for run in ported}) == len({(run.method.name, run.origin) for run in ported}) == 24
    slower = replace(ported[0], method=replace(ported[0].method, learning_rate=1.0, name="other"))
    assert slower.stream == ported[0].stream  # a rate changes no start


def run():
    planned = plan(grid())
    return next(run for run in planned.runs.values() if run.init.kind == "ported")


def test_a_runs_name_is_pinned():
    """A change of this name orphans every stored run: raise specs.SCHEMA and say so in CHANGELOG, or undo
    it."""
    assert run().run_id == "d2b9c6b262bd2605"


def test_what_becomes_of_long_answers_is_part_of_a_name():
    asked = replace(run(), task=AnswerSpec("exact_match", "squad", None, 8, 64))
    others = [replace(asked, task=replace(asked.task, too_long=how)) for how in ("drop", "truncate")]
    assert len({asked.run_id, *(other.run_id for other in others)}) == 3
    values = asdict(asked)
    del values["task"]["too_long"]  # a record of that time
    assert from_dict(RunSpec, values) == asked


@pytest.mark.parametrize("change", [
    lambda r: replace(r, method=replace(r.method, settings={"r": 9})),
    lambda r: replace(r, method=replace(r.method, learning_rate=2e-3)),
    lambda r: replace(r, host=replace(r.host, fingerprint="other")),
    lambda r: replace(r, data=replace(r.data, train_digest="other")),
    lambda r: replace(r, data=replace(r.data, eval_digest="other")),
    lambda r: replace(r, init=replace(r.init, kind="sampled")),
    lambda r: replace(r, init=replace(r.init, options={"law": "permute"})),
    lambda r: replace(r, port=replace(r.port, strategy="repeat")),
    lambda r: replace(r, seed=99),
    lambda r: replace(r, origin="another"),
    lambda r: replace(r, precision="bf16"),
    lambda r: replace(r, task=replace(r.task, template="now: {text}")),
    lambda r: r.with_updates(201),
])
def test_what_can_change_the_number_changes_the_name(change):
    assert change(run()).run_id != run().run_id


@pytest.mark.parametrize("change", [
    lambda r: replace(r, host=replace(r.host, name="other", source="/elsewhere")),
    lambda r: replace(r, data=replace(r.data, name="other", source="/elsewhere")),
    lambda r: replace(r, method=replace(r.method, name="other")),
    lambda r: replace(r, eval=replace(r.eval, batch_size=7)),
])
def test_what_cannot_change_the_number_does_not(change):
    assert change(run()).run_id == run().run_id


def test_a_spec_survives_a_trip_through_json():
    import json
    again = from_dict(RunSpec, json.loads(json.dumps(asdict(run()))))
    assert again == run() and again.run_id == run().run_id


def test_stacks_hold_only_what_may_train_together_and_lose_nothing():
    planned = plan(grid())
    parts = stacks(planned.runs, 8)
    assert sorted(i for part in parts for i in part) == sorted(planned.runs)
    for part in parts:
        runs = [planned.runs[i] for i in part]
        first = runs[0]
        assert len(part) <= 8
        assert all((r.host, r.method, r.data, r.train) == (first.host, first.method, first.data, first.train)
                   for r in runs)
        assert len({r.method is None for r in runs}) == 1


def test_excluded_cells_are_not_planned_and_runs_train_for_what_is_left():
    whole = plan(grid())
    less = plan(grid(exclude=[{"receiving": ["raw-large"], "budget": ["50", "100", "200"]},
                              {"init": ["sampled"], "method": ["lora"]},
                              {"receiving": ["tuned-base"], "init": ["ported"], "budget": ["200"]}]))

    def place(cell):
        return (cell.method, cell.origin, cell.receiving, cell.relation, cell.init, cell.seed, cell.budget)

    left_out = {place(cell): cell for cell in whole.cells if cell.init != "bare" and (
        cell.receiving == "raw-large" and cell.budget > 0 or cell.init == "sampled" and cell.method == "lora"
        or cell.receiving == "tuned-base" and cell.init == "ported" and cell.budget == 200)}
    assert [place(cell) for cell in less.cells] == [place(cell) for cell in whole.cells
                                                    if place(cell) not in left_out]
    for cell in less.cells:
        run = less.runs[cell.run_id]
        assert run.train.updates >= cell.mark and cell.mark in less.marks[cell.run_id]
        if cell.receiving == "raw-large":
            assert run.train.updates == 0 and cell.native_id == ""
        elif cell.init != "bare":
            ported = cell.receiving == "tuned-base" and cell.init == "ported"
            assert run.train.updates == (100 if ported else 200) and cell.native_id in less.runs
    natives = [run for run in less.runs.values() if run.init.kind == "scratch" and run.train.updates]
    assert "raw-large" in {run.host.name for run in natives}  # as an origin only


def test_nothing_is_trained_or_read_for_a_pair_whose_cells_are_all_left_out():
    pairs = grid().pairs
    for head in ("shared", "fresh"):
        less = plan(grid(pairs=pairs[1:], head=head, exclude=[{"origin": ["raw-large"]}]))
        alone = plan(grid(pairs=pairs[1:3], head=head))
        assert less.cells == alone.cells and less.runs == alone.runs and less.marks == alone.marks
    assert plan(grid(exclude=[{"seed": ["0", "1", "2", "3", "4"]}])).runs == {}


def test_a_grid_from_which_nothing_is_left_out_plans_the_same_runs():
    assert plan(grid(exclude=[])).runs.keys() == plan(grid()).runs.keys()
