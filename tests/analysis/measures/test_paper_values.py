"""The published figures are whole and sourced, and a study is compared with them only where settings
agree."""

import math

import pandas as pd
import pytest

from portability.analysis.measures.paper_values import SETTING, compare, load


def ours(**row):
    """One number of a study, in the setting of the second paper's Llama-2 result on GSM."""
    return {"receiving": "llama-2-7b", "origin": "llama-2-13b", "data": "gsm", "method": "lora",
            "init": "extracted",
            "quantity": "accuracy 0-shot", "value": 0.26, "unit": "fraction", "low": 0.24, "high": 0.28,
            **row}


def one(found, **setting):
    """The one row of a comparison with that setting."""
    for key, value in setting.items():
        found = found[found[key] == value]
    assert len(found) == 1
    return found.iloc[0]


UNITS = {"percent": (0, 100), "count": (1, math.inf), "rank": (1, math.inf), "sign": (-1, 1)}
READS = ("table", "image of a table", "pixels of a chart", "text", "second-hand text")


def test_every_figure_of_the_file_has_a_source_a_unit_and_a_value_in_its_range_and_stands_there_once():
    figures = load()
    assert (figures[["paper", "place", "receiving", "method", "init", "data", "quantity", "source"]]
            != "").all(axis=None)
    assert set(figures["read"]) <= set(READS) and not figures.duplicated(["paper", "place", *SETTING,
                                                                          "quantity"]).any()
    for unit, rows in figures.groupby("unit"):
        assert rows["value"].between(*UNITS[unit]).all() and (unit != "sign"
                                                              or set(rows["value"].abs()) == {1})


def test_the_file_of_the_project_holds_what_was_read_of_both_papers():
    figures = load()
    assert dict(figures["paper"].value_counts()) == {"Zhong et al. 2024": 136, "Sabry & Belz 2024": 5}
    main = figures[(figures["place"] == "main results") & (figures["receiving"] == "llama-2-7b")
                   & (figures["data"] == "all")]
    assert dict(zip(main["init"], main["value"], strict=True)) == {"scratch": 32.28, "extracted": 34.47}
    assert one(figures, place="task-specific extraction", variant="seeds of lima",
               quantity="win rate")["value"] == 24.64
    assert one(figures, variant="structure: block", origin="llama-1-30b")["value"] == 28.63
    assert one(figures, unit="count")["value"] == 1440
    assert set(figures[figures["read"] == "pixels of a chart"]["place"]) == {"ablations"}


def test_the_averages_of_the_second_paper_are_those_of_its_own_columns():
    figures = load().query("paper == 'Zhong et al. 2024' and place != 'ablations'")
    for setting, rows in figures.groupby(["place", *SETTING[:2], "init", "variant"]):
        if "average score" in set(rows["quantity"]):
            parts = rows[rows["quantity"] != "average score"]["value"]
            mean = rows[rows["quantity"] == "average score"]["value"].item()
            assert len(parts) == 7 and parts.mean() == pytest.approx(mean, abs=0.011), setting


def test_a_figure_in_the_same_setting_is_compared_with_its_interval():
    row = one(compare(pd.DataFrame([ours()])), place="main results", receiving="llama-2-7b",
              origin="llama-2-13b", quantity="accuracy 0-shot", data="gsm")
    assert row["ours"] == pytest.approx(26.0) and row["difference"] == pytest.approx(0.7) and row[
        "within"] is True
    assert row["says"] == ("ours 26.00, published 25.30 percent, difference +0.70: within our interval "
                           "[24.00, 28.00]")
    row = one(compare(pd.DataFrame([ours(low=0.255)])), place="main results", receiving="llama-2-7b",
              origin="llama-2-13b", quantity="accuracy 0-shot", data="gsm")
    assert row["within"] is False and "outside our interval [25.50, 28.00]" in row["says"]


def test_a_claim_in_words_is_compared_by_its_side_of_zero():
    claim = load().query("quantity == 'gain over scratch'").iloc[0]
    setting = {name: claim[name] for name in SETTING} | {"quantity": claim["quantity"], "unit": "pp"}
    shuffled = setting | {"receiving": ";".join(reversed(claim["receiving"].split(";")))}
    for low, within in ((2.0, True), (-1.0, False)):
        row = one(compare(pd.DataFrame([shuffled | {"value": 7.0, "low": low, "high": 9.0}])),
                  quantity="gain over scratch")
        assert row["within"] is within and pd.isna(row["difference"]) and "published: above zero" in row[
            "says"]


def test_the_embedded_hosts_compare_with_nothing_and_every_row_says_why():
    found = compare(pd.DataFrame([ours(receiving="nano-raw-large", origin="nano-raw-base",
                                       data="nano_films")]))
    assert found["ours"].isna().all() and found["within"].isna().all()
    assert found["says"].str.startswith("not comparable: the study has no receiving host ").all()
    assert "llama-2-7b, but nano-raw-large" in found["says"].str.cat()
    assert list(found.columns) == [*load().columns, "ours", "low", "high", "difference", "within", "says"]


def test_what_a_study_has_only_in_other_rows_is_not_comparable_either():
    rows = [ours(origin="llama-1-13b"), ours(receiving="llama-1-7b")]
    row = one(compare(pd.DataFrame(rows)), place="main results", receiving="llama-1-7b", origin="llama-1-13b",
              quantity="accuracy 0-shot", data="gsm")
    assert row["says"] == ("not comparable: the study has every part of this setting, but no row with all of "
                           "them")


def test_a_number_without_an_interval_is_not_compared():
    row = one(compare(pd.DataFrame([ours(low=float("nan"))])), place="main results", receiving="llama-2-7b",
              origin="llama-2-13b", quantity="accuracy 0-shot", data="gsm")
    assert row["within"] is None and "no interval" in row["says"]


@pytest.mark.parametrize(("rows", "fault"), [
    ([ours(), ours()], "several rows of one setting"),
    ([ours(unit="loss")], "published in percent, and the study has it in loss"),
])
def test_a_frame_that_cannot_be_compared_is_refused(rows, fault):
    with pytest.raises(ValueError, match=fault):
        compare(pd.DataFrame(rows))
