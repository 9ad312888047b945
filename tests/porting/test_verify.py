"""What `--verify` says of an adapter: the arms by name, their intervals and the difference."""

import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from portability.core.errors import UserError
from portability.core.measures import probabilities
from portability.core.specs import PortSpec, TaskSpec
from portability.data.examples import plain
from portability.data.tokenization import encode
from portability.methods.files import read_folder
from portability.porting import verify as verifying
from portability.porting.adapter import port_folder
from portability.porting.calibration import calibration, read_texts
from portability.porting.trained import bare, log_shares
from portability.porting.verify import read_rows, verify
from portability.tasks.classification import Scorer
from support.peft_methods import write_plain
from support.tiny import TASK, sentences

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_arms_keep_their_names_and_intervals_have_two_ends(load, make_host, tmp_path):
    """Of examples whose labels are the bare host's own answers."""
    host = make_host("llama", 32, 2, 4)
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora", init_lora_weights=False)
    done = port_folder(read_folder(tmp_path / "in"), host, host)
    rows = [(row["text"], 1) for row in sentences(40, 3)]
    marks = verifying._right(load("llama", 32, 2, 4), TASK, rows, None, {})
    (tmp_path / "test.jsonl").write_text("".join(
        json.dumps({"text": text, "label": int(mark)}) + "\n"
        for (text, _), mark in zip(rows, marks, strict=True)))
    options = Namespace(verify=tmp_path / "test.jsonl", template=TASK.template, label_words=TASK.label_words,
                        max_length=TASK.max_length)
    said = []
    found = verify(done, host, options, read_folder(tmp_path / "in"), said.append)
    arms, gain = found["arms"], found["ported minus bare"]
    assert (arms["bare"]["accuracy"], arms["bare"]["high"]) == (1.0, pytest.approx(1.0))
    assert arms["bare"]["low"] == pytest.approx(40 / (40 + 1.959964**2))  # Wilson's, of 40 of 40
    assert arms["ported"] == arms["native"]  # the same adapter on its own host
    assert gain["mean"] == pytest.approx(arms["ported"]["accuracy"] - 1)
    assert gain["low"] < gain["mean"] < gain["high"] <= 0
    assert 0 < arms["ported"]["low"] < arms["ported"]["accuracy"] < arms["ported"]["high"] < 1
    assert said[-1].startswith(f"ported minus bare: {100 * gain['mean']:+.1f} points")


@pytest.mark.parametrize(("text", "said"), [
    ('{"text": "a", "label": 1}\n{"text": "a"}\n', "line 2: each line must be a JSON object with text and"),
    ('{"text": "a", "label": 2}\n', "line 1: each line"), ("[1]\n", "line 1"), ("", "holds no example"),
])
def test_examples_that_are_none_are_one_sentence(tmp_path, text, said):
    (tmp_path / "test.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read_rows(tmp_path / "test.jsonl", "--verify", TASK)


# ---- more than two labels, and pairs

NAMES = ("negative", "positive", "answer")
PAIRS = replace(TASK, template="{text} and {text_pair} :", label_words=NAMES)


def pairs(count, seed):
    texts = [row["text"] for row in sentences(2 * count, seed)]
    return [((one, other), place % 3) for place, (one, other) in enumerate(zip(texts[::2], texts[1::2],
                                                                               strict=True))]


def test_pairs_with_three_labels_are_verified_by_number_or_word(load, make_host, tmp_path):
    host = make_host("llama", 32, 2, 4)
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora", init_lora_weights=False)
    rows, scorer = pairs(12, 5), Scorer(loaded := load("llama", 32, 2, 4), PAIRS)
    margin = np.asarray(scorer.predict({}, encode(rows, loaded.tokenizer, PAIRS, True), 8).margin)[0]
    assert margin.shape == (12, 2)
    best = [int(np.argmax([0.0, *row])) for row in margin]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({
        "text": one, "text_pair": other, "label": NAMES[label] if place % 2 else label}) + "\n"
        for place, (((one, other), _), label) in enumerate(zip(rows, best, strict=True))))
    options = Namespace(verify=tmp_path / "test.jsonl", template=PAIRS.template, label_words=[*NAMES],
                        max_length=32)
    done = port_folder(read_folder(tmp_path / "in"), host, host)
    found = verify(done, host, options, None, lambda line: None)
    assert found["arms"]["bare"]["accuracy"] == 1.0 and found["examples"] == 12


