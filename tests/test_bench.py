"""The benchmark, end to end on a tiny host: contenders, checks that can fail, and the files it leaves. No timing is tested."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from portability.bench import __main__ as bench
from portability.bench import children, grid, libraries, rivals, scale, shapes, tables, workload
from portability.bench.children import ONE_THREAD, Child, ChildFailed, once
from portability.bench.workload import Workload

SMALL = ["--shape", "t5-64x2", "--rounds", "2", "--segment", "2", "--members", "1,2", "--batch-size", "4", "--batchsplit", "2",
         "--processes", "1", "--side-by-side", "1", "--threads", "1", "--device", "cpu", "--train-batches", "60",
         "--test-examples", "24", "--grid", "method=lora", "grid.budgets=[4]", "grid.seeds=[0]", "grid.inits=[ported,scratch]",
         "eval.limit=32"]
CONTENDERS = ["trainer", "trainer-tuned", "trainer-tuned x1", "batchsplit K=2", "ours K=1", "ours K=2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Workload:
    """A prepared host with its token ids."""
    folder = tmp_path_factory.mktemp("bench")
    made = Workload("prepare", str(folder), "t5-64x2", "lora", 4, "fp32", "cpu", train_batches=60, test_examples=24)
    shapes.prepare(made)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> SimpleNamespace:
    """One run of the whole command: its exit code, its JSON and what it said."""
    out, said = tmp_path_factory.mktemp("report") / "bench.json", []
    patch = pytest.MonkeyPatch()
    patch.setattr(bench, "say", said.append)
    patch.setattr(grid, "LEVELS", grid.LEVELS[1:3])
    for name, value in {"SIZES": (1, 2), "ROUNDS": 1, "PLANS": {1_440: 5}}.items():
        patch.setattr(scale, name, value)
    try:
        code = bench.main([*SMALL, "--out", str(out)])
    finally:
        patch.undo()
    return SimpleNamespace(code=code, text=out.read_text(), report=json.loads(out.read_text()), said="\n".join(said))


def test_the_command_passes_and_its_table_names_every_contender(whole):
    assert whole.code == 0, whole.said
    table = whole.said.partition("== rivals")[2].partition("\n== ")[0].splitlines()
    assert [line.split("  ")[0] for line in table if line.split("  ")[0] in CONTENDERS] == CONTENDERS
    assert "equality: passed" in whole.said and "(equal)" in whole.said


def test_the_json_holds_every_raw_segment(whole):
    rows = whole.report["parts"]["rivals"]["rows"]
    assert [row["name"] for row in rows] == CONTENDERS
    for row in rows:
        assert len(row["raw"]["rounds"]) == 3 and len(row["ms_rounds"]) == 2
        for one in row["raw"]["rounds"][1:]:
            assert [answer["updates"] for answer in one["answers"]] == [2] * row["processes"]
            assert all(answer["padded_tokens"] >= answer["tokens"] > 0 for answer in one["answers"])
        assert len(row["raw"]["evaluations"]) == (0 if row["name"].startswith("batchsplit") else 2)
        assert row["trainer_over_this"]["min"] <= row["trainer_over_this"]["median"] <= row["trainer_over_this"]["max"]
    assert rows[0]["trainer_over_this"] == {"median": 1.0, "min": 1.0, "max": 1.0}


def test_every_part_has_its_findings(whole):
    parts = whole.report["parts"]
    assert list(parts) == list(bench.PARTS)
    floor = parts["floor"]
    assert {row["name"] for row in floor["rows"]} == {"peft, plain loop", "adapters, plain loop", "ours K=1", "ours K=2"}
    assert floor["flops"] > 0
    assert [row["modules"] for row in parts["memory"]["rows"]] == [1, 4, 16]
    assert all(row["difference"] <= row["bound"] for row in parts["equality"]["rows"])
    hours = parts["rivals"]["full_grid"]
    assert hours["updates_alone"] > 3 * hours["updates_shared"] > 0 and hours["best"].startswith("ours K=")


def test_the_naive_loop_reaches_the_accuracies_of_the_same_cells(whole):
    found = whole.report["parts"]["grid"]
    assert found["passed"] and found["naive"]["cells"] == 2 and found["naive"]["share_of_seeds"] == 1
    assert [row["difference"] for row in found["rows"]] == [None, {"mean": 0.0, "mean_absolute": 0.0}]
    assert not bench.passed({"parts": {"grid": {"passed": False}}})


def test_the_cost_of_runs_and_of_bookkeeping_is_told(whole):
    found = whole.report["parts"]["scale"]
    assert [row["runs"] for row in found["rows"]] == [1, 2] and all(len(row["seconds"]) == 1 for row in found["rows"])
    kept = found["bookkeeping"]
    assert 0 < kept["planner"] < kept["seconds"] and 0 < kept["store"] < kept["seconds"] and kept["runs"] == 3
    assert "mode=plan: 1,440 cells" in whole.said


def test_the_json_tells_no_places(whole, tmp_path):
    import socket

    assert str(tmp_path.parents[2]) not in whole.text and "/bench-" not in whole.text
    assert f'"{socket.gethostname()}"' not in whole.text


def test_equality_finds_a_wrong_learning_rate(work):
    from portability.bench import equality

    right, wrong = equality.compare(work), equality.compare(work, rival_rate=1.5)
    assert right["passed"] and not wrong["passed"]
    ours, *others = wrong["rows"]
    assert ours["difference"] == 0 and all(row["difference"] > equality.TOLERANCES["fp32"] for row in others)
    assert "equality: FAILED" in tables.equality(wrong)


def test_a_failed_check_makes_the_command_fail():
    row = {"failed": None, "trainable": 7}
    good = {"parts": {"rivals": {"rows": [row, row]}, "equality": {"passed": True}}}
    assert bench.passed(good)
    assert not bench.passed({"parts": good["parts"] | {"equality": {"passed": False}}})
    assert not bench.passed({"parts": {"rivals": {"rows": [row, row | {"trainable": 8}]}}})
    assert not bench.passed({"parts": {"rivals": {"rows": [row, row | {"failed": "failed: x"}]}}})
    assert not bench.passed({"parts": {"floor": {"failed": "x"}}})


def test_a_child_that_breaks_says_why(work):
    with pytest.raises(ChildFailed, match="KeyError: 'no-such'"):
        once(replace(work, kind="no-such"), ONE_THREAD, "broken")


def test_a_contender_that_breaks_is_out_and_the_others_go_on(work, monkeypatch):
    race = rivals.Race(rounds=1, segment=1, members=(1,), batchsplit=2, processes=1, side_by_side=1)
    some = {who.name: who for who in rivals.contenders(race)}
    broken = [replace(some[name], kind="no-such") for name in ("trainer", "trainer-tuned")]
    monkeypatch.setattr(rivals, "contenders", lambda race: [*broken, some["ours K=1"]])
    rows = rivals.summary(rivals.run(work, race, lambda text: None), 100.0)
    assert all(row["failed"].startswith("failed: KeyError") and row["ms"] is None for row in rows[:2])
    assert rows[2]["failed"] is None and rows[2]["trainer_over_this"] is None
    assert rows[2]["beside_over_this"]["median"] == 1.0  # it stands where the side-by-side rival would


def test_times_are_of_the_slowest_process_and_scaled_to_a_mean_batch():
    answers = [{"seconds": 2.0, "tokens": 100}, {"seconds": 4.0, "tokens": 300}]
    entry = rivals.Entry(rivals.Contender("x", "ours", 2, 1, {}), rounds=[{"answers": answers}])
    assert rivals._milliseconds(entry.rounds[0], 50.0) == 4000 * 50 / 400


def test_thread_settings_of_the_caller_do_not_reach_a_child(work, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = {}
    monkeypatch.setattr(children.subprocess, "Popen", lambda command, **options: seen.update(options["env"]))
    Child.start(work, children.AS_IT_COMES, "x")
    assert "OMP_NUM_THREADS" not in seen
    Child.start(work, ONE_THREAD, "x")
    assert seen["OMP_NUM_THREADS"] == "1"


def test_lengths_follow_sst2_and_labels_follow_from_words(work):
    drawn = shapes.lengths(20_000, 3)
    for share, words in shapes.LENGTHS.items():
        assert abs(np.quantile(drawn, share) - words) <= 1
    training = workload.load_set(work.path, "train")
    assert len(training) == 60 * 4 and set(training.labels.tolist()) == {0, 1}
    vocabulary = shapes.words(shapes.SMALL_VOCABULARY)
    first = vocabulary.index("w0")
    for index in range(len(training)):
        ids = training.row(index)
        charged = ids[(ids >= first) & (ids < first + 2 * shapes.CHARGED)]
        assert ((charged - first) // shapes.CHARGED).tolist() == [training.labels[index]]


@pytest.mark.parametrize("shape", ["t5-64x2", "bert-256x4", "llama-256x4"])
def test_peft_adapts_the_matrices_that_adapters_adapts(tmp_path, shape):
    work = Workload("prepare", str(tmp_path), shape, "lora", 2, "fp32", "cpu", train_batches=2, test_examples=2)
    shapes.prepare(work)
    by_peft, by_adapters = libraries.load(work, False), libraries.load(work, False)
    libraries.with_peft(by_peft, work)
    libraries.with_adapters(by_adapters, work)
    one = {name.split(".lora_")[0]: p.numel() for name, p in by_peft.named_parameters() if "lora_A" in name}
    other = {name.split(".loras.")[0]: p.numel() for name, p in by_adapters.named_parameters() if "lora_A" in name}
    assert one == other and len(one) > 0
