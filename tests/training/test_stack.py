"""Stacks: cut to the memory there is, halved when it was too little, and gone on with after a kill."""

import numpy as np
import pytest
import torch

from portability.core.stages import TRAINING
from portability.execution import execute
from portability.execution.execute import WorkerContext
from portability.planning.plan import plan
from portability.store import Store
from portability.tasks import classification
from portability.training import memory, stack
from portability.training import trainer as engine
from support.studies import small


def scratch_runs(data_folders, make_host, *overrides, seeds=5):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[scratch]",
                  f"grid.seeds={list(range(seeds))}", "grid.budgets=[4,8,12]", *overrides)
    planned = plan(study.grid)
    runs = [r for r in planned.runs.values() if r.method and r.host.name == study.grid.pairs[0][1].name]
    return study, runs, {i: sorted(marks) for i, marks in planned.marks.items()}


def bits(store, runs):
    return [np.concatenate([t.numpy().ravel() for _, t in sorted(store.tensors(r.run_id,
                                                                               "module")[0].items())]
                           + [store.predictions(r.run_id)["margin"].ravel()]) for r in runs]


@pytest.fixture
def counted(monkeypatch):
    """Members of every update that was made, and every stack that was begun."""
    seen = {"updates": [], "stacks": [], "passes": []}
    update, start = engine.Trainer.update, engine.Trainer.__init__

    def counting(self, step, *rest):
        seen["updates"].append(len(self.members))
        update(self, step, *rest)

    def starting(self, scorer, members, spec, passes=1):
        seen["stacks"].append(len(members))
        seen["passes"].append(passes)
        start(self, scorer, members, spec, passes)

    monkeypatch.setattr(engine.Trainer, "update", counting)
    monkeypatch.setattr(engine.Trainer, "__init__", starting)
    return seen


@pytest.fixture(scope="module")
def whole(data_folders, make_host, tmp_path_factory):
    """Five runs, trained in one stack."""
    study, runs, marks = scratch_runs(data_folders, make_host)
    store = Store(tmp_path_factory.mktemp("whole"))
    execute.execute(runs, marks, WorkerContext(store, study.data))
    return study, runs, marks, bits(store, runs)


def test_a_stack_is_cut_to_what_fits(whole, tmp_path, monkeypatch, counted):
    study, runs, marks, wanted = whole
    monkeypatch.setattr(execute, "stack_size", lambda one, wanted, device, share: 2)
    store = Store(tmp_path)
    execute.execute(runs, marks, WorkerContext(store, study.data))
    assert counted["stacks"] == [1, 2, 2] and all(np.array_equal(a, b)
                                                  for a, b in zip(bits(store, runs), wanted, strict=True))


def test_a_batch_that_does_not_fit_is_read_in_parts(whole, tmp_path, monkeypatch, counted, caplog):
    study, runs, marks, wanted = whole
    fits, needed = iter([0, 2]), []
    monkeypatch.setattr(execute, "stack_size",
                        lambda one, wanted, device, share: needed.append(one) or next(fits))
    store = Store(tmp_path)
    with caplog.at_level("INFO"):
        execute.execute(runs, marks, WorkerContext(store, study.data))
    assert counted["stacks"] == [1, 2, 2] and counted["passes"] == [2, 2, 2]
    assert needed[1] < needed[0]  # each part is measured
    assert "a batch of 16 does not fit into memory at once: 8 examples at a time" in caplog.text
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(bits(store, runs), wanted, strict=True))


def test_what_scoring_takes_cuts_stacks_and_no_batches(whole, tmp_path, monkeypatch, counted, caplog):
    study, runs, marks, wanted = whole
    scoring = 10**12
    monkeypatch.setattr(classification.Scorer, "scoring_bytes", lambda self, test, size: scoring)
    monkeypatch.setattr(execute, "stack_size",
                        lambda one, wanted, device, share: 0 if one == scoring else wanted)
    store = Store(tmp_path)
    with caplog.at_level("INFO"):
        execute.execute(runs, marks, WorkerContext(store, study.data))
    assert counted["stacks"] == [1] * 5 and counted["passes"] == [1] * 5  # a part of a batch scores no less
    assert "does not fit into memory" not in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(bits(store, runs), wanted, strict=True))