@pytest.mark.parametrize(("row", "said"), [
    ({"text": "a", "text_pair": "b", "label": 3}, r"label \(0 to 2, or its label word\)"),
    ({"text": "a", "text_pair": "b", "label": "film"}, "or its label word"),
    ({"text": "a", "label": 0}, "with text, text_pair and label"),
])
def test_pairs_that_are_none_are_one_sentence(tmp_path, row, said):
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"line 1: each line must be a JSON object .*{said}"):
        read_rows(tmp_path / "test.jsonl", "--verify", PAIRS)


def test_a_number_that_is_a_label_word_is_that_word(tmp_path):
    stars = replace(TASK, label_words=("1", "2", "3"))
    rows = [{"text": "a", "label": label} for label in ("1", "3", 1, "0")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [label for _, label in read_rows(tmp_path / "test.jsonl", "--verify", stars)] == [0, 2, 1, 0]


@pytest.mark.parametrize("strategy", ["warm", "distill", "gradmask"])
def test_strategies_that_learn_take_pairs_with_three_labels(load, make_host, tmp_path, strategy):
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora", init_lora_weights=False)
    rows = pairs(16, 6)
    options = {"examples": 8} if strategy == "gradmask" else {"updates": 16, "learning_rate": 0.02}
    spec = PortSpec("mine", strategy, "stretch", options=options)
    hosts = make_host("llama", 32, 2, 4), make_host("llama", 32, 2, 4, 3)
    done = port_folder(read_folder(tmp_path / "in"), *hosts, spec, task=PAIRS, labelled=rows,
                       texts=calibration("texts", [text for text, _ in rows], 200))
    assert done.report.updates == options.get("updates", 0)
    note = done.report.notes[-1].split()
    if strategy == "distill":
        assert float(note[note.index("before,") - 2]) > float(note[note.index("after") - 1])
    with pytest.raises(UserError, match="is about pairs of texts, and this is a single one"):
        port_folder(read_folder(tmp_path / "in"), *hosts, spec, task=PAIRS,
                    labelled=[("the film", 0)] * 9, texts=calibration("texts", ["the film"] * 9, 200))


def test_a_head_of_other_labels_than_the_tasks_is_refused(load):
    host, head = load("bert", 32, 2, 4), {"head.weight": torch.ones(2, 32), "head.bias": torch.ones(2)}

    def context(task):
        purpose = Namespace(task=task, heads=(lambda: head,) * 2)
        return Namespace(for_task=lambda: purpose, spec=Namespace(strategy="distill"), pair="from 'a' to 'b'")

    assert bare(context(TASK), 0, host)[1].keys() == head.keys()
    with pytest.raises(UserError, match="distill' from 'a' to 'b': the head of .* is of 2 labels and the "
                       "task of 3; use another"):
        bare(context(replace(TASK, label_words=NAMES)), 0, host)


def test_shares_of_three_labels_go_on_from_those_of_two():
    two, three = torch.tensor([0.5, -2.0]).double(), torch.tensor([[0.5, -1.0], [3.0, 0.1]]).double()
    assert torch.allclose(log_shares(two), torch.stack([torch.zeros(2), two], 1).log_softmax(-1))
    assert torch.allclose(log_shares(three).exp(), torch.from_numpy(probabilities(three.numpy())))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables_hold_texts_and_examples_as_lines_of_json_do(tmp_path, ending):
    held = pd.DataFrame([{"text": "a, b", "text_pair": " c", "label": 1},
                         {"text": "d", "text_pair": "e", "label": 0}])
    path = tmp_path / f"rows{ending}"
    held.to_csv(path, index=False) if ending == ".csv" else held.to_parquet(path)
    assert read_texts(path) == [("a, b", " c"), ("d", "e")]
    task = TaskSpec("{text} {text_pair}", ("no", "yes"), 8)
    assert read_rows(path, "--verify", task) == [(("a, b", " c"), 1), (("d", "e"), 0)]
    held.drop(columns="text").to_parquet(tmp_path / "less.parquet")
    for read in (read_texts, lambda path: read_rows(path, "--verify", task)):
        with pytest.raises(UserError, match="less.parquet row 1: each line must be a JSON object with text"):
            read(tmp_path / "less.parquet")


def test_pairs_are_calibrated_on_as_joined_texts_and_named_by_both(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "text_pair": " b "}\n{"text": "c"}\n')
    texts = read_texts(tmp_path / "texts.jsonl")
    assert texts == [("a", " b "), "c"]
    assert sorted(map(plain, calibration("t", texts).texts)) == ["a b", "c"]
    assert calibration("t", [("a", "b")]).digest != calibration("t", ["a b"]).digest
