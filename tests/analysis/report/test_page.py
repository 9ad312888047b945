"""The page of a study: it holds what the study holds, loads nothing, and no text in it is taken for
markup."""

import base64
import hashlib
import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from portability.analysis.context import gather
from portability.analysis.metrics import OF_LABELS
from portability.analysis.report.findings import QUESTIONS
from portability.analysis.report.html import ASSETS, SCRIPT, TABLE
from portability.analysis.report.run_details import EXAMPLES, POINTS, details
from portability.analysis.tables.registry import TABLES
from portability.analysis.tables.registry import build as build_tables
from portability.analysis.tables.render import grid
from portability.core.errors import redact_paths
from portability.core.specs import SCHEMA
from portability.planning.plan import plan
from portability.planning.selection import select_runs
from portability.run import compose
from portability.store import Store
from support.pages import HOSTILE, SMALL, Made, Tags, made, payload
from support.synthetic import FACTS, NANO, build, record, write

pytestmark = pytest.mark.system  # whole studies are analysed


def column(data: dict[str, Any], key: str) -> list[Any]:
    """A column of the cells in the payload."""
    found = data["cells"][key]
    return [found["words"][code] for code in found["codes"]] if isinstance(found, dict) else found


@pytest.fixture(scope="module")
def nano() -> Made:
    return made(Store(NANO))


# ---- the page


def test_the_page_of_the_published_study_is_small_and_names_no_address(nano):
    assert len(nano.html.encode()) < 5e6
    tags = Tags(nano.html).tags
    loads = ("src", "href", "srcset", "action")
    addresses = [value for _, attributes in tags for key, value in attributes.items() if key in loads]
    assert addresses and all(value.startswith(("#", "data:")) for value in addresses)
    style, script = [text for text in Tags(nano.html).raw if not text.startswith("{")]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|eval\(|document\.write",
                         style + script)
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on") or key == "style"]


