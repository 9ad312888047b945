"""Metrics against their formulas, written out for every example by hand."""

import math

import numpy as np
import pytest

from portability.metrics import METRICS, score

MARGIN = np.array([2.0, 0.5, -1.0, 3.0, 0.0])
NLL = np.array([0.1, 0.5, 0.3, 2.1, 0.7])
INVALID = np.array([False, True, False, False, True])
LABEL = np.array([1, 0, 0, 0, 1])


def test_a_small_case_computed_by_hand():
    # predicted 1 1 0 1 0 against 1 0 0 0 1; the mean margin is 0.9, so calibrated: 1 0 0 1 0
    assert score(MARGIN, NLL, INVALID, LABEL) == pytest.approx({
        "eval_accuracy": 2 / 5, "eval_accuracy_calibrated": 3 / 5,
        "eval_f1": (2 * 1 / (2 * 1 + 2 + 1) + 2 * 1 / (2 * 1 + 1 + 2)) / 2,
        "eval_loss": 3.7 / 5, "eval_invalid_rate": 2 / 5, "eval_positive_share": 3 / 5,
    }, abs=1e-12)


def slowly(margin, nll, invalid, label) -> dict[str, float]:
    """All metrics with loops over the examples."""
    n, said = len(label), [1 if m > 0 else 0 for m in margin]
    bias = math.fsum(margin) / n
    f1 = []
    for c in (0, 1):
        hits = sum(s == c and t == c for s, t in zip(said, label, strict=True))
        precision = hits / said.count(c) if c in said else 0.0
        recall = hits / list(label).count(c) if c in label else 0.0
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return {
        "eval_accuracy": sum(s == t for s, t in zip(said, label, strict=True)) / n,
        "eval_accuracy_calibrated": sum((m > bias) == (t == 1) for m, t in zip(margin, label, strict=True)) / n,
        "eval_f1": sum(f1) / 2, "eval_loss": math.fsum(nll) / n, "eval_invalid_rate": sum(invalid) / n,
        "eval_positive_share": sum(said) / n,
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bias", [0.0, 5.0, -2.0])
def test_random_predictions_agree_with_a_slow_computation(seed, bias):
    draw = np.random.default_rng(seed)
    size = int(draw.integers(1, 300))
    label = draw.integers(0, 2, size)
    given = (draw.normal(bias, 1, size) + label, draw.random(size), draw.random(size) < 0.2, label)
    assert score(*given) == pytest.approx(slowly(*given), abs=1e-12)


def test_a_tie_counts_as_negative():
    found = score(np.zeros(2), np.zeros(2), np.zeros(2, bool), np.array([0, 1]))
    assert found["eval_positive_share"] == 0 and found["eval_accuracy"] == 0.5


def test_calibration_undoes_a_constant_bias():
    margin = np.array([4.0, 5.0, 6.0, 7.0])
    found = score(margin, NLL[:4], INVALID[:4], np.array([0, 0, 1, 1]))
    assert (found["eval_accuracy"], found["eval_accuracy_calibrated"]) == (0.5, 1.0)


def test_calibration_does_not_look_at_the_labels():
    turned = score(MARGIN, NLL, INVALID, 1 - LABEL)["eval_accuracy_calibrated"]
    assert turned == pytest.approx(1 - score(MARGIN, NLL, INVALID, LABEL)["eval_accuracy_calibrated"])


def test_a_class_that_never_occurs_has_f1_zero():
    assert score(np.ones(3), NLL[:3], INVALID[:3], np.ones(3, int))["eval_f1"] == 0.5


def test_values_keep_double_precision():
    nll = np.array([1 / 3, 1e-9])
    assert score(MARGIN[:2], nll, INVALID[:2], LABEL[:2])["eval_loss"] == nll.mean()


def test_scoring_draws_no_random_number_and_leaves_the_streams_alone():
    import torch

    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = score(MARGIN, NLL, INVALID, LABEL), score(MARGIN, NLL, INVALID, LABEL)
    assert first == second
    assert np.array_equal(before[0], np.random.get_state()[1]) and torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("given, message", [
    ((MARGIN[:2], NLL, INVALID, LABEL), "one length"),
    ((MARGIN[:0], NLL[:0], INVALID[:0], LABEL[:0]), "at least 1"),
    ((MARGIN[None], NLL[None], INVALID[None], LABEL[None]), "one length"),
    ((MARGIN * np.nan, NLL, INVALID, LABEL), "margin is not finite for 5 of 5"),
    ((MARGIN, np.array([0, 0, 0, 0, np.inf]), INVALID, LABEL), "nll is not finite for 1 of 5"),
    ((MARGIN, NLL, INVALID, LABEL + 1), "labels must be 0 or 1"),
    ((MARGIN, NLL, INVALID.astype(int), LABEL), "invalid must be bool"),
], ids=["lengths", "empty", "two axes", "nan margin", "infinite loss", "label 2", "invalid counts"])
def test_what_cannot_be_scored_raises_instead_of_giving_a_number(given, message):
    with pytest.raises(ValueError, match=message):
        score(*given)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_local_and_says_what_it_is(name):
    metric = METRICS[name](keep_in_memory=True)
    assert metric.description and metric.module_type == "metric"
    column = {"margin": MARGIN, "nll": NLL, "invalid": INVALID}[metric.measure.column]
    value = metric.compute(predictions=[column], references=[LABEL])["value"]
    assert isinstance(value, float) and value == score(MARGIN, NLL, INVALID, LABEL, [name])[f"eval_{name}"]
