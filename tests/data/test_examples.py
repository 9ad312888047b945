"""Task files: what is read out of them, and one sentence with file and line for everything else."""

import json

import pytest

from portability.core.errors import UserError
from portability.data.examples import Example, key, read_rows, render
from portability.data.files import json_lines

CHAT = [{"role": "system", "content": "be short"}, {"role": "user", "content": "2 + 2 ?"},
        {"role": "assistant", "content": "4"}, {"role": "user", "content": "and 3 more ?"},
        {"role": "assistant", "content": "7"}]


def read_examples(path):
    return read_rows(json_lines(path))


@pytest.fixture
def file(tmp_path):
    """Rows (or raw lines) -> path of a file of them."""

    def make(*rows):
        path = tmp_path / "task.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
                        encoding="utf-8")
        return path

    return make


def test_prompts_with_answers_to_write(file):
    path = file({"prompt": "2 + 2 =", "answer": "4"}, {"answer": " ja\n", "prompt": "Größer?"})
    assert read_examples(path) == [Example("2 + 2 =", "4"), Example("Größer?", " ja\n")]


@pytest.mark.parametrize("answer", [1, "four"])
def test_an_answer_to_choose_is_an_index_or_a_text(file, answer):
    path = file({"prompt": "2 + 2 =", "choices": ["three", "four"], "answer": answer})
    assert read_examples(path) == [Example("2 + 2 =", "four", ("three", "four"), 1)]


@pytest.mark.parametrize(("choices", "answer", "kept", "place"), [
    (["a", "b", "b", "c"], 3, ("a", "b", "c"), 2), (["a", "b ", "b", "c"], 2, ("a", "b ", "c"), 1),
    (["a", "b", "a"], "a", ("a", "b"), 0),
])
def test_a_choice_that_stands_twice_counts_once(choices, answer, kept, place, file):
    (example,) = read_examples(file({"prompt": "?", "choices": choices, "answer": answer}))
    assert (example.choices, example.right, example.answer) == (kept, place, kept[place])


def test_of_a_chat_the_last_turn_is_the_answer(file):
    (example,) = read_examples(file({"messages": CHAT}))
    assert example.answer == "7" and example.choices is None
    assert example.turns == tuple((turn["role"], turn["content"]) for turn in CHAT[:-1])
    assert example.prompt == "system: be short\nuser: 2 + 2 ?\nassistant: 4\nuser: and 3 more ?\nassistant:"
    assert example.prompt == render(example.turns)


def test_a_chat_and_a_prompt_may_share_a_file(file):
    both = read_examples(file({"messages": CHAT}, {"prompt": "2 + 2 =", "answer": "4"}))
    assert [one.answer for one in both] == ["7", "4"]


CHOICE = {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}
BAD = {
    "not JSON": ('{"prompt": "a"', "is not JSON"),
    "a blank line": ("", "is not JSON"),
    "a list": ("[1]", "exactly the keys"),
    "no answer": ({"prompt": "a"}, "exactly the keys"),
    "another key": ({"prompt": "a", "answer": "b", "label": 1}, "got answer, label, prompt"),
    "keys of two forms": ({"prompt": "a", "answer": "b", "messages": CHAT}, "got answer, messages, prompt"),
    "an empty prompt": ({"prompt": " \n", "answer": "b"}, "'prompt' must be a text that is not blank"),
    "an empty answer": ({"prompt": "a", "answer": ""}, "'answer' must be a text that is not blank"),
    "a number for an answer": ({"prompt": "a", "answer": 4}, "'answer' must be a text that is not blank, got "
                               "4"),
    "half a character": ('{"prompt": "a", "answer": "\\ud800"}', "surrogate"),
    "one choice": (CHOICE | {"choices": ["4"], "answer": 0}, "two different answers or more"),
    "no list of choices": (CHOICE | {"choices": "34"}, "two different answers or more"),
    "one choice, twice": (CHOICE | {"choices": ["4", "4 "]}, "two different answers or more"),
    "a blank choice": (CHOICE | {"choices": ["4", " "]}, "a choice must be a text"),
    "an answer that is no choice": (CHOICE | {"answer": "5"}, "from 0 to 1, got '5'"),
    "an index too large": (CHOICE | {"answer": 2}, "from 0 to 1, got 2"),
    "a negative index": (CHOICE | {"answer": -1}, "from 0 to 1, got -1"),
    "true for an index": (CHOICE | {"answer": True}, "from 0 to 1, got True"),
    "one turn": ({"messages": CHAT[-1:]}, "a message of the user"),
    "a last turn of the user": ({"messages": CHAT[:-1]}, "end with one of the assistant"),
    "nobody asks": ({"messages": [CHAT[0], CHAT[2]]}, "a message of the user"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "x"}, CHAT[-1]]}, "message 1 must be an "
                        "object with exactly 'role' (one of system, user, assistant)"),
    "a turn with more": ({"messages": [CHAT[1] | {"name": "x"}, CHAT[-1]]}, "message 1 must be an object"),
    "an empty turn": ({"messages": [CHAT[1], CHAT[2] | {"content": ""}]}, "message 2: 'content' must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(file, name):
    line, words = BAD[name]
    good = CHOICE if isinstance(line, dict) and "choices" in line else {"prompt": "a", "answer": "b"}
    path = file(good, line)
    with pytest.raises(UserError) as found:
        read_examples(path)
    assert str(found.value).startswith(f"{path} line 2") and words in str(found.value)


def test_what_is_no_utf8_is_named(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'{"prompt": "a\xff", "answer": "b"}\n')
    with pytest.raises(UserError, match="line 1 is not JSON in UTF-8"):
        read_examples(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="seeds.jsonl cannot be read"):
        read_examples(tmp_path / "seeds.jsonl")


def test_kinds_are_not_mixed(file):
    with pytest.raises(UserError, match="line 3 has choices and the first has none"):
        read_examples(file({"prompt": "a", "answer": "b"}, {"messages": CHAT}, CHOICE))
    with pytest.raises(UserError, match="line 2 has no choices and the first has some"):
        read_examples(file(CHOICE, {"prompt": "a", "answer": "b"}))


@pytest.mark.parametrize(("one", "other", "same"), [
    ("12 + 3 =", "1 + 23 =", False), ("12 + 3", "12 - 3", False), ("1 2", "12", False),
    ("Is it 3?", "is  it 3 ?", True), ("a_b", "ab", False), ("Straße", "STRASSE", True), ("-5", "5", False),
])
def test_a_key_keeps_marks_and_where_words_end(one, other, same):
    assert (key(one) == key(other)) is same
