"""What the terminal shows of a study: bars where somebody looks, lines where nothing does."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from portability.core.stages import SCORING, TRAINING, Stage
from portability.execution import progress
from portability.execution.progress import Meter, shown
from support.plans import finish, ledger, origin_job


@pytest.fixture
def book(tmp_path):
    return ledger(tmp_path, seeds=2)


@pytest.fixture
def at_once(monkeypatch):
    """Every change is shown."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "DRAW_SECONDS", 0.0)


def half_way(book, meter):
    """The origins train, one run is scored."""
    job = origin_job(book)
    ids = [run.run_id for run in job.runs]
    meter.hear(Stage(ids, TRAINING, 100, 0))
    other = next(run_id for run_id in meter.runs if run_id not in ids and meter.runs[run_id].method)
    meter.hear(Stage([other], SCORING, 200, 0, 0.5))
    return job, other


def test_lines_where_nobody_looks_at_a_terminal(book, at_once, capsys):
    meter = Meter(book)
    with shown(meter, "mine"):
        job, other = half_way(book, meter)
        finish(book.store, job)
        book.settle([run.run_id for run in job.runs], None)
        book.failed[other] = "boom"
        meter.settle()
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"mine: \d+\.\d%; \d of 9 runs; ", line) for line in lines), lines
    assert "0 of 9 runs" in lines[0] and "origin 0/2 (2 training)" in lines[0]
    assert f"{meter.kind[other]} 0/" in lines[1] and "(1 scoring)" in lines[1]
    assert "2 of 9 runs" in lines[-1] and "origin 2/2," in lines[-1] and "; 1 failed; " in lines[-1]
    assert re.search(r"; \d\.\d GB of memory; ", lines[-1]) and "\x1b" not in "".join(lines)


def test_a_file_is_no_terminal_whatever_colours_are_forced(book, at_once, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with shown(Meter(book), "mine"):
        pass
    assert re.fullmatch(r"mine: 0\.0%; .*\n", capsys.readouterr().err)


def test_lines_come_seldom(book, capsys):
    meter = Meter(book)
    with shown(meter, "mine"):
        half_way(book, meter)
    assert len(capsys.readouterr().err.splitlines()) == 1, "the last one alone, within 15 s"


def test_bars_by_kind_of_run_in_a_terminal_and_what_is_logged_above_them(book, at_once, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    meter, before = Meter(book), sys.stderr
    handler = logging.StreamHandler(sys.__stderr__)
    logging.root.addHandler(handler)
    try:
        with shown(meter, "mine"):
            _, other = half_way(book, meter)
            assert handler.stream is sys.stderr is not before, "it would tear the bars"
            book.failed[other] = "boom"
            meter.settle()
        assert handler.stream is sys.__stderr__ and sys.stderr is before
    finally:
        logging.root.removeHandler(handler)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = text[text.rindex("mine") :]
    assert re.search(r"origin +.* 0/2 +2 training", last) and "1 failed" in last
    for kind in meter.kinds():
        assert re.search(rf"  {kind.name} .* {kind.done}/{kind.runs}", last), kind
    assert "0 of 9 runs · " in last and " GB of memory · 1 failed" in last


def test_kinds_are_origins_bare_hosts_and_arms(book):
    kinds = {kind.name: kind.runs for kind in Meter(book).kinds()}
    planned = book.planned.runs
    origins = {run.origin for run in planned.values()} - {None}
    assert kinds["origin"] == len(origins) and sum(kinds.values()) == len(planned)
    assert kinds["bare host"] == sum(run.method is None for run in planned.values())
    assert {"ported", "sampled", "scratch"} <= kinds.keys()
