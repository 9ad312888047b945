"""Primary contrasts: what a manifest declares is what is decided, by t and Holm, and in one sentence each."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from portability.analysis.context import StudyContext, gather
from portability.analysis.measures.primary_contrasts import primary
from portability.analysis.report.findings import caveats, declared_sentences, numbers, sentence, verdict_words
from portability.core.contrasts import Contrast
from support.synthetic import FACTS, Axes, build
from support.written import entry, rewrite

AXES = Axes(("lora", "prefix"), (("base", "large"), ("tuned", "large"), ("large", "base"), ("base", "tuned")),
            budgets=(0, 100), seeds=tuple(range(6)))
KINDS = [["base", "large", "size"], ["tuned", "large", "size"], ["large", "base", "size"],
         ["base", "tuned", "lineage"]]
CONTRASTS = [
    Contrast("scratch", "ported", "scratch", 100), Contrast("sampled", "ported", "sampled", 100),
    Contrast("bare", "ported", "bare", 0, {"method": ["lora"]}),
    Contrast("kinds", "ported", "scratch", 100, {"pairs": ["lineage"]}, {"pairs": ["size"]}),
    Contrast("relations", "ported", "sampled", 100, {"relation": ["same"]}, {"relation": ["different"]}),
]


def declared(root: Path, contrasts=CONTRASTS, axes: Axes = AXES) -> StudyContext:
    """A study that declares contrasts."""
    return gather(build(root, axes, FACTS | {"pairs": KINDS,
                                             "primary": [asdict(one) for one in contrasts]}).store)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> StudyContext:
    return declared(tmp_path_factory.mktemp("declared") / "s")


def seeds(found: StudyContext, arm: str, baseline: str, budget: int, held) -> np.ndarray:
    """(S,) mean over the held cells of arm minus baseline, from the scores alone."""
    place = ["method", "origin", "receiving", "relation", "seed"]
    score = found.cells[found.cells["budget"] == budget].set_index(["init", *place])["value"]
    rows = [{**dict(zip(place, key, strict=True)), "gain": 100 * (value - score[baseline, *key])}
            for key, value in score[arm].items()]
    rows = pd.DataFrame([row for row in rows if held(row)])
    return rows.groupby("seed")["gain"].mean().to_numpy()


def test_each_contrast_is_the_t_test_of_its_seeds_and_holm_is_over_them_alone(found):
    def lineage(row):
        return (row["origin"], row["receiving"]) == ("base", "tuned")

    own = {"scratch": seeds(found, "ported", "scratch", 100, lambda row: True),
           "sampled": seeds(found, "ported", "sampled", 100, lambda row: True),
           "kinds": seeds(found, "ported", "scratch", 100, lineage)
           - seeds(found, "ported", "scratch", 100, lambda row: not lineage(row)),
           "relations": seeds(found, "ported", "sampled", 100, lambda row: row["relation"] == "same")
           - seeds(found, "ported", "sampled", 100, lambda row: row["relation"] == "different")}
    frame = primary(found)
    for name, values in own.items():
        row, test = entry(frame, name=name), stats.ttest_1samp(values, 0)
        low, high = test.confidence_interval()
        assert row[["mean", "low", "high", "p"]].tolist() == pytest.approx([values.mean(), low, high,
                                                                            test.pvalue])
    start = found.arms[(found.arms["budget"] == 0) & (found.arms["init"] == "ported")
                       & (found.arms["method"] == "lora")]
    values = 100 * (start["value"] - start["bare"]).groupby(start["seed"]).mean()
    assert entry(frame, name="bare")["mean"] == pytest.approx(values.mean())
    assert frame["p_holm"].tolist() == pytest.approx(multipletests(frame["p"], method="holm")[1].tolist())
    assert frame["name"].tolist() == [one.name for one in CONTRASTS] and set(frame["family"]) == {5}


def test_counts_and_the_detectable_difference_are_those_of_the_corrected_level(found):
    row = entry(primary(found), name="sampled")
    assert row[["seeds", "expected", "n", "failed", "missing", "mark", "examples"]].tolist() == [6, 96, 96, 0,
                                                                                                 0, "", 0]
    solved = TTestPower().solve_power(nobs=6, alpha=0.05 / 5, power=0.8) * np.sqrt(6)
    assert row["mdd"] == pytest.approx(solved * row["se"], rel=0.01)


def test_labels_are_exchanged_in_whole_seeds_and_the_smallest_p_stands_beside(found):
    frame = primary(found).set_index("name")
    for name in ("sampled", "kinds", "relations", "bare"):
        assert frame.loc[name, "smallest_p"] == 2 / 2**6
    values = seeds(found, "ported", "sampled", 100, lambda row: True)
    test = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert frame.loc["sampled", "p_exchange"] == pytest.approx(test.pvalue)
    # several arms share a scratch run, and any may be called that
    assert frame.loc["scratch", "smallest_p"] < 2 / 2**6


def test_a_contrast_without_a_test_stays_in_the_family(tmp_path):
    axes = replace(AXES, methods=("lora",))
    empty = Contrast("empty", "ported", "scratch", 100, {"relation": ["none"]})
    found = primary(declared(tmp_path / "s", [CONTRASTS[0], empty], axes)).set_index("name")
    assert np.isnan(found.loc["empty", "p_holm"]) and found.loc["empty", "verdict"] == "open"
    assert found.loc["scratch", "p_holm"] == pytest.approx(min(1.0, 2 * found.loc["scratch", "p"]))


def test_runs_of_the_arm_that_stand_in_several_pairs_are_exchanged_with_their_seed(tmp_path):
    # both run once a receiving host, and stand in all its pairs
    axes = replace(AXES, inits=("ported", "pissa", "scratch"))
    found = primary(declared(tmp_path / "s", [Contrast("shared", "pissa", "scratch", 100)], axes)).iloc[0]
    assert found["smallest_p"] == 2 / 2**6  # two labels a seed, not one a pair


def test_a_missing_run_is_counted_marked_and_its_seed_left_out(tmp_path):
    study = build(tmp_path / "s", AXES, FACTS | {"pairs": KINDS,
                                                 "primary": [asdict(one) for one in CONTRASTS]})
    study.remove(study.pick(init="ported", method="lora", seed=2)[0].run_id)
    row = entry(primary(gather(study.store)), name="scratch")
    assert row[["seeds", "expected", "n", "missing", "mark"]].tolist() == [5, 96, 95, 1, "†"]
    assert "1 of 6 seeds lack cells" in row["note"]


@pytest.mark.parametrize(("gain", "word"), [(0.1, "ahead"), (-0.1, "behind"), (0.0, "open")])
def test_the_verdict_is_one_word_and_one_sentence(tmp_path, gain, word):
    axes = replace(AXES, methods=("lora",), pairs=AXES.pairs[:1], relations=("same",))
    study = build(tmp_path / "s", axes, FACTS | {"primary": [asdict(CONTRASTS[0])]})
    noise = np.random.default_rng(0).normal(0, 0.01, len(axes.seeds))
    noise -= noise.mean()
    rewrite(study, scratch=[[0.6, 0.6]] * 6, ported=[[0.6, 0.6 + gain + own] for own in noise])
    found = gather(study.store)
    row = primary(found).iloc[0]
    text = sentence(row, found.metric)
    assert row["verdict"] == word and (row["low"] <= 0 <= row["high"]) == (word == "open")
    assert text.startswith("Ported against scratch after 100 updates: "
                           f"{'left open' if word == 'open' else word}, ")
    assert ("would have been found four times in five" in text) == (word == "open") and "6 seeds" in text
    if word == "ahead":
        assert declared_sentences(found) == [text] and numbers(found)[0].verdict == word


def test_a_study_without_declared_contrasts_is_exploratory_and_says_so(tmp_path):
    found = gather(build(tmp_path / "s", replace(AXES, seeds=(0, 1))).store)
    assert primary(found).empty and "nothing is decided; exploratory, over everything" in verdict_words(found)
    assert "No primary contrast was declared before the runs: all is exploratory." in caveats(found)


def test_the_metric_that_was_declared_decides_and_another_is_exploratory(tmp_path):
    store = build(tmp_path / "s", AXES, FACTS | {"pairs": KINDS, "primary_metric": "f1",
                                                 "primary": [asdict(CONTRASTS[0])]}).store
    found, other = gather(store), gather(store, "eval_accuracy")
    assert (found.metric.name, other.metric.name) == ("eval_f1", "eval_accuracy")
    words = "The study declared before its runs that F1 decides; by accuracy all is exploratory."
    assert words in caveats(other) and not any("decides" in line for line in caveats(found))
    assert verdict_words(found).startswith("Of 1 contrast declared before the runs by F1, 1 is ")
    assert "declared before the runs by accuracy, which was not to decide, 1 is " in verdict_words(other)


def test_commands_that_declare_other_metrics_leave_the_study_without(tmp_path):
    declares = FACTS | {"pairs": KINDS, "primary": [asdict(CONTRASTS[0])]}
    store = build(tmp_path / "s", AXES, declares | {"primary_metric": "f1"}).store
    assert len(primary(gather(store))) == 1
    store.expect(build(tmp_path / "t", AXES).cells, declares)
    found = gather(store)
    assert primary(found).empty and found.metric.name == "eval_accuracy"
    assert any(line.startswith("The study's commands declare different") for line in caveats(found))


def test_commands_that_declare_other_contrasts_leave_the_study_without(tmp_path):
    study = build(tmp_path / "s", replace(AXES, seeds=(0, 1)), FACTS | {"primary": [asdict(CONTRASTS[0])]})
    study.store.expect(study.cells, FACTS | {"primary": [asdict(CONTRASTS[1])]})
    found = gather(study.store)
    assert primary(found).empty and any("declare different primary contrasts" in words
                                        for words in caveats(found))
