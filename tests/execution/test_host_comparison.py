"""The hosts of a study are compared once a pair, in a process of their own, whatever happens there."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from portability.core.specs import TaskSpec
from portability.execution import host_comparison as pairs
from portability.planning.plan import plan
from portability.planning.selection import Part, select_runs
from portability.porting.similarity import compare_hosts
from portability.run import command
from portability.store import Store
from portability.store import host_pairs as stored
from portability.store.__main__ import main as store_command
from support.studies import OFF, children, small, wait_for

WORDS = (*OFF, "similarity=true", "method=lora", "grid.inits=[ported]", "grid.seeds=[0]", "grid.budgets=[2]")


def modest(data_folders, make_host, root, *more):
    return small(data_folders, make_host, f"results={root}", "study=alike", *WORDS, *more)


def typed(data_folders, make_host, root):
    """The same study as words of a command line."""
    one, two = make_host("t5", 32, 2, 4, 0), make_host("t5", 32, 2, 4, 1)
    return [f"host.nano-raw-base.path={one.source}", f"host.nano-tuned-base.path={two.source}",
            f"data.nano_films.path={data_folders['one']}", f"data.nano_meals.path={data_folders['two']}",
            "grid.study_data=[nano_films,nano_meals]", "task.template='{text} answer :'",
            "task.max_length=48", f"results={root}", "study=alike", *WORDS]


@pytest.fixture(scope="module")
def finished(data_folders, make_host, tmp_path_factory):
    """A study whose runs are done and whose hosts were not compared."""
    root = tmp_path_factory.mktemp("plain")
    assert command(modest(data_folders, make_host, root, "similarity=false")) == 0
    assert not (root / "alike" / "hosts").exists()
    return root


@pytest.fixture(scope="module")
def compared(finished, data_folders, make_host, tmp_path_factory):
    """The same, and compared."""
    root = tmp_path_factory.mktemp("compared") / "results"
    shutil.copytree(finished, root)
    assert command(modest(data_folders, make_host, root)) == 0
    return root


@pytest.mark.system
def test_the_hosts_of_a_study_are_compared_once_and_a_repeat_loads_nothing(compared, data_folders, make_host,
                                                                           tmp_path):
    store = Store(compared / "alike")
    (pair,), (file,) = store.host_pairs(), stored.paths(store.root)
    one, two = make_host("t5", 32, 2, 4, 0), make_host("t5", 32, 2, 4, 1)
    assert {pair["one_fingerprint"], pair["other_fingerprint"]} == {one.fingerprint, two.fingerprint}
    assert {pair["one"], pair["other"]} == {"nano-raw-base", "nano-tuned-base"}
    texts = [json.loads(line)["text"] for line in (data_folders["one"]
                                                   / "train.jsonl").read_text().splitlines()]
    direct = compare_hosts(one, two, texts, TaskSpec("{text} answer :", ("negative", "positive"), 48))
    assert pair["texts"] == len(texts) == 200 and pair["cka"] == pytest.approx(direct["cka"], abs=1e-6)
    assert pair["weight_distance"] == direct["weight_distance"] and pair["schema"] == stored.SCHEMA
    assert "/" not in file.read_text() and os.uname().nodename not in file.read_text()
    before = file.stat().st_mtime_ns
    code = ("import atexit, sys; from portability.run import main; "
            "atexit.register(lambda: sys.stderr.write(f'torch: {\"torch\" in sys.modules}')); main()")
    words = typed(data_folders, make_host, compared)
    said = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and said.stderr.endswith("torch: False"), said.stderr
    assert "0 of 4 runs to do" in said.stderr and "to compare" not in said.stderr
    assert file.stat().st_mtime_ns == before


@pytest.mark.system
def test_an_unreadable_host_is_a_warning_and_the_next_command_tries_again(finished, data_folders, make_host,
                                                                          tmp_path, caplog):
    root, host = tmp_path / "results", tmp_path / "host"
    shutil.copytree(finished, root)
    shutil.copytree(make_host("t5", 32, 2, 4, 1).source, host)
    study = modest(data_folders, make_host, root, f"host.nano-tuned-base.path={host}")
    # after it was planned
    (host / "model.safetensors").write_bytes((host / "model.safetensors").read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert command(study) == 0
    (said,) = [record.getMessage() for record in caplog.records if "not compared" in record.getMessage()]
    assert "nano-raw-base" in said and "nano-tuned-base" in said and "similarity=false" in said
    assert "changed since" in said
    assert Store(root / "alike").host_pairs() == [] and Store(root / "alike").failures() == {}
    planned = plan(study.grid)
    assert len(pairs.lacking(planned, planned.runs, Store(root / "alike"))) == 1  # for the next command


@pytest.mark.system
def test_whatever_is_raised_there_the_exit_code_is_that_of_the_runs(
    finished, data_folders, make_host, tmp_path, monkeypatch, caplog
):
    def no_pipe(duplex=True):
        raise OSError(24, "Too many open files")

    shutil.copytree(finished, tmp_path / "results")
    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Pipe", no_pipe)
    assert command(modest(data_folders, make_host, tmp_path / "results")) == 0
    assert "hosts were not compared: [Errno 24] Too many open files" in caplog.text


def _dies_at_the_guilty(todo, setup):
    """Answers for a pair of hosts, unless it is the guilty one."""
    for pair in todo:
        if "guilty" in (pair.one.name, pair.other.name):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"one": pair.one.name, "other": pair.other.name, "one_fingerprint": pair.one.fingerprint,
               "other_fingerprint": pair.other.fingerprint, "cka": os.getpid()}


def trio(data_folders, make_host, root):
    """A study of four hosts, one of which is guilty."""
    ends = [make_host("t5", 32, 2, 4, seed).source for seed in (0, 1, 2)]
    return small(data_folders, make_host, f"results={root}", "study=trio", *WORDS,
                 f"+host.guilty.path={ends[2]}",
                 "grid.pairs=[[raw_base,tuned_base],[guilty,raw_base],[tuned_base,raw_base],[raw_base,raw_base],"
                 "[tuned_base,raw_large]]")


@pytest.mark.system
def test_a_pair_that_kills_the_process_does_not_keep_the_others_from_being_compared(
        data_folders, make_host, tmp_path, monkeypatch, caplog):
    planned, store = plan(trio(data_folders, make_host, tmp_path).grid), Store(tmp_path / "trio")
    monkeypatch.setattr(pairs, "_measure", _dies_at_the_guilty)
    # a direction is no pair of its own, nor is a host with itself
    assert len(pairs.lacking(planned, planned.runs, store)) == 3
    with caplog.at_level(logging.WARNING):
        pairs.compare_pairs(planned, planned.runs, store, None)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "guilty" in said and "exit code -9" in said and "memory" in said
    assert len(store.host_pairs()) == 2 and all("guilty" not in (pair["one"], pair["other"])
                                                for pair in store.host_pairs())
    assert len(pairs.lacking(planned, planned.runs, store)) == 1


def test_a_full_disk_is_a_warning(data_folders, make_host, tmp_path, monkeypatch, caplog):
    planned, store = plan(trio(data_folders, make_host, tmp_path).grid), Store(tmp_path / "trio")
    pair = pairs.lacking(planned, planned.runs, store)[0]
    found = {"one_fingerprint": pair.one.fingerprint, "other_fingerprint": pair.other.fingerprint, "cka": 0.5}
    monkeypatch.setattr(pairs, "lacking", lambda *_: [pair])
    monkeypatch.setattr(pairs, "in_child", lambda *_: (found for _ in range(1)))
    store.root.mkdir()
    (store.root / "hosts").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        pairs.compare_pairs(planned, planned.runs, store, None)
    assert "not compared" in caplog.text and "exists" in caplog.text and store.host_pairs() == []


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_comparison_as_it_ends_training(finished, data_folders, make_host, tmp_path,
                                                              number):
    shutil.copytree(finished, tmp_path / "results")
    words = typed(data_folders, make_host, tmp_path / "results")
    process = subprocess.Popen([sys.executable, "-m", "portability.run", *words], stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    # multiprocessing's tracker, and ours
    wait_for(lambda: len(children(process.pid)) > 1 or process.poll() is not None)
    started = children(process.pid)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number and "repeat the command to go on" in said, said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 10)
    assert Store(tmp_path / "results" / "alike").host_pairs() == []


def test_the_chosen_parts_pairs_alone_are_compared(data_folders, make_host, tmp_path):
    planned, store = plan(trio(data_folders, make_host, tmp_path).grid), Store(tmp_path)
    only = Part({"origin": ["guilty"], "init": ["ported"]}, (1, 1), "died", True)
    (pair,) = pairs.lacking(planned, select_runs(planned, only), store)
    assert {pair.one.name, pair.other.name} == {"guilty", "nano-raw-base"}
    assert pairs.lacking(planned, select_runs(planned, Part({"init": ["bare"]}, (1, 1), "died", True)),
                         store) == []


def test_studies_of_one_question_give_a_pair_one_name(data_folders, make_host, tmp_path):
    def names(*words):
        planned = plan(small(data_folders, make_host, *WORDS, *words).grid)
        return [pair.name for pair in pairs.lacking(planned, planned.runs, Store(tmp_path))]

    first = names("study=a")
    assert len(first) == 1 and names("study=b", "grid.seeds=[4]", "method=adapter",
                                     "grid.budgets=[9]") == first
    assert names("grid.pairs=[[tuned_base,raw_base]]") == first  # of a pair, not of a direction
    assert names("task.max_length=47") != first and names("grid.data=nano_meals",
                                                          "+grid.relations.x=nano_films") != first


# ---- the store


@pytest.mark.system
def test_packed_and_merged_studies_keep_their_pairs(compared, finished, tmp_path, capsys):
    source = Store(compared / "alike")
    assert store_command(["pack", str(source.root), "--out", str(tmp_path / "packed")]) == 0
    packed = Store(tmp_path / "packed")
    assert packed.published and packed.host_pairs() == source.host_pairs()
    shutil.copytree(finished / "alike", tmp_path / "merged")
    assert store_command(["merge", str(tmp_path / "merged"), str(source.root)]) == 0
    assert "1 pair of hosts" in capsys.readouterr().out
    assert Store(tmp_path / "merged").host_pairs() == source.host_pairs()
    assert store_command(["merge", str(tmp_path / "merged"), str(source.root)]) == 0
    assert "of hosts" not in capsys.readouterr().out
    for root in (packed.root, tmp_path / "merged"):
        assert store_command(["verify", str(root)]) == 0


@pytest.mark.system
def test_a_damaged_or_newer_pair_is_named_and_passed_over(compared, tmp_path, capsys, caplog):
    shutil.copytree(compared / "alike", tmp_path / "alike")
    store = Store(tmp_path / "alike")
    (file,) = stored.paths(store.root)
    whole = json.loads(file.read_text())
    for change, says in (({"cka": 0.5}, "differs from its own digest"),
                         ({"schema": 99}, "schema 99, this version reads 1")):
        file.write_text(json.dumps({**whole, **change}))
        caplog.clear()
        assert store.host_pairs() == [] and file.name in caplog.text and says in caplog.text
        assert store_command(["verify", str(store.root)]) == 1
        assert file.name in (said := capsys.readouterr().out) and says in said
    file.write_text("{")
    assert store.host_pairs() == [] and "no pair of hosts" in caplog.text
    draft = file.with_name(f".{file.name}.1-abc")
    draft.write_text("half")
    os.utime(draft, (1, 1))
    assert store.tidy_up() == 1 and not draft.exists() and file.exists()
