"""The planner's own cells, with its own sharing, through to the tables."""

from itertools import permutations
from pathlib import Path

from portability.analysis.context import gather
from portability.analysis.tables.registry import build
from portability.core.specs import (
    DataSpec,
    EvalSpec,
    HostShape,
    HostSpec,
    InitSpec,
    MethodSpec,
    PortSpec,
    TaskSpec,
    TrainSpec,
)
from portability.planning.grid import Grid
from portability.planning.plan import plan
from portability.store import Store
from support.synthetic import FACTS, accuracy, record, write

SHAPE = HostShape("t5", {"encoder": 2, "decoder": 2}, 32, 64, 4, 4, 8)
HOSTS = [HostSpec(name, name, None, name, SHAPE) for name in ("a", "b", "c")]
FILMS, MEALS = (DataSpec(name, name, None, name, "eval", {"train": 9}) for name in ("films", "meals"))
TRAIN = TrainSpec(
    updates=200, batch_size=8, warmup=10, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, clip=1.0, tail=0.2,
    bucket_batches=4, head_learning_rate=1e-3,
)


def grid() -> Grid:
    """Six ordered pairs of three hosts, two relations, one method."""
    return Grid(
        methods=[MethodSpec("lora", "adapters", "LoRAConfig", {}, 1e-3)], pairs=list(permutations(HOSTS, 2)),
        relations={"same": {"films": FILMS}, "different": {"films": MEALS}}, data=[FILMS],
        inits=[InitSpec(name, name) for name in ("ported", "sampled", "scratch")],
        ports=[PortSpec("pad", "pad", "stretch")],
        seeds=[0, 1], budgets=[50, 200], origin_updates=300, task=TaskSpec("{text}", ("bad", "good"), 16),
        train=TRAIN, eval=EvalSpec("test", 0, 8),
        precision="fp32", head="shared",
    )


def test_a_planned_study_is_whole_and_its_scratch_runs_count_once(tmp_path: Path):
    planned, store = plan(grid()), Store(tmp_path / "planned")
    store.expect(planned.cells, FACTS)
    for run_id, marks in planned.marks.items():
        write(store, run_id, record(run_id, {mark: accuracy(run_id, mark) for mark in sorted(marks)}))
    found = gather(store)
    study = found.study
    assert study.problems == [] and set(study.cells["status"]) == {"done"} and len(study.cells) == len(
        planned.cells)
    table = build(found, ["init_by_method"])[0].frame
    rows = table[table["quantity"] == "eval_accuracy"].set_index("init")
    assert rows["runs"].to_dict() == {"ported": 24, "sampled": 24, "scratch": 6}  # three hosts, two seeds
    assert set(rows["n"]) == {24}
    for row in study.cells[study.cells["init"] != "bare"].itertuples():
        assert row.native == accuracy(row.native_id, 300)