def on_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory")


def on_cpu():
    torch.empty(2**50)


@pytest.mark.parametrize(("room", "fixed", "passes", "tried"), [
    (16_000, 0, 1, [1, 2, 16]), (8_000, 0, 2, [1, 2, 8]), (2_000, 0, 8, [1, 2]), (1_500, 0, 16, [1]),
    (10, 0, 16, [1]), (22_000, 6_000, 1, [1, 2, 16]),  # what does not grow with the batch counts once
])
def test_what_does_not_fit_is_never_read_to_be_measured(whole, tmp_path, monkeypatch, counted, room, fixed,
                                                        passes, tried):
    study, runs, marks, wanted = whole
    read = []

    def thousand_an_example(scorer, start, rows, frozen):
        read.append(len(rows[0]))
        return fixed + 1000 * len(rows[0])

    monkeypatch.setattr(execute, "member_bytes", thousand_an_example)
    monkeypatch.setattr(classification.Scorer, "scoring_bytes", lambda self, test, size: 0)
    monkeypatch.setattr(memory, "without_gaps", lambda: True)
    for module in (execute, memory):
        monkeypatch.setattr(module, "room_of", lambda device, share: room)
    store = Store(tmp_path)
    execute.execute(runs[:1], marks, WorkerContext(store, study.data))
    assert counted["passes"] == [passes] and read == tried and not store.failures()
    assert np.allclose(bits(store, runs[:1])[0], wanted[0], atol=1e-4)


@pytest.mark.parametrize("lack", [on_gpu, on_cpu])
def test_a_batch_that_cannot_even_be_measured_is_read_in_parts(whole, tmp_path, monkeypatch, counted, lack):
    study, runs, marks, wanted = whole
    measure = execute.member_bytes

    def short(scorer, start, rows, *rest):
        if len(rows[0]) > 4:
            lack()
        return measure(scorer, start, rows, *rest)

    monkeypatch.setattr(execute, "member_bytes", short)
    store = Store(tmp_path)
    execute.execute(runs[:1], marks, WorkerContext(store, study.data))
    assert counted["passes"] == [4] and not store.failures()
    assert np.allclose(bits(store, runs[:1])[0], wanted[0], atol=1e-4)


def test_out_of_memory_halves_the_stack_and_loses_nobody(whole, tmp_path, monkeypatch, counted):
    study, runs, marks, wanted = whole
    update = engine.Trainer.update

    def short(self, step, *rest):
        if len(self.members) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        update(self, step, *rest)

    monkeypatch.setattr(engine.Trainer, "update", short)
    store = Store(tmp_path)
    execute.execute(runs, marks, WorkerContext(store, study.data))
    assert counted["stacks"] == [5, 2, 3, 1, 2] and sum(counted["updates"]) == 5 * 12 and not store.failures()
    assert all(np.array_equal(a, b) for a, b in zip(bits(store, runs), wanted, strict=True))


def test_what_was_finished_before_memory_ran_out_is_not_trained_again(whole, tmp_path, monkeypatch, counted):
    study, runs, marks, _ = whole
    monkeypatch.setattr(execute, "stack_size", lambda one, wanted, device, share: 2)
    update, broken = engine.Trainer.update, []

    def short(self, step, *rest):
        if len(counted["stacks"]) == 2 and not broken:
            broken.append(step)
            raise torch.OutOfMemoryError("CUDA out of memory")
        update(self, step, *rest)

    monkeypatch.setattr(engine.Trainer, "update", short)
    store = Store(tmp_path)
    execute.execute(runs, marks, WorkerContext(store, study.data))
    assert broken and sum(counted["updates"]) == 5 * 12 and all(store.has(r.run_id) for r in runs)


