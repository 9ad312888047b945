"""A stranger with a wheel, 200 lines and a LoRA of peft has a ported adapter and a report after six commands,
by the tutorial alone."""

import csv
import json
import re
import shutil

import pytest
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from support.blocks import ROOT, blocks, compared, environment, run
from support.wheel import built

PAGE = ROOT / "docs/tutorial.md"
COMMANDS = (
    "pip install ",
    "portability port ",
    "portability port ",
    "portability run ",
    "portability run ",
    "portability analyze ",
)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """The folder after all that the tutorial says was typed there, and the tutorial with what was printed."""
    root = tmp_path_factory.mktemp("stranger")
    here = root / "here"
    here.mkdir()
    shutil.copy(built(root), here)
    page = run(PAGE.read_text(), here, environment(root / "installed", checkout=False))
    installed = root / "installed"
    assert (installed / "portability/__init__.py").is_file() and (installed / "bin/portability").is_file()
    return here, page


def test_there_are_six_commands():
    typed = [
        line.removeprefix("$ ")
        for block in blocks(PAGE.read_text())
        if block.runs and block.language != "python"
        for line in block.text.splitlines()
        if block.language == "sh" or line.startswith("$ ")
    ]
    assert len(typed) == 6 and all(
        line.startswith(start) for line, start in zip(typed, COMMANDS, strict=True)
    )


def test_what_is_typed_prints_what_the_tutorial_shows(stranger):
    _, page = stranger
    assert compared(page) == compared(PAGE.read_text()), (
        "PYTHONPATH=tests python -m support.blocks docs/tutorial.md"
    )


def test_the_lines_are_two_hundred_and_the_ported_adapter_is_one_of_peft(stranger):
    here, page = stranger
    files = [here / f"reviews/{name}.jsonl" for name in ("train", "test")]
    texts = {json.loads(line)["text"] for path in files for line in path.read_text().splitlines()}
    assert len(texts) == 200
    new = AutoModelForSeq2SeqLM.from_pretrained(here / "new-base")
    assert PeftModel.from_pretrained(new, here / "my-lora-on-new-base").peft_config["default"].r == 8
    bare, ported = (float(re.search(rf"^{arm}: (.*?)%", page, re.M)[1]) for arm in ("bare", "ported"))
    assert bare < 70 and ported > 90


def test_there_is_a_report_with_the_finding(stranger):
    here, _ = stranger
    report = (here / "results/reviews/report/index.html").read_text()
    assert "against scratch early" in report
    with (here / "results/reviews/tables/primary.csv").open() as file:
        verdicts = {row["name"]: row["verdict"] for row in csv.DictReader(file)}
    assert verdicts == {"against scratch early": "ahead", "against scratch at the end": "open"}
