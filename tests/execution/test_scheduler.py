"""What is handed out, what is tried again, and what another command has in hand."""

from collections import defaultdict

import pytest

from portability.core.errors import UserError
from portability.core.stages import SCORING
from portability.execution.engines import ENGINES
from portability.execution.progress import Meter
from portability.execution.scheduler import RETRIES, Ledger
from portability.execution.worker import Job
from portability.planning.plan import plan
from portability.run import command, compose
from portability.store import Result, Store
from support.plans import finish, ledger, origin_job
from support.studies import slow_to_score, small


def ids_of(job):
    return [run.run_id for run in job.runs]


def test_only_the_guilty_run_of_a_dying_stack_fails(tmp_path):
    book = ledger(tmp_path)
    jobs = book.jobs()
    stack = next(job for job in jobs if len(job.runs) == 8 and job.runs[0].method)
    guilty = stack.runs[3].run_id
    queue, sizes = [stack], []
    while queue:
        job = queue.pop(0)
        sizes.append(len(job.runs))
        if guilty in [run.run_id for run in job.runs]:
            queue += book.settle(ids_of(job), "the worker ended with exit code -9")
        else:
            finish(book.store, job)
            assert book.settle(ids_of(job), None) == []
    assert sizes.count(1) == 1 + (RETRIES + 1) and max(sizes) == 8
    blocked = {run_id for run_id, how in book.failed.items() if how == "blocked"}
    assert set(book.failed) - blocked == {guilty}
    assert all(book.planned.runs[run_id].origin == guilty for run_id in blocked)
    assert "exit code -9" in book.store.failures()[guilty]["error"]


def test_what_an_origin_blocks_is_ready_again_once_the_origin_is_done(tmp_path):
    book = ledger(tmp_path, seeds=1)
    origin = origin_job(book)
    book.store.fail(origin.runs[0].run_id, {"error": "boom", "kind": "RuntimeError"})
    # an error of its own is not tried again, and what starts from it is blocked
    assert book.settle(ids_of(origin), None) == []
    assert "blocked" in book.failed.values()
    finish(book.store, origin)
    again = Ledger(book.planned, book.store, 8, 1)
    ready = [run.run_id for job in again.jobs() for run in job.runs]
    assert set(book.failed) - {origin.runs[0].run_id} <= set(ready)


@pytest.mark.parametrize(("kind", "retry", "tried"), [
    ("RuntimeError", "died", False), ("RuntimeError", "failed", True), ("TimedOut", "died", False),
    ("WorkerDied", "died", True)])
def test_a_repeated_command_tries_again_what_died_and_only_when_asked_what_failed_by_itself(tmp_path, kind,
                                                                                            retry, tried):
    book = ledger(tmp_path, seeds=1)
    origin = origin_job(book).runs[0].run_id
    blocked = [run_id for run_id, run in book.planned.runs.items() if run.origin == origin]
    book.store.fail(origin, {"error": "boom", "kind": kind})
    for run_id in blocked:
        book.store.fail(run_id, {"error": "blocked", "kind": "Blocked", "origin": origin})
    again = ledger(tmp_path, seeds=1, retry=retry)
    ready = {run.run_id for job in again.jobs() for run in job.runs}
    assert (origin in ready) == tried and len(again.failed) == (0 if tried else 1 + len(blocked))
    assert [again.store.attempts(run_id) for run_id in blocked] == [1] * len(
        blocked), "the same failure was written twice"


def test_a_plan_comes_in_the_order_in_which_its_runs_start_from_each_other(tmp_path):
    book = ledger(tmp_path, seeds=2)
    ids = [run.run_id for job in book.jobs() for run in job.runs]
    assert sorted(ids) == sorted(book.planned.runs)
    assert all(ids.index(run.origin) < ids.index(run.run_id) for run in book.todo.values() if run.origin)


def test_an_origin_whose_module_is_broken_is_trained_again(tmp_path):
    import torch
    book = ledger(tmp_path, seeds=1)
    job = origin_job(book)
    run = job.runs[0]
    record = {"run_id": run.run_id,
              "train_info": {"metrics": [{"updates": mark} for mark in job.marks[run.run_id]]}}
    book.store.commit(run.run_id, Result(record, {"module": {"a": torch.ones(3)}}))
    assert run.run_id not in ledger(tmp_path, seeds=1).todo
    path = book.store.folder(run.run_id) / "module.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = ledger(tmp_path, seeds=1)
    assert run.run_id in again.todo and "other bytes" in again.broken[run.run_id]
    assert book.store.has(run.run_id), "it is set aside before it was said that the work may begin"


def test_a_run_that_failed_by_itself_is_not_handed_out_again_when_its_origin_is(tmp_path):
    book = ledger(tmp_path, seeds=1)
    origin = origin_job(book).runs[0].run_id
    failed, other = [run_id for run_id, run in book.planned.runs.items() if run.origin == origin]
    book.store.fail(failed, {"error": "boom", "kind": "RuntimeError"})
    again = ledger(tmp_path, seeds=1)
    ready = {run.run_id for job in again.jobs() for run in job.runs}
    assert failed not in ready and ready >= {origin, other} and again.failed[failed] == "boom"


def test_a_run_that_wrote_its_failure_before_its_worker_died_is_not_tried_again(tmp_path):
    book = ledger(tmp_path, seeds=2)
    job = origin_job(book)
    one, other = (run.run_id for run in job.runs)
    book.store.fail(one, {"error": "boom", "kind": "UserError"})
    assert [ids_of(again) for again in book.settle(ids_of(job), "exit code -9")] == [[other]]
    assert book.store.attempts(one) == 1