def test_the_policy_allows_the_pages_own_style_and_script_and_no_loading(nano):
    tags = Tags(nano.html)
    policy = next(meta["content"] for meta in tags.all("meta")
                  if meta.get("http-equiv") == "Content-Security-Policy")
    style, script = [text for text in tags.raw if not text.startswith("{")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for rule, text in (("style-src", style), ("script-src", script)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert (rules["default-src"], rules["img-src"], rules["base-uri"]) == ("'none'", "data:", "'none'")


def test_the_verdict_charts_tables_and_counts_are_written_out_without_a_script(nano):
    before, after = nano.html.split('<script type="application/json"')
    for text in ("Of 6 contrasts declared before the runs, 4 are ahead (against scratch early +9.4 pp",
                 "+13.4 [+8.2, +18.7]",
                 "92343b28368056d992c71c4dbe522cec1f48c62d285e8f4793ef847801d81387", "88cc4f87567706ff",
                 "452872841eb3074ea713b0694e46a36c8de1cb82", "transformers", "4.57.6"):
        assert text in before, text
    # panels of eight charts
    assert "<img" not in before and before.count('class="plot s0"') == 2 + 1 + 4 + 2 + 4 + 4 + 2 * 16


def test_cells_are_counted_as_the_grid_counts_them(nano):
    counts = dict(re.findall(r"<div><dt>([^<]+)</dt><dd>([\d,]+) <small>[\d,]+ done</small>", nano.html))
    assert counts == {"cells of the grid": "1,440", "before any update": "480", "of bare hosts": "160"}


def test_every_table_answers_one_question_and_headings_are_sentences(nano):
    named = [name for question in QUESTIONS for name in question.tables]
    assert sorted(named) == sorted(TABLES)
    headings = re.findall(r"<(?:h1|h2|h3|figcaption|summary)[^>]*>([^<]+)</", nano.html.split('<dialog')[0])
    assert len(headings) > 40
    odd = [text for text in headings if text.strip()[-1] not in ".?" or "_" in text or not text[0].isupper()]
    assert odd == ["Read with care"]


def test_the_old_protocol_is_named_at_the_head_and_under_every_table(tmp_path):
    words = "Old protocol (schema 1): marks evaluate a moving average that still holds the start."
    study = build(tmp_path / "old", SMALL)
    for path in study.store.root.glob("runs/*/*/record.json"):
        path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 1'))
    html = made(study.store).html
    assert words in html.split("<h1>")[0]
    under = re.findall(r'<p class="note">([^<]*)</p>\s*</(?:article|details)>', html)
    tables_there = [text for text in under if "Lines:" not in text and "Bars:" not in text]
    assert len(tables_there) == html.count('id="t-') and all(words in text for text in tables_there)
    assert "protocol" not in re.sub("<style.*</style>", "", made(build(tmp_path / "new", SMALL).store).html,
                                    flags=re.S)


def test_no_star_stands_on_an_interval_that_holds_0(nano):
    marked = [(low, high) for low, high in re.findall(r"\[([+−]?[\d.]+), ([+−]?[\d.]+)\]\*", nano.html)]
    assert marked
    for ends in marked:
        low, high = (float(end.replace("−", "-")) for end in ends)
        assert low > 0 or high < 0, ends


def test_the_script_is_the_projects_own(nano):
    style, script = [text for text in Tags(nano.html).raw if not text.startswith("{")]
    assert script == "\n".join((ASSETS / name).read_text() for name in (TABLE, SCRIPT))
    assert not re.search(r"plotly|d3js|vega|bokeh|chart\.min|jquery|MIT License|Copyright", style + script,
                         re.IGNORECASE)


def test_best_and_second_are_marked_as_in_the_other_forms(nano):
    found = build_tables(gather(Store(NANO), "eval_accuracy"), ["init_by_method"])
    styles = [entry.style for row in grid(found[0]).rows for entry in row]
    part = nano.html.split('id="t-init_by_method"')[1].split("</table>")[0]
    assert part.count('class="best"') == styles.count("best") > 0
    assert part.count('class="second"') == styles.count("second") > 0


def test_ids_are_unique_labels_point_somewhere_and_headings_leave_no_level_out(nano):
    tags = Tags(nano.html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for key in ("aria-labelledby", "for"):
            # the heading of a run is made when it is opened
            assert attributes.get(key, "h-run") in (*ids, "h-run")
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    pictures = [svg for svg in Tags(nano.html).all("svg") if svg.get("role") == "img"]
    assert pictures and all(svg["aria-label"] and svg["viewbox"] and not {"width", "height"} & set(svg)
                            for svg in pictures)
    assert all(head.get("scope") in ("col", "row") for head in Tags(nano.html).all("th"))


def test_the_same_study_gives_the_same_bytes(tmp_path):
    store = build(tmp_path / "toy", SMALL).store
    assert made(store).html == made(store).html


def test_no_text_of_a_study_is_taken_for_markup(tmp_path):
    axes = replace(SMALL, methods=(HOSTILE,), pairs=((HOSTILE, "large"), ("large", HOSTILE)))
    facts = {**FACTS, "sweep": HOSTILE, "data": [{"name": HOSTILE, "train": 1, "eval": 1, "dropped": 0}]}
    study = build(tmp_path / "toy", axes, facts)
    lost, odd = study.pick(init="ported")[0].run_id, study.pick(init="sampled")[0].run_id
    study.remove(lost)
    study.store.fail(lost, {"error": HOSTILE})
    value = record(odd, {0: 0.5, 100: 0.6, 500: 0.7})
    value["spec"] = {"host": {"name": HOSTILE, "fingerprint": HOSTILE, "source": HOSTILE, "revision": HOSTILE,
                              "shape": {"family": HOSTILE, "layers": {HOSTILE: 1}, "hidden": 8}}}
    value["meta_info"]["package_info"] = {HOSTILE: HOSTILE}
    write(study.store, odd, value)
    tame, wild = made(build(tmp_path / "tame", SMALL).store), made(study.store)
    expected, found = Tags(tame.html), Tags(wild.html)
    assert len(found.all("script")) == len(expected.all("script")) == 2
    assert not found.all("img") and found.all("svg")
    keys = {key for _, attributes in expected.tags for key in attributes}
    assert {key for _, attributes in found.tags for key in attributes} <= keys
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in expected.tags} | {"strong", "small", "code",
                                                                                  "ul"}
    data = payload(wild.html)
    assert HOSTILE in column(data, "method") and data["runs"][lost]["error"] == redact_paths(HOSTILE)


def test_what_is_wrong_is_named(tmp_path):
    study = build(tmp_path / "toy", SMALL)
    lost, failed = study.pick(init="ported")[0].run_id, study.pick(init="sampled")[0].run_id
    study.remove(lost)
    study.remove(failed)
    study.store.fail(failed, {"error": "out of memory"})
    html = made(study.store, parts=[]).html
    problems = html.split('id="problems"')[1].split("</section>")[0]
    assert lost in problems and failed in problems and "out of memory" in problems
    assert "<dt>cells of the grid</dt><dd>24 <small>20 done, 2 failed, 2 missing</small>" in html


def test_the_cells_in_the_page_are_those_of_the_study(nano):
    data, cells = payload(nano.html), nano.found.study.cells
    for key in ("method", "origin", "receiving", "relation", "init", "seed", "budget", "run_id", "status",
                "native_id"):
        assert column(data, key) == cells[key].tolist(), key
    for key in (*OF_LABELS, "native", "bare", "lift"):
        assert column(data, key) == [None if pd.isna(value) else value for value in cells[key]], key


def test_a_column_is_shown_where_a_study_has_several_of_it(tmp_path, nano):
    def shown(html: str) -> set[str]:
        return {item["key"] for item in payload(html)["columns"] if item["shown"]}

    assert not {"origin_data", "data", "port"} & shown(nano.html)  # a relation says which data set
    study = build(tmp_path / "toy", SMALL)
    more = build(tmp_path / "more", replace(SMALL, port="repeat"))
    study.store.expect(more.cells, FACTS)
    assert "port" in shown(made(study.store, parts=[]).html)


# ---- details


def test_details_say_what_the_record_says(nano):
    store = Store(NANO)
    run_id, run = next((i, run) for i, run in nano.details.runs.items()
                       if "carried into" in run["sections"][1]["title"])
    kept, parts = store.read(run_id), nano.details.parts
    train, info, spec = kept["train_info"], kept["port_info"], kept["spec"]
    marks = [mark["updates"] for mark in train["metrics"]]
    assert parts[run["curve"][0]] == marks and run["origin"] == spec["origin"]
    assert run["curve"][1] == [100 * mark["eval_accuracy"] for mark in train["metrics"]]
    assert parts[run["loss"][0]] == [update for update, _ in train["train_loss"]]
    assert run["loss"][1] == pytest.approx([loss for _, loss in train["train_loss"]], rel=1e-3)
    measured, ported, predicted, spent = run["sections"]
    assert [row[1] for row in measured["rows"]] == [
        f"{value:.4f}" if name == "eval_loss" else f"{value * 100:.2f}"
        for name, value in ((name, train["metrics"][0][name]) for name in OF_LABELS)]
    facts = dict(ported["facts"])
    assert facts["actions"] == ", ".join(f"{name} {count}" for name, count in info["actions"].items())
    assert facts["carried norm fraction"] == f"{100 * info['carried_norm_fraction']:.1f} %"
    assert all(f"{stack} " in facts["layer map"] for stack in info["layer_map"])
    assert f"{train['num_trainable_params']:,}" in dict(spent["facts"])["num trainable params"]
    settings = {title: dict(map(tuple, parts[place])) for title, place in run["settings"]}
    assert settings["run"]["seed"] == str(spec["seed"]) and settings["host"]["name"] == spec["host"]["name"]
    assert len(predicted["rows"]) == EXAMPLES and len(predicted["head"]) == 2 + len(marks)


def test_every_run_is_described_and_what_many_share_stands_once(nano):
    assert len(nano.details.runs) == nano.details.total == 443 and not nano.details.left_out
    assert len(nano.details.parts) < 700
    texts = [json.dumps(part, sort_keys=True) for part in nano.details.parts]
    assert len(texts) == len(set(texts))
    assert len(nano.found.study.parts["host"]) == 3 and len(nano.found.study.parts["data"]) == 2


def test_a_long_curve_keeps_its_ends_and_a_number_that_is_not_finite_is_none(tmp_path):
    study = build(tmp_path / "toy", SMALL)
    cell = study.pick(init="ported")[0]
    value = record(cell.run_id, {0: 0.5, 100: 0.6, 500: float("nan")})
    value["train_info"]["train_loss"] = [[i, float("inf") if i == 1 else 1 / i] for i in range(1, 5001)]
    write(study.store, cell.run_id, value)
    found = made(study.store, parts=[])
    run = found.details.runs[cell.run_id]
    place, values, count = run["loss"]
    updates = found.details.parts[place]
    assert (len(updates), updates[0], updates[-1], count) == (POINTS, 1, 5000, 5000)
    assert values[0] is None and run["curve"][1][2] is None and run["sections"][0]["rows"][0][3] == "–"
    assert payload(found.html)["runs"][cell.run_id]["curve"][1][2] is None


def test_a_run_that_is_not_done_has_its_error_without_paths(tmp_path):
    study = build(tmp_path / "toy", SMALL)
    lost, failed, torn, newer = (study.pick(init="ported", budget=0)[i].run_id for i in range(4))
    study.remove(lost)
    study.remove(failed)
    trace = 'File "/home/somebody/a/b.py", line 1'
    study.store.fail(failed, {"error": "no /home/somebody/secret/data/x", "traceback": trace})
    study.path(torn).write_text("{")
    write(study.store, newer, record(newer, {0: 0.5}, schema=99))
    found = made(study.store, parts=[])
    runs = found.details.runs
    assert [runs[i]["state"] for i in (lost, failed, torn, newer)] == ["missing", "failed", "broken",
                                                                       "foreign"]
    assert "line 1" in runs[failed]["error"] and "schema 99" in runs[newer]["error"]
    assert "/home/" not in found.html and str(tmp_path) not in found.html


def test_a_run_without_predictions_says_so(tmp_path):
    study = build(tmp_path / "toy", SMALL)
    run = details(study.store, gather(study.store, "eval_accuracy")).runs[study.cells[0].run_id]
    note = next(section["note"] for section in run["sections"] if section["title"] == "Predictions")
    assert "cannot be read" in note and str(tmp_path) not in note


def test_too_many_runs_are_counted_and_not_described(tmp_path):
    store = build(tmp_path / "toy", SMALL).store
    found = gather(store, "eval_accuracy")
    total = details(store, found).total
    few = details(store, found, most=total - 1)
    assert (few.runs, few.parts, few.total, few.left_out) == ({}, [], total, True)
    assert details(store, found, most=total).runs
    assert "too many for one page" in made(store, details=few, parts=[]).html
    assert "too many for one page" not in made(store, parts=[]).html


# ---- commands


def test_the_command_of_a_run_chooses_that_very_run(nano):
    runs, cells = nano.details.runs, nano.found.study.cells
    assert all(run["command"] for run in runs.values())
    read = set(cells["run_id"])
    # an origin on other data
    unread = next(i for i in runs if i not in read and i not in set(cells["native_id"]))
    picks = [cells[cells["init"] == "ported"].iloc[0]["run_id"],
             cells[cells["init"] == "bare"].iloc[0]["run_id"], unread]
    for run_id in picks:
        words = shlex.split(runs[run_id]["command"])
        assert words[:3] == ["python", "-m", "portability.run"]
        study = compose(words[3:])
        ids = select_runs(plan(study.grid), study.part)
        assert run_id in ids and len(ids) <= 4 and study.name == "full_nano"


def test_a_command_is_quoted_for_the_shell_and_for_hydra(tmp_path):
    study = build(tmp_path / "toy", SMALL, {**FACTS, "sweep": None, "study": "toy"})
    digits = "0012345678901234"
    facts = {**FACTS, "overrides": ["grid.seeds=[7, 8]", "study=toy"], "study": "toy"}
    bare = "b" * 16
    study.store.expect([replace(study.cells[0], seed=7, run_id=digits),
                        replace(study.cells[0], seed=8, run_id=bare, bare_id=bare, native_id="")], facts)
    runs = details(study.store, gather(study.store, "eval_accuracy")).runs
    words = shlex.split(runs[digits]["command"])[3:]
    assert words == ["grid.seeds=[7, 8]", "study=toy", f'only={{run_id: "{digits}"}}']
    assert compose(words[1:]).part.only == {"run_id": [digits]}
    assert "" not in runs and shlex.split(runs[bare]["command"])[-1] == f'only={{run_id: "{bare}"}}'
    assert shlex.split(runs[study.cells[0].run_id]["command"])[3] == "study=toy"
