"""What `--verify` says of an adapter: the arms by name, their intervals and the difference."""

import json
from argparse import Namespace

import pytest

from portability.core.errors import UserError
from portability.methods.files import read_folder
from portability.porting import verify as verifying
from portability.porting.adapter import port_folder
from portability.porting.verify import read_rows, verify
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
        read_rows(tmp_path / "test.jsonl")
