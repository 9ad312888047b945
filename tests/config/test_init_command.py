"""`portability init`: five answers, by options or in standard input, make a study that composes; a wrong one
is a sentence and leaves nothing behind."""

import errno
import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from portability.config.beginning import entry_of, put_aside
from portability.core.errors import UserError
from portability.init import main
from portability.run import compose
from support.peft_methods import write_plain


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """An empty folder, in which `a` is a folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hosts(away, make_host):
    """Two tiny hosts, linked into the folder."""
    for name, seed in (("small", 0), ("large", 1)):
        (away / name).symlink_to(make_host("llama", 32, 2, 4, seed).source)


def rows(count, **columns):
    """Rows of texts of two labels, ham and spam."""
    said = {"text": "text", "label": "label"} | columns
    return [{said["text"]: f"message number {place}", said["label"]: ("ham", "spam")[place % 2]}
            for place in range(count)]


def jsonl(path, held):
    path.write_text("".join(json.dumps(row) + "\n" for row in held))
    return str(path.name)


def said(capsys, code, *words, answers=None, monkeypatch=None):
    """What the command says, with these lines as standard input."""
    if answers is not None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert err.count("\n") == (code != 0) and err.startswith("portability: " if code else "")
    return out if code == 0 else err


def test_the_defaults_make_a_study_of_the_embedded_hosts_with_their_question(away, capsys):
    assert said(capsys, 0, "--yes").startswith("wrote study.yaml\n")
    got = compose(["study.yaml"])
    assert [[host.name for host in pair] for pair in got.grid.pairs] == [["nano-raw-base", "nano-tuned-base"]]
    assert got.grid.task.template.startswith("question : negative") and got.warnings == []
    assert (got.name, list(got.data.sources), [one.name for one in got.grid.methods]) == (
        "study", ["nano_films"], ["lora_peft"])
    assert [path.name for path in away.iterdir()] == ["study.yaml"]


def test_five_answers_make_a_study_of_ones_own(away, make_host, capsys, monkeypatch):
    hosts(away, make_host)
    jsonl(away / "mails.jsonl", rows(50, text="content", label="class"))
    answers = "\nsmall\nlarge\nmails.jsonl\n\n"
    out = said(capsys, 0, "mine.yaml", answers=answers, monkeypatch=monkeypatch)
    assert out.count("]: ") == 4 and "wrote mine.yaml" in out
    held = yaml.safe_load((away / "mine.yaml").read_text())
    asked = "{text}\nQuestion: ham or spam?\nAnswer:"
    assert held["data"] == {"mails": {
        "train": "mails-train.jsonl", "test": "mails-test.jsonl", "text_column": "content",
        "label_column": "class", "labels": ["ham", "spam"],
        "task": {"template": asked, "label_words": ["ham", "spam"], "max_length": 128}}}
    assert (held["hosts"], held["methods"]) == ({"small": "small", "large": "large"},
                                                {"lora_peft": {"learning_rate": 0.001}})
    got = compose(["mine.yaml"])
    assert got.grid.task_of(got.grid.data[0]).template == asked
    assert got.data.counts["mails"]["train"] == 40 and got.data.counts["mails"]["test"] == 10
    parts = [json.loads(line) for split in ("train", "test")
             for line in (away / f"mails-{split}.jsonl").read_text().splitlines()]
    assert sorted(map(str, parts)) == sorted(map(str, rows(50, text="content", label="class")))


def test_options_answer_and_paths_count_from_the_studys_folder(away, make_host, capsys):
    hosts(away, make_host)
    (away / "studies").mkdir()
    (away / "test.csv").write_text("text,label\na b,0\nb c,1\n")
    jsonl(away / "train.jsonl", [{"text": f"t {place}", "label": place % 2} for place in range(4)])
    said(capsys, 0, "studies/mine.yaml", "--origin", "small", "--receiving", "large", "nano-raw-base",
         "--method", "lora", "--train", "train.jsonl", "--test", "test.csv", "--yes")
    held = yaml.safe_load((away / "studies/mine.yaml").read_text())
    assert held["data"]["train"].pop("task")["label_words"] == ["negative", "positive"]
    assert held["data"] == {"train": {"train": "../train.jsonl", "test": "../test.csv"}}
    assert held["hosts"] == {"small": "../small", "large": "../large", "nano-raw-base": None}
    got = compose([str(away / "studies/mine.yaml")])
    assert [[host.name for host in pair] for pair in got.grid.pairs] == [["small", "large"],
                                                                        ["small", "nano-raw-base"]]


def test_a_trained_adapter_is_the_method_and_the_origin(away, load, make_host, capsys):
    hosts(away, make_host)
    write_plain(away / "my-lora", load("llama", 32, 2, 4), "lora")
    jsonl(away / "mails.jsonl", rows(20))
    said(capsys, 0, "mine.yaml", "--method", "my-lora", "--origin", "small", "--receiving", "large",
         "--train", "mails.jsonl", "--yes")
    got = compose(["mine.yaml"])
    assert got.grid.module.name == "my-lora" and got.grid.methods[0].settings["r"] == 4
    assert [host.name for host in got.grid.pairs[0]] == ["small", "large"]


def test_an_adapter_that_is_called_as_a_method_of_conf_gets_a_name_of_its_own(away, load, make_host, capsys):
    hosts(away, make_host)
    write_plain(away / "lora", load("llama", 32, 2, 4), "lora")
    jsonl(away / "mails.jsonl", rows(20))
    said(capsys, 0, "mine.yaml", "--method", "./lora", "--origin", "small", "--receiving", "large",
         "--train", "mails.jsonl", "--yes")
    (method,) = compose(["mine.yaml"]).grid.methods
    assert (method.name, method.settings["r"]) == ("lora-adapter", 4)


COLUMNS = ("--text-column", "a", "--label-column", "b")


@pytest.mark.parametrize(("words", "says"), [
    (["--method", "lorra"], "unknown method or folder of an adapter 'lorra'; .*did you mean 'lora'"),
    (["--method", "."], r"\. holds no adapter_config.json"),
    (["--origin", "nano-raw-bas"], "unknown host or folder 'nano-raw-bas'.*mean 'nano-raw-base'"),
    (["--origin", "."], r"\. holds no config.json: it is no folder of a host"),
    (["--receiving", "nano-raw-base"], "'nano-raw-base' is both hosts; name another one"),
    (["--train", "nano_film"], "unknown data set, file or folder .*did you mean 'nano_films'"),
    (["--train", "a.csv"], "there is no file a.csv"),
    (["--train", "a.txt"], r"a data file ends in one of \.jsonl"),
    (["--train", "nano_films", "--test", "b.csv"], "--test goes with a file to train on"),
    (["--train", "odd.csv"], r"which column holds the text\? It has 'a', 'b'; say --text-column NAME"),
    (["--train", "odd.csv", "--text-column", "c"], r"holds the text\? It has 'a', 'b'"),
    (["--train", "odd.csv", *COLUMNS], "odd.csv holds 2 examples, too few"),
    (["--train", "odd.csv", "--test", "odd.csv", *COLUMNS], "one split of the source cannot serve twice"),
    (["--origin", "owner/name"], "cannot fetch owner/name"),
    (["--method", "x/y", "--receiving", "tasks-base"], "x/y"),
    (["study.yml.txt"], "a study's file ends in .yaml"), (["there.yaml"], "there.yaml is there already"),
    (["no/a.yaml"], "no: there is no such folder"),
])
def test_a_wrong_answer_is_a_sentence_and_nothing_is_written(away, capsys, words, says):
    (away / "a.txt").write_text("a")
    (away / "odd.csv").write_text("a,b\nx,1\ny,1\n")
    (away / "there.yaml").write_text("")
    before = sorted(away.iterdir())
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(said(capsys, 2, *words, "--yes"))
    assert sorted(away.iterdir()) == before


def test_standard_input_that_ends_says_which_answer_is_missing(away, capsys, monkeypatch):
    err = said(capsys, 2, answers="\n\n", monkeypatch=monkeypatch)
    assert "no answer to 'Host that receives them" in err and "give --receiving, or --yes" in err
    assert list(away.iterdir()) == []


@pytest.mark.parametrize(("held", "entry"), [
    ([{"premise": "a", "hypothesis": "b", "label": 1}, {"premise": "a", "hypothesis": "b", "label": 0}],
     {"text_column": "premise", "pair_column": "hypothesis"}),
    ([{"text": "a", "stars": 5}, {"text": "b", "stars": 1}], {"label_column": "stars", "labels": [1, 5]}),
    ([{"prompt": "a", "answer": "b"}],
     {"answers": {"scoring": "exact_match", "new_tokens": 32, "max_length": 512}}),
    ([{"prompt": "a", "answer": 0, "choices": ["b", "c"], "id": 1}],
     {"answers": {"scoring": "choice"},
      "columns": {"prompt": "prompt", "choices": "choices", "answer": "answer"}}),
    ([{"text": "a", "label": 0.5}], r"label in column 'label' must be a text or a whole number, got 0.5"),
    ([{"text": "a", "label": "b"}, {"text": "a", "label": 1}], "holds 2 different values, some texts"),
    ([{"text": "a", "label": place} for place in range(200)], "holds 200 different values"),
    (["a"], "holds no examples with named columns"), ([], "holds no examples"),
])
def test_what_a_file_holds_is_read_off_its_rows(away, held, entry):
    jsonl(away / "a.jsonl", held)
    if isinstance(entry, dict):
        assert entry_of([away / "a.jsonl"], None, None) == entry
        return
    with pytest.raises(UserError, match=entry):
        entry_of([away / "a.jsonl"], None, None)


def test_what_is_put_aside_never_takes_the_place_of_a_file(away):
    jsonl(away / "a.jsonl", rows(10))
    jsonl(away / "a-test.jsonl", rows(1))
    with pytest.raises(UserError, match=r"a-test.jsonl is there already, .* give it as --test, or delete it"):
        put_aside(away / "a.jsonl", away, None)
    assert sorted(path.name for path in away.iterdir()) == ["a-test.jsonl", "a.jsonl"]


def test_where_one_part_cannot_be_written_neither_stays(away, capsys, monkeypatch):
    jsonl(away / "a.jsonl", rows(10))
    write = Path.write_text

    def full(path, text, **more):
        if path.name == "a-test.jsonl":
            write(path, text[:9], **more)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full)
    assert "a-test.jsonl: No space left on device; nothing was written" in said(
        capsys, 2, "--train", "a.jsonl", "--yes")
    assert [path.name for path in away.iterdir()] == ["a.jsonl"]
