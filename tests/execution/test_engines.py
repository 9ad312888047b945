"""What all engines share: a list of jobs, workers that take from it, and a command that follows them."""

import threading
from types import SimpleNamespace

import pytest

from portability.core.errors import GracefulStop, UserError
from portability.execution import worker as workers
from portability.execution.engines import base
from portability.execution.engines.base import Ended, Engine
from portability.execution.leases import Leases
from portability.execution.scheduler import run_jobs
from portability.execution.worker import Job, Setup, Worker, work
from portability.hosts.devices import Place
from portability.store import Result, Store
from portability.tracking.runs import TrackingSpec
from support.plans import finish, ledger, origin_job


class Pretended(Engine):
    """An engine whose workers are what a test says."""

    def __init__(self, root, act=None):
        super().__init__(None, Setup(root, [], "drop", TrackingSpec("disabled", "p", root)))
        self.act, self.started = act, []

    @staticmethod
    def check(conf):
        pass

    def most(self):
        return 2 if self.act else 0

    def start(self, jobs, count):
        self.started.append((jobs, count))
        return [f"{len(self.started)}-{number}" for number in range(count)]

    def look(self):
        over = {name: how for name in self.alive if (how := self.act(name)) is not None} if self.act else {}
        return self.alive - set(over), over

    def drain(self):
        pass


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(Engine, "poll_seconds", 0.01)
    monkeypatch.setattr(base, "SCAN_SECONDS", 0.0)


def hand(store, claims=None):
    """A worker that finishes what it is given."""
    taken = []

    def run(job):
        taken.append([run.run_id for run in job.runs])
        finish(store, job)

    return SimpleNamespace(context=SimpleNamespace(store=store), claims=claims or Leases(store.root),
                           stopped=threading.Event(), run=run, taken=taken)


def test_runs_that_another_command_has_in_hand_are_waited_for_and_are_free_once_it_is_gone(tmp_path):
    book, engine = ledger(tmp_path, seeds=2), Pretended(tmp_path)
    job = origin_job(book)
    one, other = job.runs
    engine.submit([job])
    events = engine.events()
    with Leases(tmp_path).held([one.run_id, other.run_id]):
        finish(book.store, Job([one], job.marks))
        thread = threading.Thread(target=lambda: [next(events)])
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "a run that is in hand has ended"
    thread.join(10)
    assert list(engine.jobs) == [other.run_id] and not engine.claims.all()


def test_a_death_is_told_with_all_that_the_worker_had_in_hand(tmp_path):
    book = ledger(tmp_path, seeds=2)
    job = origin_job(book)

    def act(name):
        claims = Leases(tmp_path, name)
        for run in job.runs:
            claims._take(run.run_id)
        return "the worker ended with exit code -9"

    engine = Pretended(tmp_path, act)
    engine.submit([job])
    end = next(event for event in engine.events() if isinstance(event, Ended))
    assert engine.started[0][1] == 1 and end.death == "the worker ended with exit code -9"
    assert sorted(end.runs) == sorted(run.run_id for run in job.runs)
    assert not engine.jobs and not Leases(tmp_path).all()
    assert [len(again.runs) for again in book.settle(end.runs, end.death)] == [1, 1]
    mine = hand(book.store)  # lives, and still has the whole stack in its list
    work([job], mine, 0.0)
    assert mine.taken == [[run.run_id] for run in job.runs], "a stack that killed one worker kills no other"


