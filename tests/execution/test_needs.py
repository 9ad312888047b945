"""What runs need of memory is counted before work; what is not there is refused, and nothing is written."""

from types import SimpleNamespace

import pytest

from portability.core.errors import UserError
from portability.execution import needs
from portability.execution.execute import _size
from portability.execution.preview import preview
from portability.execution.rehearse import skeleton
from portability.execution.worker import Setup
from portability.hosts import host
from portability.hosts.devices import Place
from portability.hosts.host import load_host, weight_bytes
from portability.inits.extraction import ExtractionOptions, check_extraction
from portability.planning.plan import plan
from portability.run import command
from portability.tasks.base import Answered
from portability.tracking.runs import TrackingSpec
from portability.training.memory import STATE
from support.answers import tasks

# a layer of the teacher: query and output, key and value of half the heads, gate, up and down, two norms
LAYER = 2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 96 + 2 * 48
ONE = ("grid.inits=[extracted]", "grid.data=[sums]", "grid.study_data=[sums]", "~grid.relations.different")


@pytest.mark.parametrize("family", ["llama", "t5", "gpt2", "bert"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_of_weights_are_those_of_the_loaded_host(make_host, family, precision):
    spec = make_host(family)
    assert weight_bytes(skeleton(spec).model, precision) == _size(load_host(spec, "cpu", precision))


@pytest.mark.parametrize(("options", "wanted"), [
    ({}, 2 * 4 * LAYER), ({"scores": "ones"}, 4 * LAYER), ({"sites": ("attention",)}, 2 * 4 * LAYER),
])
def test_an_extraction_holds_a_layer_with_its_scores(make_host, options, wanted):
    teacher, student = make_host("llama", 48, 3, 6, 2), make_host("llama", 32, 2, 4, 1)
    seeds = [Answered([3, 4, 5], start=2)]
    assert check_extraction(teacher, student, seeds, ExtractionOptions(rank=4, **options)) == wanted


def test_a_large_vocabulary_is_more_than_a_layer(make_host, monkeypatch):
    from portability.inits.extraction import extractor

    teacher, student = make_host("llama", 48, 3, 6, 2), make_host("llama", 32, 2, 4, 1)
    weights = extractor.before_work(teacher)
    weights.shapes[weights.shared["head"]] = (1000, 48)
    monkeypatch.setattr(extractor, "before_work", lambda spec: weights if spec is teacher else real(spec))
    real = type(weights)
    for sites, largest in ((("attention", "head"), 1000 * 48), (("attention",), LAYER)):
        options = ExtractionOptions(rank=4, sites=sites)
        assert check_extraction(teacher, student, [Answered([3, 4, 5], start=2)], options) == 2 * 4 * largest


def test_what_does_not_fit_is_refused_before_anything_is_written(sets, make_host, tmp_path, monkeypatch):
    got = tasks(sets, make_host, "llama", f"results={tmp_path}/results", "study=two", *ONE)
    weights = _size(load_host(make_host("llama", 32, 2, 4, 1)))
    extracting = weights + 2 * 4 * LAYER  # more than a module of rank 4 in training
    monkeypatch.setattr(needs, "free_memory", lambda: extracting - 1)
    monkeypatch.setattr(needs, "_said", lambda size: f"{size} B")
    with pytest.raises(UserError) as error:
        command(got)
    student, teacher = (name for name in ("nano-raw-base", "nano-raw-large"))
    assert str(error.value) == (
        f"'{student}' in fp32 with an extraction from '{teacher}' needs at least {extracting} B of memory, "
        f"activations beside, and each of 1 worker has {extracting - 1} B on cpu; take fewer engine.workers, "
        "precision=bf16, or a machine with more")
    assert not (tmp_path / "results").exists()


def run_of(precision, teacher=None):
    named = SimpleNamespace(name=teacher) if teacher else None
    return SimpleNamespace(precision=precision, teacher=named, host=SimpleNamespace(name="a"))


def found(fp32, bf16, loading=0):
    return {"memory": {"fp32": fp32, "bf16": bf16}, "loading": loading}


def test_the_most_demanding_run_counts_in_its_own_precision():
    facts = {"1": found(9, 5), "2": found(8, 6), "3": found(99, 99)}
    runs = {"1": run_of("bf16"), "2": run_of("bf16", "b")}
    assert needs.largest_need(facts, runs) == (6, "'a' in bf16 with an extraction from 'b'")
    assert needs.largest_need({}, runs) == (0, "")


@pytest.mark.parametrize(("need", "share", "fits"), [(50, 0.5, True), (51, 0.5, False), (51, 1.0, True)])
def test_workers_share_what_is_free(monkeypatch, need, share, fits):
    monkeypatch.setattr(needs, "free_memory", lambda: 100)
    here = [Place("cpu", share)] * round(1 / share)
    facts, runs = {"1": found(need, 0)}, {"1": run_of("fp32"), "2": run_of("fp32")}
    if fits:
        needs.check_memory(facts, runs, here)
    else:
        with pytest.raises(UserError, match="each of 2 workers has 0.0 GB on cpu"):
            needs.check_memory(facts, runs, here)


def test_workers_without_a_run_hold_nothing(monkeypatch):
    monkeypatch.setattr(needs, "free_memory", lambda: 100)
    runs = {"1": run_of("fp32"), "2": run_of("fp32")}
    needs.check_memory({"1": found(50, 0)}, runs, [Place("cpu", 1 / 64)] * 64)
    needs.check_memory({}, {}, [Place("cpu", 1 / 64)] * 64)
    with pytest.raises(UserError, match="each of 2 workers has"):
        needs.check_memory({"1": found(51, 0)}, runs, [Place("cpu", 1 / 64)] * 64)


def test_a_host_spread_over_gpus_may_take_all_of_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**31, 2**32))
    monkeypatch.setattr(needs, "in_child", lambda function, device: function(device))
    runs = {"1": run_of("fp32")}
    needs.check_memory({"1": found(2**32, 0)}, runs, [Place("cuda:0", 1.0, 1, "auto")])
    for place, said in ((Place("cuda:0", 1.0, 1, "auto"), "4.3 GB on all GPUs together"),
                        (Place("cuda:0", 1.0), "2.1 GB on cuda:0")):
        with pytest.raises(UserError, match=f"1 worker has {said}"):
            needs.check_memory({"1": found(2**32 + 1, 0)}, runs, [place])


