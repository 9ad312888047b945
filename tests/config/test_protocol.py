"""protocol=paper: one word for what Zhong et al. (ICLR 2024) do."""

import json

import numpy as np
import pytest

from portability.config.compose import composed, options
from portability.config.study import checked
from portability.core.errors import UserError
from portability.data.sampling import BatchSampler
from portability.data.splits import rows
from portability.data.tokenization import Flat
from portability.planning.plan import plan
from support.answers import rows as answer_rows
from support.studies import study


@pytest.fixture(scope="module")
def paper():
    return study("+sweep=extract", "protocol=paper")


def test_one_word_sets_what_the_paper_says(paper):
    train = paper.grid.train
    assert (train.batch_size, train.updates, train.warmup, train.schedule, train.loss, train.tail) == (
        64, 45, 2, "linear", "token", 0)
    assert (train.weight_decay, train.betas, train.eps, train.clip) == (0.0, (0.9, 0.999), 1e-8, 1.0)
    (lora,) = paper.grid.methods
    assert (lora.learning_rate, lora.settings["r"], lora.settings["alpha"]) == (3e-4, 16, 16)
    planned = plan(paper.grid)
    trained = [run for run in planned.runs.values() if run.method and not run.teacher]
    assert {run.train.updates for run in trained} == {45}
    assert {mark for marks in planned.marks.values() for mark in marks} == {0, 45}


def test_every_run_is_trained_on_the_same_examples(paper):
    for name in ("sums", "quiz"):
        kept = paper.data.counts[name]["train"]
        assert 900 < kept <= 1000 and len(rows(paper.data, name, "train", 0)) == kept
    assert {source.train_examples for source in paper.sources} == {1000}


def test_epochs_that_the_leak_guard_makes_shorter_are_said(paper, tmp_path):
    assert not any("epochs" in line for line in paper.warnings)
    written = answer_rows("written", 1020, 0)
    for split, part in (("train", slice(1000)), ("validation", slice(940, 980)), ("test", slice(980, None))):
        lines = "".join(json.dumps(row) + "\n" for row in written[part])
        (tmp_path / f"{split}.jsonl").write_text(lines)
    words = ["+sweep=extract", "protocol=paper", "study=epochs", f"data.sums.path={tmp_path}"]
    found = [line for line in study(*words).warnings if "epochs" in line]
    assert found == [
        "data set 'sums' has 940 training examples and not 1,000 (60 that stand elsewhere in the study were "
        "dropped), 14 whole batches of 64 an epoch and not 15: 45 updates are 3.2 epochs; 3 are "
        "grid.budgets=[42]"]
    for other in ("grid.budgets=[42]", "train.schedule=constant"):
        assert not any("epochs" in line for line in study(*words, other).warnings)


def test_three_epochs_are_45_batches_of_examples_of_all_lengths(paper):
    lengths = np.random.default_rng(0).integers(20, 2048, 1000)
    encoded = Flat(np.zeros(lengths.sum(), dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    train = paper.grid.train
    schedule = BatchSampler(encoded, train.batch_size, train.bucket_batches, "data")
    batches = [schedule.examples(step, 1) for step in range(train.updates)]
    for epoch in range(3):
        seen = np.concatenate(batches[15 * epoch : 15 * (epoch + 1)])
        assert len(seen) == len(set(seen.tolist())) == 960
    assert len(schedule.buckets) == 1 and {len(one) for one in batches} == {64}


def test_what_is_named_beside_the_word_wins():
    got = study("+sweep=extract", "protocol=paper", "train.batch_size=32", "grid.budgets=[90]")
    assert (got.grid.train.batch_size, got.grid.budgets, got.grid.train.loss) == (32, [90], "token")


def test_on_the_hosts_of_the_paper_it_takes_the_place_of_the_host_sets_own():
    conf = checked(composed(options(["+sweep=extract", "host_set=llama2", "protocol=paper", "data_root=/d"])))
    assert (conf.train.batch_size, conf.train.warmup, conf.grid.budgets, conf.grid.train_examples) == (
        64, 2, [45], 1000)
    assert conf.precision == "bf16" and conf.grid.data[1] == "mmlu_letters"
    plain = checked(composed(options(["+sweep=extract", "host_set=llama2", "data_root=/d"])))
    assert plain.train.schedule == "constant" and plain.grid.train_examples is None


@pytest.mark.parametrize(("words", "message"), [
    (["protocol=papr"], "unknown protocol 'papr'; choose one of: paper; did you mean 'paper'"),
    (["+protocol=paper"], r"'\+protocol=paper' is written protocol=paper"),
    (["protocol=paper", "grid.budgets=[15,45]"], "train.schedule=linear falls to 0 after the last update"),
    (["protocol=paper", "host_set=nano"], "train.loss=token is of answers to prompts"),
    (["grid.train_examples=0"], "grid.train_examples must be at least 1, got 0"),
])
def test_what_does_not_go_with_it_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        study("+sweep=extract", *words)