def test_only_what_was_chosen_is_carried_out(tmp_path):
    book = ledger(tmp_path, seeds=2)
    some = [run_id for run_id, run in book.planned.runs.items() if run.seed == 1]
    assert set(ledger(tmp_path, seeds=2, chosen=some).todo) == set(some)


def test_runs_that_no_other_needs_come_with_those_they_may_train_with(tmp_path):
    jobs = ledger(tmp_path, seeds=2).jobs()
    kinds = [sorted(run.init.name for run in job.runs) for job in jobs
             if job.runs[0].host.name == "tuned-base"]
    assert kinds == [["bare"], ["ported", "ported", "sampled", "sampled", "scratch", "scratch"]]


@pytest.mark.parametrize("what", ["all", "bare hosts"])
def test_the_bar_is_not_full_before_all_is_scored(what, many_questions, data_folders, make_host, tmp_path,
                                                  monkeypatch):
    seen, scored, hear = [], defaultdict(set), Meter.hear

    def hears(self, stage):
        hear(self, stage)
        seen.append((self.part, self.updates))
        if stage.doing == SCORING:
            scored[tuple(stage.runs)].add(self.part)

    monkeypatch.setattr(ENGINES["inprocess"], "poll_seconds", 0.005)  # a fast machine scores all in a second
    monkeypatch.setattr(Meter, "hear", hears)
    monkeypatch.setattr(Meter, "settle", lambda self, settle=Meter.settle: (settle(self), seen.append(
        (self.part, self.updates))))
    only = ["only={init: bare}", "grid.inits=[bare]"][:what == "bare hosts"]
    study = small(data_folders, make_host, *slow_to_score(many_questions, tmp_path), *only)
    assert command(study) == 0
    parts, updates = zip(*seen, strict=True)
    assert list(parts) == sorted(parts) and parts[-1] == 1, "it went back, or ended before the end"
    assert len(scored) >= 2 and min(map(len, scored.values())) > 3, "it stood while a run was scored"
    made = [part for part, count in seen if count == updates[-1]]
    assert made[0] < 0.95, "all is trained, much is to be scored: the bar is full"


def test_the_bar_counts_what_was_spared_and_goes_back_where_a_run_begins_anew(tmp_path):
    from portability.core.stages import PREPARING, TRAINING, Stage
    from portability.planning.cost import cost_units

    book = ledger(tmp_path, seeds=2)
    job = origin_job(book)
    ids, run = [run.run_id for run in job.runs], job.runs[0]
    meter = Meter(book)
    whole = sum(cost_units(one, one.train.updates, len(book.planned.marks[i]))
                for i, one in book.todo.items())
    meter.hear(Stage(ids, TRAINING, 150, 0))
    assert meter.part == pytest.approx(2 * cost_units(run, 150, 0) / whole) and meter.updates == 300
    assert {kind.name: dict(kind.doing) for kind in meter.kinds()}["origin"] == {"training": 2}
    meter.hear(Stage(ids, SCORING, 200, 0, 0.25))
    assert meter.part == pytest.approx(2 * (cost_units(run, 200, 0) + 0.25 * cost_units(run, 0, 1)) / whole)
    meter.hear(Stage(ids, PREPARING))  # its worker died
    assert meter.part == 0 and meter.updates == 0
    # at marks that were not asked for here, too
    meter.hear(Stage([*ids, "somebody else's"], SCORING, 200, 5, 1.0))
    assert meter.part == pytest.approx(2 * cost_units(run, 200, 1) / whole)
    finish(book.store, job)
    book.settle(ids_of(job), None)
    meter.settle()
    meter.hear(Stage(ids, TRAINING, 3, 0))  # said before the end, heard after it
    assert meter.part == pytest.approx(2 * cost_units(run, 200, 1) / whole)
    kind = next(kind for kind in meter.kinds() if kind.name == "origin")
    assert kind.done == 2 and not kind.doing


def test_what_failed_and_what_it_blocks_is_not_waited_for(tmp_path):
    book = ledger(tmp_path, seeds=1)
    meter = Meter(book)
    origin = origin_job(book).runs[0].run_id
    book.store.fail(origin, {"error": "boom", "kind": "ValueError"})
    for job in book.jobs():
        finish(book.store, Job([run for run in job.runs if origin not in (run.run_id, run.origin)],
                               job.marks))
        assert book.settle(ids_of(job), None) == []
    meter.settle()
    assert meter.part == pytest.approx(1) and meter.updates > 0
    assert sum(kind.failed for kind in meter.kinds()) == len(book.failed) > 1


def test_a_study_goes_on_with_the_major_version_of_transformers_that_it_began_with(tmp_path):
    """Modules of the one are starts of the other's, and analysis would leave one of them out."""
    study = compose(["+sweep=smoke", "method=lora", f"results={tmp_path}", "tracking.wandb=disabled"])
    store, run_id = Store(tmp_path / study.name), next(iter(plan(study.grid).runs))
    store.commit(run_id, Result({"train_info": {"metrics": []}, "meta_info": {
        "package_info": {"transformers": "7.0.1"}}}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="holds runs made with transformers 7, this is .* study=NAME"):
        command(study)
    assert sorted(tmp_path.rglob("*")) == before
