"""The benchmark on tiny hosts: its checks can fail, and one real run. No timing is tested."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from portability.bench import __main__ as bench
from portability.bench import contenders, extraction, parts
from portability.bench.contenders import Library, Ours


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little data, and one core, as threads wait long for each other beside other work; both are put back."""
    monkeypatch.setattr(contenders, "BATCHES", 8)
    kept, cores = dict(os.environ), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def words(tmp_path):
    """A study of a tiny host."""
    return contenders.prepare(str(tmp_path), "t5-64x2", "lora", 4, "fp32", "cpu")


def test_losses_are_those_of_a_stack_and_of_the_library_and_a_wrong_rate_is_found(words):
    assert all(difference <= bound for _, difference, bound in parts.equality(words))
    (_, stack, none), (_, library, bound) = parts.equality(words, factor=1.5)
    assert stack == none == 0 and library > bound


@pytest.mark.parametrize("shape, method", [
    ("t5-64x2", "adapter"), ("t5-64x2", "lora"), ("bert-256x4", "lora"), ("llama-256x4", "lora")])
def test_the_trainer_trains_what_ours_trains(tmp_path, shape, method):
    words = contenders.prepare(str(tmp_path), shape, method, 2, "fp32", "cpu")
    ours = Ours(words, 1)
    for tuned in (False, True):
        library = Library(words, tuned)
        trained = Counter(p.shape for p in library.trainer.model.parameters() if p.requires_grad)
        assert trained == Counter(ours.engine.bank.shapes.values()) and library.size == ours.size


@pytest.mark.system
def test_other_losses_end_the_command_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(bench, "prepare", lambda *given: [])
    monkeypatch.setattr(parts, "equality", broken)
    with pytest.raises(SystemExit, match="the losses differ"):
        bench.main(["--only", "rivals", "--device", "cpu"])
    assert "rivals" not in capsys.readouterr().out


def broken(words):
    """An equality check that finds a difference which is not even a number."""
    return [("a stack", float("nan"), 0.1)]


def test_contenders_that_train_different_numbers_do_not_race(monkeypatch, words):
    monkeypatch.setattr(parts, "process", lambda environment: ThreadPoolExecutor(1))
    monkeypatch.setattr(parts, "Library", OneMore)
    with pytest.raises(parts.UserError, match="different numbers of parameters"):
        parts.race(words, [1], 1, cuda=False)


class OneMore:
    """A contender that trains a single number."""

    size = 1

    def __init__(self, words, tuned):
        pass


def test_lengths_follow_sst2():
    drawn = contenders.lengths(np.random.default_rng(3), 20_000)
    for share, words in contenders.LENGTHS.items():
        assert abs(np.quantile(drawn, share) - words) <= 1


@pytest.mark.system
def test_an_unknown_method_is_refused():
    with pytest.raises(SystemExit, match="lora"):
        bench.main(["--method", "no_such", "--device", "cpu"])


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
    heads = [line[3:].partition(":")[0] for line in said.splitlines() if line.startswith("==")]
    assert heads == list(bench.PARTS)
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
    with pytest.raises(SystemExit, match="--tokens must be above 8, got 8"):
        extraction.main([*small, *smaller, "--tokens", "8"])