def test_an_origin_that_fails_again_ends_the_command_and_not_its_patience(tmp_path):
    """What it blocked before is blocked as before, so that nothing new is written of it."""
    first = ledger(tmp_path, seeds=1)
    origin = origin_job(first).runs[0].run_id

    def begin(jobs, count):
        for job in jobs:
            for run in job.runs:
                if run.run_id == origin:
                    book.store.fail(origin, {"error": "boom", "kind": "ValueError"})
                elif run.origin is None and not book.store.has(run.run_id):
                    finish(book.store, Job([run], job.marks))
        return []

    for _ in range(2):
        book, engine = ledger(tmp_path, seeds=1, retry="failed"), Pretended(tmp_path, lambda name: None)
        engine.start = begin
        meter = SimpleNamespace(hear=lambda stage: None, settle=lambda: None)
        thread = threading.Thread(target=run_jobs, args=(book, engine, meter), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive() and not engine.jobs
        assert {book.todo[i].origin for i in book.failed} == {None, origin}


def test_workers_that_end_before_they_begin_are_not_started_for_ever(tmp_path):
    engine = Pretended(tmp_path, lambda name: "exit code 7")
    engine.submit(ledger(tmp_path, seeds=2).jobs())
    with pytest.raises(UserError, match="workers in a row ended before they had begun; the last: exit code "
                       "7"):
        list(engine.events())
    assert len(engine.started) == 2 and all(count <= 2 for _, count in engine.started)


def test_a_worker_takes_whole_jobs_first_and_parts_before_it_idles(tmp_path):
    book = ledger(tmp_path, seeds=2)
    origins = [run.run_id for run in origin_job(book).runs]
    jobs = book.jobs()
    with Leases(tmp_path).held(origins):  # another is at them
        mine = hand(book.store)
        mine.stopped.wait = lambda _: mine.stopped.set()  # it would wait now
        work(jobs, mine, 0.0)
    names = [{(book.todo[i].host.name, book.todo[i].init.name) for i in ids} for ids in mine.taken]
    assert names == [{("tuned-base", "bare")}, {("tuned-base", "scratch")}] and mine.stopped.is_set()
    rest = hand(book.store)
    work(jobs, rest, 0.0)
    assert rest.taken[0] == origins
    assert not any(set(one) & set(other) for one in mine.taken for other in rest.taken)
    assert all(map(book.store.has, book.todo))


def test_a_worker_leaves_what_waits_for_nobody_and_what_a_dead_one_had(tmp_path):
    book = ledger(tmp_path, seeds=1)
    origin = origin_job(book).runs[0].run_id
    book.store.fail(origin, {"error": "boom", "kind": "ValueError"})
    claims = Leases(tmp_path, "dead")
    bare = next(run_id for run_id, run in book.todo.items() if run.method is None)
    claims._take(bare)
    mine = hand(book.store)
    work(book.jobs(), mine, 0.0)
    taken = {run_id for ids in mine.taken for run_id in ids}
    assert taken == {i for i, run in book.todo.items() if run.origin is None} - {origin, bare}
    again = hand(book.store, claims)  # restarted under the same name, as Slurm does
    work(book.jobs(), again, 0.0)
    assert again.taken == [[bare]]


def test_dependents_wait_for_all_marks_of_their_origin_and_a_limit_is_kept(tmp_path):
    book = ledger(tmp_path, seeds=1)
    origin = origin_job(book).runs[0].run_id
    book.store.commit(origin, Result({"train_info": {"metrics": [{"updates": 7}]}}))
    with Leases(tmp_path).held([origin]):
        mine, other = hand(book.store), hand(book.store)
        work(book.jobs(), mine, 0.0, most=1)
        assert len(mine.taken) == 1
        other.stopped.wait = lambda _: other.stopped.set()
        work(book.jobs(), other, 0.0)
    assert not any(book.todo[run_id].origin == origin for ids in other.taken for run_id in ids)


def test_a_run_that_leaves_nothing_behind_has_failed(tmp_path, monkeypatch, data_folders):
    from portability.data.splits import DataSource
    from portability.execution import execute

    book = ledger(tmp_path, seeds=1)
    sources = (DataSource("one", path=str(data_folders["one"])),)
    setup = Setup(tmp_path, sources, "drop", TrackingSpec("disabled", "", tmp_path))
    monkeypatch.setattr(execute, "execute", lambda runs, marks, context: None)
    job = origin_job(book)
    Worker(setup, Place("cpu", 1.0)).run(job)
    assert "neither record nor failure" in Store(tmp_path).failures()[job.runs[0].run_id]["error"]


def test_a_fault_that_no_run_is_blamed_for_leaves_the_claims_to_whoever_counts_deaths(tmp_path):
    for error in (RuntimeError("the device is lost"), AttributeError("of a plug-in"), MemoryError()):
        with pytest.raises(type(error)), Leases(tmp_path, "one").held(["a"]):
            raise error
    assert set(Leases(tmp_path).all()) == {"a"}
    with pytest.raises(OSError), Leases(tmp_path).held(["b"]):
        raise OSError("the disk is full")
    with pytest.raises(GracefulStop), Leases(tmp_path).held(["c"]):
        raise GracefulStop
    assert set(Leases(tmp_path).all()) == {"a"}


def test_a_worker_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.1)
    book = ledger(tmp_path, seeds=1)
    with Leases(tmp_path).held([origin_job(book).runs[0].run_id]):
        work(book.jobs(), hand(book.store), 0.01)
    assert any(run.origin and not book.store.has(run_id) for run_id, run in book.todo.items())
