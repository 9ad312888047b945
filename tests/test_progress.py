"""What happens to runs whose worker dies."""

from test_plan import grid

from portability.plan import plan
from portability.progress import RETRIES, Ledger
from portability.store import Result, Store


def ledger(tmp_path, seeds=8):
    planned = plan(grid(seeds=list(range(seeds)), methods=grid().methods[:1], pairs=grid().pairs[:1], budgets=[200],
                        relations={"same": grid().data}))
    return Ledger(planned, Store(tmp_path), 8, 1)


def every(book):
    """All jobs that can be had without waiting."""
    found = []
    while jobs := book.ready(True):
        found += jobs
    return found


def finish(store, job):
    for run in job.runs:
        record = {"train_info": {"metrics": [{"updates": mark} for mark in job.marks[run.run_id]]}}
        store.commit(run.run_id, Result(record))


def test_only_the_guilty_run_of_a_dying_stack_fails(tmp_path):
    book = ledger(tmp_path)
    jobs = every(book)
    stack = next(job for job in jobs if len(job.runs) == 8 and job.runs[0].method)
    guilty = stack.runs[3].run_id
    queue, sizes = [stack], []
    while queue:
        job = queue.pop(0)
        sizes.append(len(job.runs))
        if guilty in [run.run_id for run in job.runs]:
            queue += book.settle(job, "the worker ended with exit code -9")
        else:
            finish(book.store, job)
            assert book.settle(job, None) == []
    assert sizes.count(1) == 1 + (RETRIES + 1) and max(sizes) == 8
    blocked = {run_id for run_id, how in book.failed.items() if how == "blocked"}
    assert set(book.failed) - blocked == {guilty}
    assert all(book.planned.runs[run_id].origin == guilty for run_id in blocked)
    assert "exit code -9" in book.store.failures()[guilty]["error"]


def test_what_an_origin_blocks_is_ready_again_once_the_origin_is_done(tmp_path):
    book = ledger(tmp_path, seeds=1)
    first = every(book)
    origin = next(job for job in first if job.runs[0].method and job.runs[0].host.name == "raw-base")
    book.settle(origin, None)  # it left no record: failed, and what starts from it is blocked
    assert book.ready(True) == [] and "blocked" in book.failed.values()
    finish(book.store, origin)
    again = Ledger(book.planned, book.store, 8, 1)
    ready = [run.run_id for job in every(again) for run in job.runs]
    assert set(book.failed) - {origin.runs[0].run_id} <= set(ready)


def test_dependents_wait_for_all_marks_of_their_origin(tmp_path):
    book = ledger(tmp_path, seeds=1)
    origin = next(job for job in every(book) if job.runs[0].method and job.runs[0].host.name == "raw-base").runs[0]
    book.store.commit(origin.run_id, Result({"train_info": {"metrics": [{"updates": 7}]}}))
    assert not any(run.origin == origin.run_id for job in book.ready(True) for run in job.runs)


def test_runs_that_no_other_needs_wait_for_those_they_may_train_with(tmp_path):
    book = ledger(tmp_path, seeds=2)
    first = book.ready(False)
    kinds = {(run.host.name, run.init.name) for job in first for run in job.runs}
    assert kinds == {("raw-base", "scratch"), ("tuned-base", "bare")}  # scratch on tuned-base trains with the ported ones
    for job in first:
        finish(book.store, job)
        assert book.settle(job, None) == []
    (together,) = (job for job in book.ready(False) if job.runs[0].method)
    assert sorted(run.init.name for run in together.runs) == ["ported", "ported", "sampled", "sampled", "scratch", "scratch"]
    assert book.ready(True) == []


def test_an_idle_worker_takes_one_kind_of_the_runs_that_wait_for_company(tmp_path):
    planned = plan(grid(seeds=[0, 1], methods=grid().methods[:2], pairs=grid().pairs[:1], budgets=[200],
                        relations={"same": grid().data}))
    book = Ledger(planned, Store(tmp_path), 8, 1)
    book.ready(False)
    for method in ("adapter", "prefix"):
        (job,) = book.ready(True)
        assert [(run.method.name, run.init.name) for run in job.runs] == [(method, "scratch")] * 2
    assert book.ready(True) == []
