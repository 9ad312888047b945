"""Every sentence of README's findings is a declared contrast of the published evidence, with its numbers and its verdict."""

import re
from pathlib import Path

import pytest

from analysis.entries import number
from analysis.evidence import gather
from analysis.metrics import UNITS
from analysis.primary import primary
from analysis.verdict import verdict_words
from portability.store import Store

ROOT = Path(__file__).parents[2]
FINDING = re.compile(r"^\*\*(?P<name>[^*]+)\*\*: (?P<words>.*?) (?P<size>[+−]\d+\.\d) points \[(?P<low>[+−]\d+\.\d), "
                     r"(?P<high>[+−]\d+\.\d)\]: (?P<verdict>ahead|behind|open)\.$")


@pytest.fixture(scope="module")
def evidence():
    return gather(Store(ROOT / "results/nano_evidence"), "eval_accuracy")


def findings() -> list[str]:
    """The bullets of README's section, one line each."""
    section = re.search(r"^## What the embedded hosts say$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S).group(1)
    return [" ".join(bullet.split()) for bullet in re.findall(r"^- (.*?)(?=^- |^$)", section, re.M | re.S)]


def test_every_sentence_of_the_findings_is_a_declared_contrast_and_every_contrast_is_there(evidence):
    declared = primary(evidence).set_index("name")
    said = [FINDING.match(line) for line in findings()]
    assert all(said), [line for line, found in zip(findings(), said, strict=True) if not found]
    assert [found["name"] for found in said] == declared.index.tolist()
    unit = UNITS[evidence.metric.difference]
    for found in said:
        row = declared.loc[found["name"]]
        assert [found[key] for key in ("size", "low", "high")] == [number(row[key], unit) for key in ("mean", "low", "high")]
        assert found["verdict"] == row["verdict"]
        assert str(row["budget"]) in found["words"] and not re.search(r"\d", found["words"].replace(str(row["budget"]), ""))


def test_the_picture_and_the_report_say_the_same_verdict(evidence):
    assert verdict_words(evidence) in (ROOT / "results/nano_evidence/report.md").read_text()
