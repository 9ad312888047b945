"""No failure is lost, none costs a look at the others."""

import datetime
import json
import multiprocessing
import os

import pytest

from portability.store import Store

ID = "0123456789abcdef"


def fail_often(root, number):
    store = Store(root)
    for place in range(25):
        store.fail(ID, {"error": f"{number} {place}"})


@pytest.mark.system
def test_processes_that_fail_one_run_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fail_often, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = [json.loads(path.read_text()) for path in (tmp_path / "failures").iterdir()]
    assert len({failure["error"] for failure in files}) == len(files) == 75
    assert sorted(failure["attempt"] for failure in files) == list(range(1, 76))
    assert Store(tmp_path).attempts(ID) == 75 and Store(tmp_path).failures()[ID]["attempt"] == 75


def test_failing_a_run_never_lists_the_failures_of_others(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.fail("f" * 16, {"error": "another"})

    def never(*args, **kwargs):
        raise AssertionError("listed")

    monkeypatch.setattr(os, "scandir", never)
    monkeypatch.setattr(os, "listdir", never)
    assert [store.fail(ID, {"error": "one"}), store.fail(ID, {"error": "two"}), store.attempts(ID)] == [1, 2,
                                                                                                        2]


def test_a_failure_says_when(tmp_path):
    store = Store(tmp_path)
    store.fail(ID, {"error": "x"})
    at = datetime.datetime.fromisoformat(store.failures()[ID]["at"])
    assert at.utcoffset() == datetime.timedelta(0) and at.microsecond == 0
    assert abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < 60


def test_the_tenth_attempt_is_later_than_the_ninth_and_a_torn_one_is_passed_over(tmp_path, caplog):
    store = Store(tmp_path)
    for place in range(10):
        store.fail(ID, {"error": str(place)})
    assert store.failures()[ID]["attempt"] == 10
    (tmp_path / "failures" / f"{ID}-10.json").write_text('{"run_id"')
    assert store.failures()[ID]["attempt"] == 9 and f"{ID}-10" in caplog.text
    assert store.fail(ID, {"error": "next"}) == 11
