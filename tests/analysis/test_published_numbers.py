"""Declared contrasts of the published studies, computed once more: from the Parquet and the manifest alone,
with nothing of `analysis`, by loops over plain arrays (D-119)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

ROOT = Path(__file__).parents[2] / "results"
DECLARED = sorted(path.parents[1] for path in ROOT.glob("*/tables/primary.csv"))
PLACE = ["method", "origin", "receiving", "relation"]


@pytest.fixture(scope="module", params=DECLARED, ids=lambda path: path.name)
def study(request):
    """A study's manifest, cells, whether each prediction is right, and the table to be checked."""
    folder = request.param
    (manifest,) = (json.loads(path.read_text()) for path in (folder / "manifests").iterdir())
    cells = pd.read_parquet(folder / "published/cells.parquet")
    found = pd.read_parquet(folder / "published/predictions.parquet").sort_values(["run_id", "updates",
                                                                                   "example"])
    found["right"] = (found["margin"] > 0) == (found["label"] == 1)
    decides = ranks if manifest.get("primary_metric") == "auc" else lambda own: own["right"].to_numpy(float)
    answers = {name: decides(own) for name, own in found.groupby(["run_id", "updates"])}
    return manifest, cells, answers, pd.read_csv(folder / "tables/primary.csv").set_index("name")


def ranks(own):
    """(M,) what each example contributes to the AUC: that, and how far the share of pairs that
    it wins is from it."""
    one, rest = (own["label"] == label for label in (1, 0))
    margin = own["margin"].to_numpy(float)
    wins = np.sign(margin[one][:, None] - margin[rest]) / 2 + 0.5
    found = np.full(len(own), wins.mean())
    found[one] += (wins.mean(axis=1) - wins.mean()) * len(own) / one.sum()
    found[rest] += (wins.mean(axis=0) - wins.mean()) * len(own) / rest.sum()
    return found


def kept(cell, side, kinds):
    """Whether a cell is of a contrast's side."""
    known = {**cell, "pairs": kinds[cell["origin"], cell["receiving"]]}
    return all(known[key] in names for key, names in side.items())


def contributions(contrast, manifest, cells, answers):
    """(S, M): what each seed and test example give to a contrast, points; from the predictions and not from
    the metrics."""
    kinds = {(origin, receiving): kind for origin, receiving, kind in manifest["pairs"]}
    total = 0.0
    for sign, side in ((1, contrast["of"]), (-1, contrast["less"])):
        if side is None:
            continue
        own = cells[(cells["budget"] == contrast["budget"]) & cells["init"].isin([contrast["arm"],
                                                                                  contrast["baseline"]])]
        own = [cell for cell in own.to_dict("records") if kept(cell, side, kinds)]
        for init, direction in ((contrast["arm"], 1), (contrast["baseline"], -1)):
            rows = [cell for cell in own if cell["init"] == init]
            places = {tuple(cell[name] for name in PLACE) for cell in rows}
            seeds = sorted({cell["seed"] for cell in rows})
            assert len(rows) == len(places) * len(seeds), "every seed has every cell"
            sums = [sum(answers[cell["run_id"], cell["mark"]] for cell in rows if cell["seed"] == seed)
                    for seed in seeds]
            total = total + sign * direction * 100 * np.array(sums) / len(places)
    return total


def half_width(each, alpha):
    """Half an interval of a two-way layout without repetition, seeds and examples random: mean squares in
    long hand."""
    seeds, count = each.shape
    mean, rows, columns = each.mean(), each.mean(axis=1), each.mean(axis=0)
    of_rows = sum((value - mean) ** 2 for value in rows) / (seeds - 1) / seeds
    of_columns = sum((value - mean) ** 2 for value in columns) / (count - 1) / count
    freedom = (seeds - 1) * (count - 1)
    rest = sum((each[i, j] - rows[i] - columns[j] + mean) ** 2 for i in range(seeds)
               for j in range(count)) / freedom
    rest /= seeds * count
    examples = of_columns - rest if of_columns > rest * (1 + 1e-9) else 0.0  # not but for rounding
    below = of_columns**2 / (count - 1) + rest**2 / freedom if examples else 0.0
    both = (of_rows + examples) ** 2 / (of_rows**2 / (seeds - 1) + below)
    t = [stats.t.isf(alpha / 2, df) for df in (both, seeds - 1, count - 1)]
    return (t[0] * np.sqrt(of_rows + examples) + np.sqrt(t[1] ** 2 * of_rows + t[2] ** 2 * examples)) / 2


def test_every_declared_contrast_is_what_its_predictions_say(study):
    manifest, cells, answers, table = study
    assert table.index.tolist() == [contrast["name"] for contrast in manifest["primary"]]
    ps, tested = [], []
    for contrast in manifest["primary"]:
        each = contributions(contrast, manifest, cells, answers)
        row, mean, half = table.loc[contrast["name"]], each.mean(), half_width(each, 0.05)
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([mean, mean - half, mean + half],
                                                                       abs=1e-6, nan_ok=True)
        if not each.any():  # both sides are the same numbers, and no test was made
            assert np.isnan(row["p"]) and row["verdict"] == "open"
            continue
        tested.append(contrast["name"])
        ps.append(optimize.brentq(lambda log: half_width(each, np.exp(log)) - abs(mean), -60, -1e-9))  # noqa: B023
    order, least = np.argsort(ps), 0.0
    for place, at in enumerate(order):  # Holm, step by step
        least = max(least, min(1.0, np.exp(ps[at]) * (len(manifest["primary"]) - place)))
        row = table.loc[tested[at]]
        assert row["p_holm"] == pytest.approx(least, rel=1e-4, abs=1e-12)
        assert row["verdict"] == ("open" if least > 0.05 else "ahead" if row["mean"] > 0 else "behind")


def test_metrics_of_the_cells_are_what_the_predictions_say(study):
    manifest, cells, answers, _ = study
    done = cells[cells["done"]]
    found = [answers[row.run_id, row.mark].mean() for row in done.itertuples()]
    np.testing.assert_allclose(done[f"eval_{manifest.get('primary_metric', 'accuracy')}"], found, atol=1e-9)


def test_there_are_studies_with_declared_contrasts():
    assert {"nano_full", "nano_evidence"} <= {path.name for path in DECLARED}
