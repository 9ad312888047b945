"""Scores of answers: against formulas written a second way, and answers whose score is known."""

import random
import re

import numpy as np
import pytest

from portability.core.errors import UserError
from portability.data.answer_scores import (
    NORMALISERS,
    choice,
    exact_match,
    final,
    last_number,
    margins,
    number,
    rouge_l,
    squad,
)
from portability.tasks.metrics import score_answers

# ---- texts


@pytest.mark.parametrize(("text", "expected"), [
    ("1,234.0", "1234"), ("1234", "1234"), ("007", "7"), ("-0.0", "0"), ("+3", "3"), (".5", "0.5"),
    ("5.", "5"), ("0", "0"),
    ("1,000,000", "1000000"), ("100", "100"), ("1,23", None), ("1.2.3", None), ("", None), ("-", None),
    ("12a", None), ("0.10", "0.1"), ("123456789012345678901234567890.50", "123456789012345678901234567890.5"),
])
def test_numbers_have_one_form(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(("one", "other", "same"), [
    ("The cat.", "cat", True), ("a  CAT,  an apple", "cat apple", True), ("$1,234.00!", "1234", True),
    ("(-5)", "-5", True),
    ("-5", "5", False), ("5%", "5", True), ("it's", "its", True), ("12", "1 2", False), ("A", "A.", True),
    ("A", "B", False),
    ("the", "The", True), ("12.5", "125", False), ("1,5", "15", True), ("U.S.", "us", True),
    ("?", "!", False), ("cat dog", "dog cat", False),
])
def test_answers_that_count_as_the_same(one, other, same):
    assert exact_match([one], [other]).tolist() == [float(same)]


def by_script(text):
    """normalize_answer of SQuAD's official script, as published."""
    import string

    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def test_words_are_normalised_as_by_the_official_script():
    draw = random.Random(0)
    words = ["The", "a", "an", "cat,", "dog's", "(house)", "tree!", "ana", "theatre", "“x”", "well-known",
             "end."]
    for _ in range(300):
        text = "  ".join(draw.choices(words, k=draw.randint(1, 6)))
        if by_script(text):
            assert squad(text) == by_script(text)


@pytest.mark.parametrize(("text", "expected"), [
    ("She has 3 + 4 = <<3+4=7>>7 apples.\n#### 7", "7"), ("#### 1,250", "1250"),
    ("####5 apples\nthen 6", "5"),
    ("It is #### 1 #### -2", "-2"), ("So the answer is 12.50 dollars.", "12.5"),
    ("the answer is 3. No, the answer is 4", "4"),
    ("5 apples and 6 pears", "6"), ("no number", ""), ("10-3", "3"), ("x = -3.", "-3"),
    ("The answer is yes", "yes"),
    ("#### ", ""), ("I say 3 ####", "3"), ("2,000", "2000"), ("1,2,3", "3"), ("about .5", "0.5"),
])
def test_the_end_of_a_chain(text, expected):
    assert final(text) == expected


def test_a_marker_counts_before_what_follows_other_words():
    text = "The answer is 9\n#### 8\nand 7 more"
    found = {name: normalise(text) for name, normalise in NORMALISERS.items()}
    names = ("after_marker", "after_answer_is", "last_number", "final")
    assert [found[name] for name in names] == ["8", "9", "7", "8"]
    assert exact_match(["so #### 8.0"], [text], "final").tolist() == [1.0]
    assert exact_match(["The answer is: B"], ["the answer is b."], "after_answer_is").tolist() == [1.0]
    assert last_number("3 - 5") == "5" and last_number("3 (-5)") == "-5"


def test_what_a_normaliser_leaves_nothing_of():
    assert exact_match(["no idea", "7"], ["#### 7", "#### 7"], "after_marker").tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match=r"normaliser 'after_marker' leaves nothing of the answer '7' "
                       r"\(example 1, from 0\)"):
        exact_match(["#### 7", "#### 7"], ["#### 7", "7"], "after_marker")
    with pytest.raises(UserError, match="unknown normaliser 'f1'"):
        exact_match(["a"], ["a"], "f1")


@pytest.mark.parametrize("score", [exact_match, rouge_l])
def test_as_many_predictions_as_references(score):
    with pytest.raises(ValueError, match="argument 2 is longer|argument 2 is shorter"):
        score(["a"], ["a", "b"])


# ---- ROUGE-L


