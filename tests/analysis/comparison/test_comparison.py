"""Studies of other protocols are told apart and never share a table; the command says what it compares, and
refuses what it cannot."""

import io
import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from portability import compare
from portability.analysis.comparison.page import page
from portability.analysis.comparison.rows import Basis, compared
from portability.analysis.comparison.text import gains, readme
from portability.core.specs import SCHEMA
from support.pages import HOSTILE, SMALL, Tags, payload
from support.synthetic import FACTS, Synthetic, build

KINDS = {  # what is changed in every record of a study
    "now": {"spec": {"train": {"tail": 0.0, "updates": 500}}},
    "mean": {"spec": {"train": {"tail": 0.25, "updates": 500}}},
    "newer": {"spec": {"train": {"tail": 0.0}}, "meta_info": {"package_info": {"transformers": "5.1.0"}}},
    "old": {"schema": 1}}


def changed(study: Synthetic, values: dict) -> Synthetic:
    for path in study.store.root.glob("runs/*/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return study


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four studies with the same numbers, of four kinds."""
    root = tmp_path_factory.mktemp("results")
    return {name: changed(build(root / name, SMALL), values) for name, values in KINDS.items()}


@pytest.fixture(scope="module")
def apart(four):
    return compared([study.store for study in four.values()])


def test_studies_of_other_kinds_never_share_a_table(apart):
    assert apart.bases().keys() == {
        Basis(SCHEMA, "4", "the last iterate", "eval_accuracy"),
        Basis(SCHEMA, "4", "the mean of the last 25 % of their updates", "eval_accuracy"),
        Basis(SCHEMA, "5", "the last iterate", "eval_accuracy"),
        Basis(1, "4", "a moving average that still holds the start", "eval_accuracy")}
    shown = list(gains(apart))
    assert len(shown) == 4 and len({block.title for block in shown}) == 4
    named = [{row[block.head.index("study")] for row in block.rows} for block in shown]
    assert sorted(map(sorted, named)) == [["mean"], ["newer"], ["now"], ["old"]]
    assert apart.studies[-1].name == "old"  # the newest protocol comes first


def test_studies_of_one_kind_share_a_table_and_keep_their_own_numbers(four, tmp_path):
    twin = changed(build(tmp_path / "twin", SMALL), KINDS["now"])
    for cell in twin.pick(init="ported", budget=500):
        value = json.loads(twin.path(cell.run_id).read_text())
        value["train_info"]["metrics"][-1]["eval_accuracy"] = 1.0
        twin.path(cell.run_id).write_text(json.dumps(value))
    both = compared([four["now"].store, twin.store])
    (block,) = gains(both, last=True)
    assert {row[block.head.index("study")] for row in block.rows} == {"now", "twin"}
    rows = both.rows.query("level == 'strategy' and against == 'scratch' and budget == 500")
    rows = rows.set_index("study")
    for name, study in (("now", four["now"]), ("twin", twin)):
        arms, bases = ([study.accuracy(cell) for cell in study.pick(init=init, budget=500)]
                       for init in ("ported", "scratch"))
        expected = 100 * (sum(arms) / len(arms) - sum(bases) / len(bases))
        assert rows.loc[name, "gain"] == pytest.approx(expected)
    alone = compared([four["now"].store]).rows
    pd.testing.assert_frame_equal(both.rows[both.rows["study"] == "now"].reset_index(drop=True), alone)


def test_the_page_has_a_table_for_each_kind_and_says_so(apart, tmp_path):
    html = page(apart, tmp_path)
    assert html.count('id="t-gains-') == 4 and "The studies hold 4 kinds of numbers" in html
    options = next(column["options"] for column in payload(html)["columns"] if column["key"] == "basis")
    assert len(options) == 4 and all(option in html for option in options)
    assert html == page(apart, tmp_path)


def test_a_row_that_lacks_cells_is_marked(tmp_path):
    study = build(tmp_path / "holes", SMALL)
    study.remove(study.pick(init="ported", seed=1)[0].run_id)
    found = compared([study.store]).rows
    assert set(found.loc[found["level"] == "strategy", "mark"]) == {"†"}
    (block,) = gains(compared([study.store]))
    assert all("†" in row[block.head.index("gain [95 %]")] for row in block.rows)


def test_no_name_is_taken_for_markup(tmp_path):
    study = build(tmp_path / "toy", replace(SMALL, methods=(HOSTILE,), port="a | b <i>"))
    found = compared([study.store])
    tags = Tags(page(found, tmp_path))
    assert len(tags.all("script")) == 2 and not tags.all("img") and not tags.all("i")
    assert "a \\| b \\<i>" in readme(found, tmp_path)


# ---- the command


def run(capsys, *words: object) -> tuple[int | None, str, str]:
    code = compare.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_terminal_has_every_kind_by_itself_in_a_hundred_columns(four, capsys):
    code, out, _ = run(capsys, four["now"].store.root.parent)
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    assert len(re.findall(r"^Accuracy in pp; marks evaluate .*\.$", out, re.M)) == 4
    assert "never pooled" in out and "exploratory" in out
    code, out, _ = run(capsys, four["now"].store.root, "--by", "pair", "--against", "sampled")
    assert code == 0 and "large" in out and "base" in out and "ported less sampled" in " ".join(out.split())


def test_csv_and_json_hold_all_rows(four, apart, capsys):
    names = ["now", "old"]
    roots, rows = [four[name].store.root for name in names], apart.rows[apart.rows["study"].isin(names)]
    table = pd.read_csv(io.StringIO(run(capsys, *roots, "--csv")[1]))
    assert table["study"].tolist() == rows["study"].tolist()
    assert table["gain"].tolist() == pytest.approx(rows["gain"].tolist())
    value = json.loads(run(capsys, *roots, "--json")[1])
    assert [study["name"] for study in value["studies"]] == names
    assert len(value["rows"]) == len(table) and value["rows"][0].keys() == set(table.columns)
    assert value["studies"][0]["folder"] == value["studies"][0]["name"]  # no place on this machine


def test_pages_are_written_whole_and_only_when_all_is_well(four, tmp_path, capsys):
    root, path = four["now"].store.root, tmp_path / "new" / "index.html"
    code, _, err = run(capsys, root, "--page", path, "--readme", tmp_path / "README.md")
    assert code == 0 and path.read_text().startswith("<!doctype html>") and f"written: {path}" in err
    assert "# Studies" in (tmp_path / "README.md").read_text()
    path.write_text("mine")
    assert run(capsys, root, "--page", path, "--against", "scratsh")[0] == 2 and path.read_text() == "mine"


@pytest.mark.parametrize(("words", "told"), [
    (["--against", "scratsh"], "did you mean 'scratch'?"),
    (["--metric", "eval_acuracy"], "eval_accuracy"),
    (["--published"], "no published copy in"),
    (["{root}"], "are both called"),
])
def test_what_cannot_be_compared_is_one_sentence(four, capsys, words, told):
    root = four["now"].store.root
    code, out, err = run(capsys, root, *(word.format(root=root) for word in words))
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1


def test_studies_tried_with_a_limit_are_left_out_unless_they_are_named(tmp_path, capsys):
    few = {**FACTS, "data": [{"name": "sst2", "eval": 20}]}
    for name, facts in {"mine": FACTS, "mine-limit-20": few, "rank-limit-8": FACTS}.items():
        build(tmp_path / name, SMALL, facts={**facts, "study": name})
    code, out, err = run(capsys, tmp_path, "--csv")
    assert code == 0 and set(pd.read_csv(io.StringIO(out))["study"]) == {"mine", "rank-limit-8"}
    assert err.startswith("portability: left out: mine-limit-20, tried with --limit; name the folder of one")
    code, out, err = run(capsys, tmp_path / "mine-limit-20", tmp_path / "mine", "--csv")
    assert (code, err) == (0, "") and set(pd.read_csv(io.StringIO(out))["study"]) == {"mine", "mine-limit-20"}
    for name in ("mine", "rank-limit-8"):
        (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name}-{name}")
    code, out, err = run(capsys, tmp_path)
    assert (code, out) == (2, "") and "only studies that were tried with --limit (mine-limit-20)" in err


def test_a_folder_without_a_study_and_studies_without_a_port_are_refused(tmp_path, capsys):
    assert run(capsys, tmp_path)[0] == 2
    build(tmp_path / "bare", replace(SMALL, inits=("scratch",)))
    code, _, err = run(capsys, tmp_path)
    assert code == 2 and "none of these studies has a module that was ported" in err
