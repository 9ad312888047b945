"""The benchmark on tiny hosts: its checks can fail, and one real run. No timing is tested."""

import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch

from portability.bench import __main__ as bench
from portability.bench import extraction, given, parts, porting
from portability.bench.contenders import Library, Ours, Paired
from portability.options import PARTS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little data, and one core, as threads wait long for each other beside other work; both are put back."""
    monkeypatch.setattr(given, "BATCHES", 8)
    kept, cores = dict(os.environ), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def words(tmp_path):
    """A study of a tiny host."""
    return given.prepare(str(tmp_path), "t5-64x2", "lora", 4, "fp32", "cpu")


def test_losses_are_those_of_a_stack_and_of_the_library_and_a_wrong_rate_is_found(words):
    assert all(difference <= bound for _, difference, bound in parts.equality(words))
    (_, stack, none), (_, library, bound) = parts.equality(words, factor=1.5)
    assert stack == none == 0 and library > bound


@pytest.mark.parametrize("shape, method", [
    ("t5-64x2", "adapter"), ("t5-64x2", "lora"), ("bert-256x4", "lora"), ("llama-256x4", "lora")])
def test_the_trainer_trains_what_ours_trains(tmp_path, shape, method):
    words = given.prepare(str(tmp_path), shape, method, 2, "fp32", "cpu")
    ours = Ours(words, 1)
    for tuned in (False, True):
        library = Library(words, tuned)
        trained = Counter(p.shape for p in library.trainer.model.parameters() if p.requires_grad)
        assert trained == Counter(ours.engine.bank.shapes.values()) and library.size == ours.size


KILLED = """
import os, time
from portability.bench.parts import process

if __name__ == "__main__":
    children = [process()]
    print(*(child.submit(os.getpid).result() for child in children), flush=True)
    time.sleep(600)
