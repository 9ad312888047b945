"""What workers tell is taken whole, in order, and once; what nobody takes stops growing."""

import pytest

from portability.tracking import live
from portability.tracking.live import Live, take, taken


@pytest.fixture
def root(tmp_path):
    (tmp_path / live.FOLDER).mkdir()
    return tmp_path


def heard(root):
    found = []
    taken(root, lambda owner, line: found.append((owner, line)))
    return found


def test_lines_are_heard_once_in_order_at_the_look_after_they_were_taken(root):
    one = Live(root, "one")
    one.begin({"run_id": "a"}, [20, 0])
    one.measured(10, {"a": {"train_loss": 0.5}})
    assert heard(root) == []
    take(root)
    one.failed("a", "it broke")  # in a new file
    assert heard(root) == [("one", {"begin": {"run_id": "a"}, "marks": [0, 20]}),
                           ("one", {"step": 10, "values": {"a": {"train_loss": 0.5}}, "cpu": 0.0})]
    take(root)
    assert heard(root) == [("one", {"failed": "a", "error": "it broke"})]
    take(root)
    assert heard(root) == [] and list((root / live.FOLDER).iterdir()) == []


def test_what_was_taken_and_never_heard_is_heard_by_the_next(root):
    one, two = Live(root, "one"), Live(root, "two")
    for step in (10, 20):
        one.measured(step, {})
        two.measured(step, {})
        take(root)
    found = heard(root)
    assert [line["step"] for _, line in found] == [10, 10, 20, 20]
    assert [owner for owner, line in found if line["step"] == 20].count("one") == 1


def test_a_torn_line_is_passed_over(root):
    Live(root, "one").measured(10, {})
    with (root / live.FOLDER / "one.live").open("a") as file:
        file.write('{"step": 20, "val')
    take(root)
    assert [line["step"] for _, line in heard(root)] == [10]


def test_a_file_that_nobody_takes_stops_growing(root, monkeypatch):
    monkeypatch.setattr(live, "MOST_BYTES", 200)
    one = Live(root, "one")
    for step in range(100):
        one.measured(step, {})
    path = root / live.FOLDER / "one.live"
    assert 150 < path.stat().st_size <= 200
    one.begin({"run_id": "a"}, [0])  # else nobody would ever file it
    take(root)
    one.measured(7, {})
    found = heard(root)
    assert path.exists() and len(found) < 100 and found[-1][1]["begin"] == {"run_id": "a"}


def test_whatever_breaks_while_telling_is_said_and_ends_it(root, caplog):
    one = Live(root, "one")
    with one.telling():
        sum(range(10**6))
        raise ZeroDivisionError("of something")
    assert one.broken and one.cpu > 0 and "ZeroDivisionError: of something" in caplog.text
    Live(root / "nothing", "one").measured(1, {})  # no folder, a full disk: nobody notices