def test_a_run_that_does_not_fit_alone_fails_with_a_sentence(whole, tmp_path, monkeypatch):
    study, runs, marks, _ = whole

    def never(self, step, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.Trainer, "update", never)
    store = Store(tmp_path)
    execute.execute(runs[:2], marks, WorkerContext(store, study.data))
    errors = [failure["error"] for failure in store.failures().values()]
    assert len(errors) == 2 and all("does not fit into the device's memory; use a smaller" in error
                                    for error in errors)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill_after(store, study, runs, marks, updates):
    left = [updates]

    def die(stage):
        left[0] -= stage.doing == TRAINING
        if not left[0]:
            raise Killed

    with pytest.raises(Killed):
        execute.execute(runs, marks, WorkerContext(store, study.data, die, checkpoint_seconds=0))


def test_a_killed_stack_goes_on_from_its_last_mark_in_any_other_stack(whole, tmp_path, counted):
    study, runs, marks, wanted = whole
    store = Store(tmp_path)
    kill_after(store, study, runs[:3], marks, 11)  # in its tenth update; the ninth was kept
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3 and not any(store.has(r.run_id) for r in runs)
    counted["updates"].clear()
    told = []
    # three go on from 8, two begin
    execute.execute(runs, marks, WorkerContext(store, study.data, told.append))
    # the bar counts what was spared
    assert {stage.updates for stage in told if len(stage.runs) == 3} == set(range(9, 13))
    assert {stage.updates for stage in told if len(stage.runs) == 2} == set(range(13))
    last = {run_id: (stage.updates, stage.scored + stage.part) for stage in told for run_id in stage.runs}
    assert last == {run.run_id: (12, 4.0) for run in runs}, "all updates and all marks, scored or kept"
    assert sorted(counted["updates"]) == [2] * 12 + [3] * 3
    assert all(np.array_equal(a, b) for a, b in zip(bits(store, runs), wanted, strict=True))
    assert not list((tmp_path / "checkpoints").iterdir())
    for run in runs:
        assert [m["updates"] for m in store.read(run.run_id)["train_info"]["metrics"]] == [0, 4, 8, 12]
    losses = [store.read(run.run_id)["train_info"]["train_loss"] for run in runs]
    assert all([at for at, _ in points] == [10, 12] for points in losses)


def test_a_broken_checkpoint_or_one_without_a_wanted_mark_starts_the_run_anew(whole, tmp_path, counted,
                                                                              caplog):
    study, runs, marks, wanted = whole
    store = Store(tmp_path)
    kill_after(store, study, runs[:3], {i: [m for m in at if m != 4] for i, at in marks.items()}, 10)
    (tmp_path / "checkpoints" / f"{runs[0].run_id}.safetensors").write_bytes(b"half")
    counted["updates"].clear()
    execute.execute(runs[:3], marks, WorkerContext(store, study.data))
    assert counted["updates"] == [3] * 12 and "cannot be read" in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(bits(store, runs[:3]), wanted, strict=False))


def test_a_checkpoint_of_other_library_versions_is_not_used(whole, tmp_path, counted, monkeypatch):
    study, runs, marks, _ = whole
    store = Store(tmp_path)
    kill_after(store, study, runs[:1], marks, 10)
    monkeypatch.setattr(stack, "packages", lambda: {"adapters": "another"})
    counted["updates"].clear()
    execute.execute(runs[:1], marks, WorkerContext(store, study.data))
    assert counted["updates"] == [1] * 12