def slow_common(a, b):
    """Longest common subsequence by the table of its definition."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_rouge_is_the_f_measure_of_precision_and_recall():
    draw = random.Random(2)
    words = ["The", "cat", "sat.", "on", "mat-42", "Ünder", "dog", "!"]
    for _ in range(200):
        one, other = (" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(2))
        tokens = [[t for t in re.split(r"\s+", re.sub(r"[^a-z0-9]+", " ", text.lower())) if t]
                  for text in (one, other)]
        common = slow_common(*tokens)
        expected = 0.0
        if common:
            precision, recall = common / len(tokens[0]), common / len(tokens[1])
            expected = 2 * precision * recall / (precision + recall)
        assert rouge_l([one], [other])[0] == pytest.approx(expected, abs=1e-12)


def test_rouge_of_known_texts():
    # Lin 2004, section 3.1: reference "police killed the gunman", LCS of 3 and of 2 words
    found = rouge_l(["police kill the gunman", "the gunman kill police", "gunman", "Größe", "same"],
                    ["police killed the gunman"] * 3 + ["日本", "SAME!"])
    assert found.tolist() == pytest.approx([0.75, 0.5, 0.4, 0.0, 1.0])


# ---- choices


def slow_margins(sums, lengths, group, right, mean):
    out = []
    for example in range(max(group) + 1):
        rows = [row for row in range(len(group)) if group[row] == example]
        values = {row: sums[row] / lengths[row] if mean else sums[row] for row in rows}
        (best,) = [row for row in rows if right[row]]
        out.append(values[best] - max(values[row] for row in rows if row != best))
    return out


@pytest.mark.parametrize("likelihood", ["sum", "mean"])
def test_margins_are_those_of_a_loop(likelihood):
    draw = np.random.default_rng(0)
    group = np.repeat(np.arange(30), draw.integers(2, 6, 30))
    right = np.zeros(len(group), dtype=bool)
    for example in range(30):
        right[draw.choice(np.flatnonzero(group == example))] = True
    sums, lengths = -draw.random((3, len(group))), draw.integers(1, 9, len(group))
    order = draw.permutation(len(group))  # rows need not stand together
    found = margins(sums[:, order], lengths[order], group[order], right[order], likelihood)
    for member in range(3):
        assert found[member] == pytest.approx(slow_margins(sums[member], lengths, group, right,
                                                           likelihood == "mean"))


def test_a_tie_is_wrong_and_length_counts_only_if_asked():
    group, right = np.array([0, 0, 1, 1]), np.array([True, False, True, False])
    sums, lengths = np.array([-3.0, -2.0, -1.0, -1.0]), np.array([3, 1, 1, 1])
    assert choice(margins(sums, lengths, group, right)).tolist() == [0.0, 0.0]
    assert choice(margins(sums, lengths, group, right, "mean")).tolist() == [1.0, 0.0]


def test_choices_that_cannot_be_scored():
    group, right, lengths = np.array([0, 0]), np.array([True, False]), np.ones(2)
    with pytest.raises(ValueError, match="not finite for 1 of 2"):
        margins(np.array([-1.0, np.nan]), lengths, group, right)
    for other in (np.array([True, True]), np.array([False, False])):
        with pytest.raises(ValueError, match="exactly one right"):
            margins(np.array([-1.0, -2.0]), lengths, group, other)
    with pytest.raises(ValueError, match="exactly one right"):
        margins(np.array([-1.0, -2.0]), lengths, np.array([0, 2]), right)
    with pytest.raises(UserError, match="unknown likelihood"):
        margins(np.array([-1.0, -2.0]), lengths, group, right, "bytes")


# ---- metrics of the evaluate library


def test_metrics_are_means_of_the_scores():
    half = [np.array(column) for column in ([1.0, 0.0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.2],
                                            [True, False, False, False])]
    for scoring, name in (("exact_match", "eval_accuracy"), ("choice", "eval_accuracy"),
                          ("rouge_l", "eval_rougeL")):
        assert score_answers(*half, scoring) == {name: 0.5, "eval_loss": pytest.approx(0.2),
                                                 "eval_invalid_rate": 0.25}
    with pytest.raises(ValueError, match="nll is not finite for 1 of 4"):
        score_answers(half[0], np.array([0.1, np.nan, 0.3, 0.2]), half[2], "choice")
    with pytest.raises(ValueError, match="one length"):
        score_answers(half[0][:2], half[1], half[2], "choice")