@pytest.mark.parametrize(("need", "fits"), [(2**30, True), (2**31, True), (2**31 + 1, False)])
def test_a_gpu_is_asked_in_a_process_of_its_own_where_it_matters(monkeypatch, need, fits):
    asked = []
    monkeypatch.setattr(needs, "in_child", lambda function, device: asked.append(device) or iter([2**31]))
    facts, runs = {"1": found(need, 0)}, {"1": run_of("fp32")}
    if fits:
        needs.check_memory(facts, runs, [Place("cuda:1", 1.0)])
    else:
        with pytest.raises(UserError, match="at least 2.1 GB of memory, .* 1 worker has 2.1 GB on cuda:1"):
            needs.check_memory(facts, runs, [Place("cuda:1", 1.0)])
    assert asked == ["cuda:1"] * (need > 2**30)


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bf16"), ("cuda:0", "bf16"), ("cuda:0", "fp32")])
@pytest.mark.parametrize("free", [99, 100])
def test_a_host_passes_through_ordinary_memory_in_fp32(monkeypatch, caplog, device, precision, free):
    monkeypatch.setattr(needs, "free_memory", lambda: 2 * free)
    monkeypatch.setattr(needs, "_said", lambda size: f"{size} B")
    facts, runs = {"1": found(50, 50, 100), "2": found(60, 10, 20)}, dict.fromkeys("12", run_of(precision))
    here = [Place(device, 0.5)] * 2
    needs.check_memory(facts, runs, here)
    assert caplog.messages == [
        "'a' takes up to 100 B of ordinary memory while it is read in fp32 (less where its files are fp32), "
        "and each of 2 workers has 99 B; should a worker be killed, take fewer engine.workers"][: free == 99]


def test_what_reading_takes_is_what_from_pretrained_gives(sets, make_host, tmp_path, monkeypatch):
    got = tasks(sets, make_host, "llama", *ONE, "grid.inits=[scratch]", "precision=bf16")
    planned, seen = plan(got.grid), []
    setup = Setup(tmp_path, got.sources, got.overlap, TrackingSpec("disabled", "a", tmp_path))
    facts = preview(planned, planned.runs, setup)
    monkeypatch.setattr(host, "narrow", lambda model: seen.append(_size(SimpleNamespace(model=model))))
    for run_id, run in planned.runs.items():
        load_host(run.host, "cpu", "bf16")
        assert facts[run_id]["loading"] == seen[-1]
        assert run.method or facts[run_id]["memory"]["bf16"] < seen[-1]
    assert len({*seen}) == 2


def test_where_workers_are_elsewhere_the_need_is_said(caplog):
    caplog.set_level("INFO")
    runs = {"1": run_of("fp32", "b")}
    needs.check_memory({"1": found(26 * 10**9, 0)}, runs, [])
    assert caplog.messages == needs.need_lines({"1": found(26 * 10**9, 0)}, runs) == [
        "memory of a worker: at least 26.0 GB ('a' in fp32 with an extraction from 'b'), activations beside"]
    assert needs.need_lines({"1": found(2**30, 0, 2**30)}, runs) == []
    runs = {"1": run_of("bf16", "b")}
    assert needs.need_lines({"1": found(26 * 10**9, 14 * 10**9, 26 * 10**9)}, runs) == [
        "memory of a worker: at least 14.0 GB ('a' in bf16 with an extraction from 'b'), activations beside",
        "ordinary memory of a worker: up to 26.0 GB while 'a' is read, in fp32"]


def test_a_module_in_training_counts_with_its_optimiser(sets, make_host, tmp_path):
    got = tasks(sets, make_host, "llama", f"results={tmp_path}/results", *ONE, "grid.inits=[scratch]")
    planned = plan(got.grid)
    setup = Setup(tmp_path, got.sources, got.overlap, TrackingSpec("disabled", "a", tmp_path))
    facts = preview(planned, planned.runs, setup)
    weights = _size(load_host(make_host("llama", 32, 2, 4, 1)))
    # rank 4 on query and output, key and value, gate, up and down of both layers, embedding and head
    pairs = 4 * (2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)) + 2 * (31 + 32))
    needed = {run.method is not None: facts[run_id]["memory"]["fp32"] for run_id, run in planned.runs.items()}
    assert needed == {False: weights, True: weights + 4 * STATE * pairs}
