"""Numbers in README and docs/results that come from the published evidence are those of its declared
contrasts."""

import re

import pandas as pd
import pytest

from portability.analysis.context import gather
from portability.analysis.formatting import number
from portability.analysis.measures.primary_contrasts import primary
from portability.analysis.metrics import UNITS
from portability.analysis.report.findings import verdict_words
from portability.store import Store
from support.synthetic import ROOT

PAGE = (ROOT / "docs/results/nano_evidence.md").read_text()
SIZE = r"(?P<size>[+−]\d+\.\d) points \[(?P<low>[+−]\d+\.\d), (?P<high>[+−]\d+\.\d)\]"
FINDING = re.compile(rf"^\*\*(?P<name>[^*]+)\*\*: (?P<words>.*?) {SIZE}: (?P<verdict>ahead|behind|open)\.$")


@pytest.fixture(scope="module")
def evidence():
    return gather(Store(ROOT / "results/nano_evidence"), "eval_accuracy")


def findings() -> list[str]:
    """The bullets of the page's declared contrasts, one line each."""
    section = re.search(r"^## The declared contrasts$(.*?)^## ", PAGE, re.M | re.S).group(1)
    return [" ".join(bullet.split()) for bullet in re.findall(r"^- (.*?)(?=^- |^$)", section, re.M | re.S)]


def test_every_sentence_of_the_findings_is_a_declared_contrast_and_every_contrast_is_there(evidence):
    declared = primary(evidence).set_index("name")
    said = [FINDING.match(line) for line in findings()]
    assert all(said), [line for line, found in zip(findings(), said, strict=True) if not found]
    assert [found["name"] for found in said] == declared.index.tolist()
    unit = UNITS[evidence.metric.difference]
    for found in said:
        row = declared.loc[found["name"]]
        assert [found[key] for key in ("size", "low", "high")] == [number(row[key], unit)
                                                                   for key in ("mean", "low", "high")]
        assert found["verdict"] == row["verdict"]
        assert str(row["budget"]) in found["words"] and not re.search(r"\d",
                                                                      found["words"].replace(
                                                                          str(row["budget"]), ""))


def test_readmes_finding_is_two_of_the_declared_contrasts():
    text = " ".join((ROOT / "README.md").read_text().split())
    said = {match[0] for match in re.finditer(SIZE, text)}
    early, late = (next(line for line in findings() if line.startswith(f"**against scratch {when}**"))
                   for when in ("early", "at the end"))
    assert said == {re.search(SIZE, early)[0], re.search(SIZE, late)[0]}
    assert early.endswith("ahead.") and late.endswith("open.") and "not decided" in text


def test_nano_full_agrees_in_every_verdict_that_it_shares_with_nano_evidence():
    tables = [pd.read_csv(ROOT / f"results/{name}/tables/primary.csv").set_index("name")["verdict"]
              for name in ("nano_full", "nano_evidence")]
    assert tables[0].to_dict() == tables[1].loc[tables[0].index].to_dict()
    assert (tables[0] == "ahead").sum() == 4 and (tables[0] == "open").sum() == 2


def test_the_picture_and_the_report_say_the_same_verdict(evidence):
    assert verdict_words(evidence) in (ROOT / "results/nano_evidence/report.md").read_text()