def test_a_run_with_one_mark_is_kept_on_the_way_too(whole, tmp_path, counted):
    study, runs, marks, wanted = whole
    store, last = Store(tmp_path), {i: [12] for i in marks}
    kill_after(store, study, runs[:1], last, 8)
    counted["updates"].clear()
    execute.execute(runs[:1], last, WorkerContext(store, study.data))
    assert counted["updates"] == [1] * 6
    assert np.array_equal(store.predictions(runs[0].run_id)["margin"][-1], wanted[0][-len(store.predictions(
        runs[0].run_id)["label"]):])


def test_a_lost_device_ends_the_worker_and_records_nothing(whole, tmp_path, monkeypatch):
    study, runs, marks, _ = whole

    class Lost(RuntimeError):
        pass

    def broken(self, step, *rest):
        raise Lost("an illegal memory access was encountered")

    monkeypatch.setattr(execute, "LOST", Lost)
    monkeypatch.setattr(engine.Trainer, "update", broken)
    store = Store(tmp_path)
    with pytest.raises(Lost):
        execute.execute(runs, marks, WorkerContext(store, study.data))
    assert not store.failures()


def test_nothing_is_kept_where_little_would_be_lost(whole, tmp_path):
    study, runs, marks, _ = whole
    store = Store(tmp_path)
    execute.execute(runs[:1], marks, WorkerContext(store, study.data, checkpoint_seconds=600))
    assert not (tmp_path / "checkpoints").exists()


def test_starts_that_are_alike_are_scored_once(data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[ported]", "grid.ports=[pad,repeat]",
                  "grid.seeds=[0]", "grid.budgets=[4]")
    planned, store, sizes = plan(study.grid), Store(tmp_path), []
    marks = {i: sorted(m) for i, m in planned.marks.items()}
    for kind in ("scratch", "bare"):
        execute.execute([r for r in planned.runs.values() if r.init.kind == kind
                         and r.host.name.endswith("raw-base")], marks,
                        WorkerContext(store, study.data))
    original = classification.Scorer.predict
    monkeypatch.setattr(classification.Scorer, "predict", lambda scorer, parameters, *rest: sizes.append(
        len(next(iter(parameters.values())))) or original(scorer, parameters, *rest))
    ported = [r for r in planned.runs.values() if r.init.kind == "ported"]
    execute.execute(ported, marks, WorkerContext(store, study.data))
    # between hosts of one shape the strategies agree; at the next mark both are scored
    assert sizes == [1, 2]
    one, two = (store.predictions(r.run_id)["margin"] for r in ported)
    assert np.array_equal(one, two)


def test_hosts_and_texts_are_loaded_once_a_worker(data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, "method=[lora,adapter]", "grid.inits=[ported,scratch]",
                  "grid.seeds=[0]")
    planned, loads = plan(study.grid), []
    for module, name in ((execute, "load_host"), (classification, "encode")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, original=original: loads.append(name)
                            or original(*args))
    context = WorkerContext(Store(tmp_path), study.data)
    for run in planned.runs.values():
        execute.execute([run], {run.run_id: sorted(planned.marks[run.run_id])}, context)
    # two hosts; of each the training and the test set
    assert loads.count("load_host") == 2 and loads.count("encode") == 4
    assert all(context.store.has(i) for i in planned.runs)


def test_hosts_make_room_when_memory_is_short(data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, "method=lora", "grid.seeds=[0]")
    context = WorkerContext(Store(tmp_path), study.data)
    one, two = ([r for r in plan(study.grid).runs.values() if r.host == host][0]
                for host in study.grid.pairs[0])
    monkeypatch.setattr(execute, "free_bytes", lambda device, share: 100)
    first = context.host(one.host)
    assert context.host(two.host) is not first and len(context.hosts) == 1


def test_a_stack_tells_its_size_and_padding_in_the_record(whole, tmp_path):
    study, runs, marks, _ = whole
    store = Store(tmp_path)
    execute.execute(runs[:3], marks, WorkerContext(store, study.data))
    info = store.read(runs[0].run_id)["train_info"]
    assert info["stack"] == 3 and 1.0 <= info["padded_tokens"] / info["tokens"] < 1.5
