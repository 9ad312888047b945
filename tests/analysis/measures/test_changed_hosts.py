"""What a module is worth on hosts made by recipes: lifts beside what was measured, and errors of predictions
by hand, each kind of change left out."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from portability.analysis.context import StudyContext, gather
from portability.analysis.load import HOST_PAIR
from portability.analysis.measures.changed_hosts import changed_hosts, has_changes, left_out, predicted
from portability.analysis.metrics import METRICS
from portability.analysis.tables.registry import build_table
from support.synthetic import FACTS, Axes, build
from support.written import change, entry

pytestmark = pytest.mark.unit
DERIVED = {"near": (["continued on films"], 60), "far": (["continued on films"], 240),
           "thin": (["thinned"], 0), "healed": (["thinned", "continued on films"], 120),
           "noisy": (["noised"], 0)}
LIFTS = {"near": 12.0, "far": 9.0, "thin": 2.0, "healed": 5.0, "noisy": 7.0}  # points; seeds add 0, 1, 2
CKA = {"near": .99, "far": .9, "thin": .3, "healed": .5, "noisy": .7}  # in the order of the lifts


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    """One origin and five hosts made of it, with lifts and similarities that the test wrote."""
    axes = Axes(methods=("lora",), pairs=tuple(("base", name) for name in LIFTS), relations=("same",))
    derived = {name: {"from": "base", "changes": kinds, "updates": updates}
               for name, (kinds, updates) in DERIVED.items()}
    study = build(tmp_path_factory.mktemp("changed") / "toy", axes, {**FACTS, "derived": derived})
    for cell in study.pick(init="ported", budget=0):
        lifted = study.runs[cell.bare_id][0] + (LIFTS[cell.receiving] + cell.seed) / 100
        change(study, cell.run_id, {0: lifted})
    read = gather(study.store).study
    rows = [{"one": name, "other": "base", "cka": CKA[name],
             "weight_distance": None if name == "thin" else 0.1} for name in LIFTS]
    return StudyContext(replace(read, pairs=pd.DataFrame(rows, columns=list(HOST_PAIR))),
                        METRICS["eval_accuracy"])


def test_each_host_has_its_lift_its_changes_and_what_was_measured(found):
    table = changed_hosts(found)
    assert len(table) == 5 and table["receiving"].tolist()[:2] == ["near", "far"]  # the best kind first
    row = entry(table, receiving="healed")
    assert row["mean"] == pytest.approx(LIFTS["healed"] + 1)
    assert row["changes"] == "thinned, then continued on films"
    assert row["kind"] == "thinned" and row["changed_updates"] == 120 and row["cka"] == 0.5
    assert np.isnan(entry(table, receiving="thin")["weight_distance"])


def by_hand(values: dict[str, float], lifts: dict[str, float]) -> float:
    """The error of a predictor, with scipy's line instead of numpy's."""
    ranks = dict(zip(values, stats.rankdata(list(values.values())), strict=True))
    kind = {name: kinds[0] for name, (kinds, _) in DERIVED.items()}
    errors = []
    for name in lifts:
        others = [other for other in lifts if kind[other] != kind[name]]
        line = stats.linregress([ranks[other] for other in others], [lifts[other] for other in others])
        errors.append(abs(line.intercept + line.slope * ranks[name] - lifts[name]))
    return float(np.mean(errors))


def test_errors_are_those_of_lines_fitted_without_the_hosts_kind(found):
    table = left_out(found)
    row = entry(table, predictor="cka")
    assert row["mean"] == pytest.approx(by_hand(CKA, {name: lift + 1 for name, lift in LIFTS.items()}))
    assert (row["known"], row["hosts"], row["kinds"], row["seeds"]) == (5, 5, 3, 3)
    plain = entry(table, predictor="mean of the others")
    kind = {name: kinds[0] for name, (kinds, _) in DERIVED.items()}
    expected = np.mean([abs(np.mean([LIFTS[other] for other in LIFTS if kind[other] != kind[name]]) - lift)
                        for name, lift in LIFTS.items()])
    assert plain["mean"] == pytest.approx(expected) and plain["less"] == 0
    assert row["less"] == pytest.approx(plain["mean"] - row["mean"]) and row["less"] > 0
    assert table["mean"].is_monotonic_increasing
    nothing = entry(table, predictor="rotation")  # never recorded: what the mean says
    assert nothing["known"] == 0 and nothing["mean"] == plain["mean"]


def test_a_line_through_ranks_finds_any_monotone_relation_and_needs_two_values():
    kinds = np.array(["a", "a", "b", "b", "c"])
    gains = np.array([10.0, 8.0, 6.0, 4.0, 2.0])
    assert predicted(np.exp(gains), gains, kinds) == pytest.approx(gains)
    assert predicted(-np.exp(gains), gains, kinds) == pytest.approx(gains)
    flat = predicted(np.ones(5), gains, kinds)
    assert flat == pytest.approx([4, 4, 20 / 3, 20 / 3, 7])


def test_intervals_are_of_seeds_and_seeds_that_agree_have_none_to_speak_of(found):
    row = entry(left_out(found), predictor="cka")
    assert row["high"] - row["low"] == pytest.approx(0, abs=1e-6)  # all hosts' lifts grow alike with the seed


def test_tables_stand_in_reports_of_such_studies_alone(found):
    assert has_changes(found)
    alone = replace(found, study=replace(found.study, facts=[FACTS]))
    assert not has_changes(alone)
    shown = build_table("left_out", found).shown
    assert list(shown.columns) == ["method", "predictor", "error", "less than the mean's",
                                   "hosts that have it", "kinds", "seeds"]
    changed = build_table("changed_hosts", found).shown["change"]
    assert "thinned, then continued on films" in changed.tolist()


def test_a_study_that_has_begun_has_a_report_and_hosts_of_several_origins_are_left_out(found):
    cells = found.study.cells
    begun = cells["receiving"].isin(["near", "far"])
    lost = cells.assign(value=cells["value"].where(begun), status=cells["status"].where(begun, "missing"))
    assert left_out(replace(found, study=replace(found.study, cells=lost))).empty
    other = cells[cells["receiving"] == "noisy"].assign(origin="stranger")
    more = replace(found, study=replace(found.study, cells=pd.concat([cells, other], ignore_index=True)))
    assert "noisy" not in set(changed_hosts(more)["receiving"]) and not has_changes(more)
