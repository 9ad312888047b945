"""Metrics against their formulas, written out for every example by hand."""

import math

import numpy as np
import pytest

from portability.core.errors import UserError
from portability.core.measures import Undefined, auc, auc_by_example, metric_names, probabilities, said
from portability.tasks.metrics import own_metric, score
from support.metrics import mine

MARGIN = np.array([2.0, 0.5, -1.0, 3.0, 0.0])
NLL = np.array([0.1, 0.5, 0.3, 2.1, 0.7])
INVALID = np.array([False, True, False, False, True])
LABEL = np.array([1, 0, 0, 0, 1])
ALL = ("accuracy", "f1", "auc", "matthews_correlation")


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
    pairs = [(p, q) for p, t in zip(margin, label, strict=True) if t == 1
             for q, u in zip(margin, label, strict=True) if u == 0]
    table = [[sum(s == a and t == b for s, t in zip(said, label, strict=True)) for b in (0, 1)]
             for a in (0, 1)]
    (tn, fn), (fp, tp) = table
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    ranked = {"eval_auc": sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs),
              "eval_matthews_correlation": (tp * tn - fp * fn) / math.sqrt(under) if under
              else 0.0} if pairs else {}
    return ranked | {
        "eval_accuracy": sum(s == t for s, t in zip(said, label, strict=True)) / n,
        "eval_accuracy_calibrated": sum((m > bias) == (t == 1) for m, t in zip(margin, label, strict=True))
        / n, "eval_f1": sum(f1) / 2, "eval_loss": math.fsum(nll) / n, "eval_invalid_rate": sum(invalid) / n,
        "eval_positive_share": sum(said) / n,
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bias", [0.0, 5.0, -2.0])
def test_random_predictions_agree_with_a_slow_computation(seed, bias):
    draw = np.random.default_rng(seed)
    size = int(draw.integers(1, 300))
    label = draw.integers(0, 2, size)
    given = (draw.normal(bias, 1, size) + label, draw.random(size), draw.random(size) < 0.2, label)
    tied = (given[0].round(0), *given[1:])
    for one in (given, tied):
        found = {name: value for name, value in score(*one, ALL).items() if not isinstance(value, str)}
        assert found == pytest.approx(slowly(*one), abs=1e-12)


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
    assert np.array_equal(before[0], np.random.get_state()[1]) and torch.equal(before[1],
                                                                               torch.get_rng_state())


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


# ---- metrics that are asked for


def test_what_is_asked_for_is_computed_and_the_others_are_not():
    found = score(MARGIN, NLL, INVALID, LABEL, ["auc"])
    assert set(found) == {f"eval_{name}" for name in ("auc", "accuracy_calibrated", "loss", "invalid_rate",
                                                      "positive_share")}
    assert found["eval_auc"] == 3 / 6  # of six pairs 2.0 lies above 0.5 and -1.0, and 0.0 above -1.0


def test_a_threshold_that_drifts_moves_accuracy_and_not_auc():
    margin, label = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1])
    before, after = (score(margin + shift, NLL[:4], INVALID[:4], label, ALL) for shift in (0.0, 5.0))
    assert before["eval_accuracy"] == before["eval_matthews_correlation"] == before["eval_auc"] == after[
        "eval_auc"] == 1.0
    assert after["eval_accuracy"] == 0.5 and after["eval_matthews_correlation"] == 0.0


def test_one_class_alone_gives_words_and_no_number():
    found = score(MARGIN, NLL, INVALID, np.ones(5, int), ALL)
    assert found["eval_auc"] == "AUC needs both classes, and all 5 labels are 1"
    assert found[
        "eval_matthews_correlation"] == "the Matthews correlation needs both classes, and all 5 labels are 1"
    assert found["eval_accuracy"] == 3 / 5


# ---- what each example contributes to an AUC


def test_contributions_to_auc_average_to_it_and_vary_as_delong_says():
    draw = np.random.default_rng(0)
    label = np.array([1] * 30 + [0] * 50)
    one, other = (draw.normal(0, 1, 80).round(1) + shift * label for shift in (1.0, 0.3))
    wins = [np.array([[(a > b) + (a == b) / 2 for b in margin[label == 0]] for a in margin[label == 1]])
            for margin in (one, other)]
    parts = [auc_by_example(margin, label) for margin in (one, other)]
    for margin, pairs, part in zip((one, other), wins, parts, strict=True):
        assert part.mean() == pytest.approx(pairs.mean()) == pytest.approx(auc(margin, label))
    apart = wins[0] - wins[1]  # DeLong's components: means over one side for each example of the other
    expected = apart.mean(axis=1).var() / 30 + apart.mean(axis=0).var() / 50
    assert (parts[0] - parts[1]).var() / 80 == pytest.approx(expected)


