"""What runs answered to each test example, beside the example."""

import json
from dataclasses import replace

import numpy as np
import pytest

from portability.analysis.answers import rows_asked
from portability.core.errors import UserError
from portability.data.sources import DataSource, read_split
from portability.export import main, run_of
from portability.store import Store
from support.synthetic import NANO


@pytest.fixture(scope="module")
def cell():
    """A cell of a published study whose run starts from an origin, and the cells beside it."""
    cells = [cell for manifest in Store(NANO).manifests() for cell in manifest["cells"]]
    one = next(cell for cell in cells if (cell["init"], cell["method"]) == ("ported", "lora"))
    place = {key: one[key] for key in ("method", "origin", "receiving", "relation", "data", "port", "seed")}
    return one, [cell for cell in cells if place.items() <= cell.items()]


def test_each_example_stands_beside_what_every_start_answered(cell, tmp_path, capsys):
    one, beside = cell
    assert main([str(NANO), one["run_id"], "--answers", str(tmp_path / "a.jsonl"), "--arms"]) == 0
    assert "400 examples; bare, ported, sampled, scratch" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    texts = read_split(DataSource(one["data"], path=f"embedded:{one['data']}"), "test")
    assert [(line["label"], line["example"]) for line in lines] == [
        (label, number) for number, (_, label) in enumerate(texts)]
    assert all(line["prompt"] == f"question : negative or positive ? {text} answer :"
               for line, (text, _) in zip(lines, texts, strict=True))
    assert {line["answer"] for line in lines} == {"negative", "positive"}
    for arm in ("bare", "ported", "sampled", "scratch"):
        run_id = next(cell["run_id"] for cell in beside if cell["init"] == arm)
        saved = Store(NANO).predictions(run_id)
        marks = [line["arms"][arm]["marks"] for line in lines]
        assert all(line["arms"][arm]["run"] == run_id for line in lines)
        margins = np.array([[mark["margin"] for mark in found] for found in marks], np.float32)
        assert np.array_equal(margins.T, saved["margin"])
        right = np.mean([found[-1]["right"] for found in marks])
        record = Store(NANO).read(run_id)["train_info"]["metrics"][-1]
        assert right == pytest.approx(record["eval_accuracy"])


def test_one_run_alone_and_what_is_refused(cell, tmp_path, capsys):
    one, beside = cell
    out, run = tmp_path / "a.jsonl", one["run_id"]
    assert main([str(NANO), run, "--answers", str(out)]) == 0
    assert {*json.loads(out.read_text().splitlines()[0])["arms"]} == {"ported"}
    scratch = next(cell["run_id"] for cell in beside if cell["init"] == "scratch")
    (tmp_path / "other").mkdir()
    for split in ("train", "validation", "test"):
        rows = [json.dumps({"text": text, "label": label}) for label, text in enumerate("ab")]
        (tmp_path / f"other/{split}.jsonl").write_text("\n".join(rows))
    (tmp_path / "empty").mkdir()
    new = ["--answers", str(tmp_path / "b.jsonl")]
    for words, said in (
        ([run], "say what to write"),
        ([run, "--answers", str(out)], "is there already"),
        ([scratch, *new, "--arms"], "stands beside different runs in"),
        ([run, *new, "--data", str(tmp_path / "other")], "is not the one that run"),
        ([run, *new, "--data", str(tmp_path / "empty")], "no file"),
        (["0" * 16, *new], "no run 0000000000000000"),
    ):
        capsys.readouterr()
        assert main([str(NANO), *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "empty", "other"]


def test_a_set_that_is_nowhere_is_one_sentence():
    run = run_of(Store(NANO), Store(NANO).ids()[0])
    with pytest.raises(UserError, match="data set 'mine' .* was in a local folder; name it: --data FOLDER"):
        rows_asked(replace(run, data=replace(run.data, name="mine", source="mine")), None)