"""


@pytest.mark.system
def test_processes_end_with_a_killed_command(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, text=True)
    children = [psutil.Process(int(pid)) for pid in command.stdout.readline().split()]
    command.kill()
    assert children and not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.system
def test_other_losses_end_the_command_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(bench, "prepare", lambda *given: [])
    monkeypatch.setattr(parts, "equality", broken)
    assert bench.main(["--only", "rivals", "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "rivals" not in said.out and said.err.startswith("portability: the losses differ")


def broken(words):
    """An equality check that finds a difference which is not even a number."""
    return [("a stack", float("nan"), 0.1)]


def test_contenders_that_train_different_numbers_do_not_race(monkeypatch, words):
    monkeypatch.setattr(parts, "process", lambda environment: ThreadPoolExecutor(1))
    monkeypatch.setattr(parts, "Library", OneMore)
    with pytest.raises(parts.UserError, match="different numbers of parameters"):
        parts.race(words, [1], 1, cuda=False, workers=1)


class OneMore:
    """A contender that trains a single number."""

    size = 1

    def __init__(self, words, tuned):
        pass


def test_a_plain_loop_and_stacks_take_turns_on_the_same_batches(tmp_path):
    words = given.prepare(str(tmp_path), "llama-64x2", "lora_peft", 4, "fp32", "cpu")
    pair = Paired(words, [1, 2])
    tokens = [pair.turn(name)[1] for name in ("loop", "ours K=1", "ours K=2")]
    assert tokens[0] == tokens[1] and tokens[2] > 1.5 * tokens[0]
    alone = pair.stacks["ours K=1"].losses[20:40, 0].clone()
    pair.turn("ours K=1")
    losses = pair.stacks["ours K=1"].losses[20:40, 0]
    assert not alone.any() and losses.all()  # each goes on where it was
    torch.testing.assert_close(torch.stack([pair.loop(step) for step in range(20, 25)]), losses[:5],
                               atol=1e-4, rtol=0)


def test_a_host_of_a_folder_takes_the_place_of_a_shape(tmp_path):
    for name in ("made", "given"):
        (tmp_path / name).mkdir()
    given.prepare(str(tmp_path / "made"), "llama-64x2", "lora_peft", 4, "fp32", "cpu")
    folder = str(tmp_path / "made" / "host")
    words = given.prepare(str(tmp_path / "given"), "t5-64x2", "lora_peft", 4, "fp32", "cpu", folder)
    _, run, _, _ = parts.study_of(words)
    assert run.host.source == folder and run.host.shape.family == "llama"
    named = given.prepare(str(tmp_path / "given"), "t5-64x2", "lora", 4, "fp32", "cpu", "nano-raw-base")
    assert parts.study_of(named)[1].host.name == "nano-raw-base"


@pytest.mark.system
def test_the_loop_is_timed_in_both_precisions(monkeypatch, capfd):
    bench.main(["--shape", "llama-64x2", "--method", "lora_peft", "--only", "loop", "--rounds", "1",
                "--members", "1,2", "--batch-size", "4", "--device", "cpu", "--workers", "1"])
    said = capfd.readouterr().out
    for name in ("loop", "ours K=1", "ours K=2"):
        assert f"\n{name} fp32" in said and f"\n{name} bf16" in said, said


def test_lengths_follow_sst2():
    drawn = given.lengths(np.random.default_rng(3), 20_000)
    for share, words in given.LENGTHS.items():
        assert abs(np.quantile(drawn, share) - words) <= 1


@pytest.mark.system
def test_an_unknown_method_is_refused(capsys):
    assert bench.main(["--method", "no_such", "--device", "cpu"]) == 2
    assert "unknown method 'no_such'; choose one of: " in capsys.readouterr().err


def test_ratios_are_of_the_same_rounds():
    head, trainer, ours = bench.table({"trainer": [4.0, 6.0, 9.0], "ours K=1": [1.0, 3.0, 3.0]})
    assert head.split() == ["median", "[min-max]", "trainer", "/", "this"]
    assert trainer.split()[-2:] == ["1.00", "[1.00-1.00]"] and ours.split()[-2:] == ["3.00", "[2.00-4.00]"]


@pytest.mark.system
def test_the_command_names_every_contender_and_every_way_to_a_grid(monkeypatch, capfd):
    monkeypatch.setattr(parts, "LEVELS", {"+ workers": []})
    small = ["--shape", "t5-64x2", "--rounds", "1", "--members", "1,2", "--batch-size", "4", "--device",
             "cpu"]
    tiny = ["method=lora", "grid.budgets=[4]", "grid.seeds=[0]", "grid.inits=[ported,scratch]",
            "eval.limit=8"]
    bench.main([*small, "--grid", *tiny])
    said = capfd.readouterr().out
    heads = [re.split("[:,]", line[3:])[0] for line in said.splitlines() if line.startswith("==")]
    assert heads == list(PARTS)
    for name in ("trainer", "tuned", "tuned x1", "ours K=1", "ours K=2", "library, plain loop", "cells alone",
                 "+ workers"):
        assert f"\n{name}  " in said, said


@pytest.mark.system
def test_an_extraction_from_a_small_layer_is_timed_and_shapes_that_do_not_fit_are_refused(capsys):
    small, smaller = ["--teacher", "96", "192", "6"], ["--student", "64", "128", "4"]
    more = ["--seeds", "3", "--tokens", "20", "--rank", "4", "--threads", "1"]
    extraction.main([*small, *smaller, *more])
    said = capsys.readouterr().out
    assert said.startswith("96x192x6 to 64x128x4, 3 seeds of 20 tokens, 1 threads: ") and said.endswith(
        " GB at most in all\n")
    assert extraction.main([*small, *smaller, "--tokens", "8"]) == 2
    assert "--tokens must be above 8, got 8" in capsys.readouterr().err


@pytest.mark.system
def test_a_port_between_small_layers_is_timed_and_what_cannot_be_mapped_is_refused(capsys):
    small = ["--origin", "256", "512", "4", "--threads", "1"]
    assert porting.main([*small, "--receiving", "320", "640", "5", "--modules", "up_proj"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"256x512x4 to 320x640x5, up_proj, 1280 tokens, 1 threads: \d+ s \(said: \d+\), "
                    r"0\.\d\d GB beside the libraries \(said: 0\.\d\d\)\n$", said), said
    assert porting.main([*small, "--receiving", "320", "640", "4"]) == 2
    assert "turn with the position at unequal speeds" in capsys.readouterr().err