def test_the_variance_of_an_auc_over_examples_is_that_of_new_draws():
    draw, areas, variances = np.random.default_rng(1), [], []
    for _ in range(600):
        label = np.arange(120) % 4 // 3  # one in four
        margin = draw.normal(0, 1, 120) + label
        areas.append(auc(margin, label))
        variances.append(auc_by_example(margin, label).var() / 120)
    assert np.sqrt(np.mean(variances)) == pytest.approx(np.std(areas), rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_contributions_of_many_labels_average_to_their_auc(seed):
    draw = np.random.default_rng(seed)
    label = np.r_[:4, draw.integers(0, 4, 60)]
    margin = draw.normal(0, 1, (64, 3)).round(1)
    assert auc_by_example(margin, label).mean() == pytest.approx(auc(margin, label))
    with pytest.raises(Undefined, match="needs every label"):
        auc_by_example(margin, label % 3)


# ---- more than two labels


ODDS = np.array([[0.5, -1.0], [2.0, 0.0], [-1.0, 1.5], [0.3, 0.2], [1.0, 3.0], [-2.0, -0.5], [0.1, 0.4]])
OF_THREE = np.array([0, 1, 2, 0, 2, 1, 1])


def test_three_labels_as_scikit_learn_has_them():
    # f1_score and roc_auc_score(multi_class="ovr"), both macro, and matthews_corrcoef of scikit-learn 1.9.1
    found = score(ODDS, np.ones(7), np.zeros(7, bool), OF_THREE, ALL)
    assert said(ODDS).tolist() == [1, 1, 2, 1, 2, 0, 2]
    assert found == pytest.approx({
        "eval_accuracy": 3 / 7, "eval_f1": 0.37777777777777777, "eval_auc": 0.7944444444444444,
        "eval_matthews_correlation": 0.12909944487358055, "eval_accuracy_calibrated": 3 / 7,
        "eval_largest_share": 3 / 7, "eval_loss": 1.0, "eval_invalid_rate": 0.0}, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_many_labels_agree_with_a_slow_computation(seed):
    draw = np.random.default_rng(seed)
    count, size = 3 + seed, 80
    margin, label = draw.normal(0, 1, (size, count - 1)).round(1), draw.integers(0, count, size)
    label[:count] = range(count)
    shares = [[math.exp(m) / (1 + sum(map(math.exp, row))) for m in (0.0, *row)] for row in margin]
    ranked = [[p / (1 - p) for p in row] for row in shares]
    areas, f1 = [], []
    guess = [row.index(max(row)) for row in shares]
    for c in range(count):
        pairs = [(a[c], b[c]) for a, t in zip(ranked, label, strict=True) if t == c
                 for b, u in zip(ranked, label, strict=True) if u != c]
        areas.append(sum(1.0 if math.log(p / q) > 1e-9 else 0.5 if math.log(p / q) > -1e-9 else 0.0
                         for p, q in pairs) / len(pairs))
        hits = sum(s == t == c for s, t in zip(guess, label, strict=True))
        f1.append(2 * hits / max(1, guess.count(c) + list(label).count(c)))
    found = score(margin, np.ones(size), np.zeros(size, bool), label, ALL)
    assert found["eval_auc"] == pytest.approx(sum(areas) / count, abs=1e-3)  # rounding makes and breaks ties
    assert found["eval_f1"] == pytest.approx(sum(f1) / count, abs=1e-12)
    assert found["eval_accuracy"] == pytest.approx(np.mean(np.array(guess) == label))
    assert found["eval_largest_share"] == max(map(guess.count, range(count))) / size
    assert np.allclose(probabilities(margin), shares)


def test_a_label_without_examples_has_no_auc_and_one_sentence_says_so():
    label = np.array([0, 1, 1, 0, 1, 1, 0])
    found = score(ODDS, np.ones(7), np.zeros(7, bool), label, (*ALL, "positive_share"))
    assert found["eval_auc"] == "AUC needs every label, and none of the 7 examples is of label 2"
    assert found["eval_positive_share"] == "the share predicted positive is of two labels, and there are 3"
    assert found["eval_f1"] == pytest.approx((0 + 2 * 1 / (3 + 4) + 0) / 3)  # of label 1 one is right
    alone = score(ODDS, np.ones(7), np.zeros(7, bool), np.zeros(7, int), ALL)
    assert alone["eval_matthews_correlation"].endswith("needs two classes, and all 7 labels are 0")
    with pytest.raises(ValueError, match="labels must be 0 to 2"):
        score(ODDS, np.ones(7), np.zeros(7, bool), OF_THREE + 1)


def test_equal_log_odds_say_the_first_label():
    assert said(np.zeros((1, 3))).tolist() == [0] and said(np.array([[-1.0, 2.0, 2.0]])).tolist() == [2]


def test_a_metric_of_ones_own_gets_probabilities_of_three_labels(tmp_path):
    features = "datasets.Sequence(datasets.Value('float'))"
    folder = mine(tmp_path, "return {'mine': sum(p[r] for p, r in zip(prediction_scores, references))}",
                  ("prediction_scores", "references"))
    path = folder / "mine.py"
    path.write_text(path.read_text().replace("datasets.Value('float')", features))
    (name,) = metric_names([folder])
    found = score(ODDS, np.ones(7), np.zeros(7, bool), OF_THREE, [name])
    assert found["eval_mine"] == pytest.approx(probabilities(ODDS)[np.arange(7), OF_THREE].sum(), abs=1e-5)
    with pytest.raises(UserError, match="fails on 64 invented examples of both labels"):
        own_metric(name, 2)


# ---- metrics of the user's own


def asked(folder, *args, **more):
    return metric_names([mine(folder, *args, **more)])


def test_a_metric_of_ones_own_gets_what_it_declares_and_stands_under_its_name(tmp_path):
    body = ("return {'mine': sum(p == r for p, r in zip(predictions, references)), "
            "'top': max(prediction_scores)}")
    names = asked(tmp_path, body, ("predictions", "references", "prediction_scores"))
    found = score(MARGIN, NLL, INVALID, LABEL, names)
    assert (found["eval_mine"], found["eval_mine_top"]) == (2.0, 3.0) and "eval_accuracy" not in found
    assert names == metric_names([str(tmp_path / "mine" / "mine.py")])  # the file itself


def test_scores_alone_and_a_helper_beside_it(tmp_path):
    folder = mine(tmp_path, "return {'sum': times(sum(prediction_scores))}",
                  ("prediction_scores", "references"), above="from .helper import times")
    (folder / "helper.py").write_text("def times(x):\n    return 10 * x\n")
    assert score(MARGIN, NLL, INVALID, LABEL, metric_names([folder]))["eval_mine_sum"] == 45.0


@pytest.mark.parametrize("body, words", [
    ("return {'mine': 1 / (len(references) - 5)}", "ZeroDivisionError: division by zero"),
    ("return {'mine': float('nan') if len(references) == 5 else 1.0}", "it is nan"),
    ("return {'mine': [1.0] if len(references) == 5 else 1.0}",
     "TypeError: it gives for 'mine' [1.0], which is no single number"),
], ids=["raises", "nan", "list"])
def test_where_it_fails_there_are_words_and_no_number(tmp_path, body, words):
    found = score(MARGIN, NLL, INVALID, LABEL, ("accuracy", *asked(tmp_path, body)))
    assert found["eval_mine"] == words and found["eval_accuracy"] == 2 / 5


def test_two_metrics_of_one_name_give_no_number_in_place_of_the_other(tmp_path):
    names = asked(tmp_path, "return {'rate': 7.0}", name="invalid")
    assert score(MARGIN, NLL, INVALID, LABEL,
                 names)["eval_invalid_rate"] == "another metric gives eval_invalid_rate too"


@pytest.mark.parametrize("body, takes, above, message", [
    ("return {}", ("predictions",), "import no_such_package", "'mine' of eval.metrics cannot be loaded: "
     ".*no_such_package"),
    ("return {'mine': 1}", ("sources", "references"), "", "takes sources; there is: predictions"),
    ("return {'mine': 'good'}", ("predictions", "references"), "", "fails on 64 invented examples .* gives "
     "for 'mine' 'good'"),
    ("raise ValueError('no, never')", ("predictions", "references"), "", "examples of both labels: "
     "ValueError: no, never"),
    ("raise SystemExit(0)", ("predictions", "references"), "", "examples of both labels: SystemExit: 0"),
    ("return {}", ("predictions",), "raise SystemExit(0)", "'mine' of eval.metrics cannot be loaded: "
     "SystemExit: 0"),
    ("return {'mine': 1}", ("predictions", "references"), "from .other import x  # From: "
     "https://example.org/other.py", "imports code from an address, which is not run"),
], ids=["import", "inputs", "text", "raises", "ends", "ends at once", "address"])
def test_one_that_cannot_work_is_refused(tmp_path, body, takes, above, message):
    names = asked(tmp_path, body, takes, above=above)
    with pytest.raises(UserError, match=message):
        own_metric(*names)


def test_a_file_without_a_metric_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="'mine' of eval.metrics cannot be loaded"):
        own_metric(*metric_names([tmp_path / "mine.py"]))


@pytest.mark.parametrize("given, message", [
    (["bleu"], "unknown metric 'bleu' in eval.metrics; shipped are: accuracy, .*auc, matthews_correlation; "
     ".*no code of a hub"),
    (["someone/their_metric"], "unknown metric 'someone/their_metric'"),
    (["{}/empty"], "unknown metric '.*empty'"), ([], "at least one"),
    (["auc", "auc"], "none twice, got: auc, auc"),
    (["{}/auc.py"], "'auc' of eval.metrics is the name of a shipped one"),
    (["{}/a-b.py"], "'a-b' .* is no name of letters"),
    (["{}/torn.py"], "'torn' of eval.metrics cannot be read as Python: .*line 1"),
    (["{}/mine.py", "{}/x/mine.py"], "none twice"),
], ids=["unknown", "hub", "empty folder", "none", "twice", "shipped", "name", "syntax", "same name"])
def test_a_name_that_is_neither_shipped_nor_a_file_is_refused_without_running_it(tmp_path, given, message):
    for name, text in {"auc.py": "", "a-b.py": "", "torn.py": "def (", "mine.py": "raise SystemExit",
                       "x/mine.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        metric_names([value.format(tmp_path) for value in given])
