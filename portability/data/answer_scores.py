"""What an answer is worth, example by example: a score in [0, 1] from its text, or from the likelihoods of
the choices."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial

import numpy as np

from portability.core.errors import UserError, validate_choice

SQUAD = "Rajpurkar et al., EMNLP 2016 (arXiv 1606.05250), normalize_answer of the official evaluation script"
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.(?!\d)|(?<=\d))")
_ARTICLES = ("a", "an", "the")


def number(text: str) -> str | None:
    """A number in its one plain form, or None where the text is none; thousands may be set off by commas.

    Example:
        >>> number("1,234.0"), number("-.50"), number("12,34"), number("3 apples")
        ('1234', '-0.5', None, None)
    """
    if not _NUMBER.fullmatch(text):
        return None
    plain = f"{Decimal(text.replace(',', '')):f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "+0", "") else plain.removeprefix("+")


def squad(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks, as SQuAD's script does (`SQUAD`).

    Numbers are kept apart, in one form (our choice): "$1,234.0" is "1234", and "-5" is not "5". Where
    punctuation or articles are all there is they stay, so that the letter "A" is an answer (our choice; the
    script would leave nothing).

    Example:
        >>> squad("The  answer, in dollars: $1,234.0!"), squad("A"), squad("an apple.")
        ('answer in dollars 1234', 'a', 'apple')
    """
    words = [_word(word) for word in text.lower().split()]
    kept = [word for word in words if word] or text.lower().split()
    return " ".join([word for word in kept if word not in _ARTICLES] or kept)


def _word(word: str) -> str:
    bare = word.strip(string.punctuation)
    signed = word[word.find(bare) - 1 : word.find(bare)] if bare else ""
    found = number(("-" if signed == "-" else "") + bare)
    return found if found is not None else "".join(char for char in word if char not in string.punctuation)


def last_number(text: str) -> str:
    """The last number of the text in its plain form, or nothing (Open-Instruct's GSM8K evaluation takes the
    same one).

    A sign counts where a blank or a bracket stands before it: "7-5" ends in 5.

    Example:
        >>> last_number("so 3 apples cost $1,250.00 each."), last_number("he lost -5"), last_number("none")
        ('1250', '-5', '')
    """
    found = re.findall(r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w.)])-)?\.\d+",
                       text)
    return number(found[-1]) or "" if found else ""


def after(marker: str, text: str) -> str:
    """What follows the last such marker on its line, normalised by `squad`; nothing where there is none.

    "####" is how GSM8K ends its chains (Cobbe et al. 2021, arXiv 2110.14168); "answer is" stands in the
    target of Zhong et al. (ICLR 2024) for MMLU, "The answer is: B".

    Example:
        >>> after("####", "5 + 1 = 6 #### 6.0"), after("answer is", "I think the answer is: B.")
        ('6', 'b')
    """
    _, found, rest = text.lower().rpartition(marker)
    return squad((rest.strip().splitlines() or [""])[0]) if found else ""


def final(text: str) -> str:
    """The end of a chain of thought: what follows the last "####", else the last "answer is", else the last
    number (our choice of the order). Of what follows a marker the last number counts, if there is one.

    Example:
        >>> texts = "2 + 3 = 5 #### 5 apples", "The answer is: 7.", "2 + 3 = 5", "The answer is yes"
        >>> tuple(final(text) for text in texts)
        ('5', '7', '5', 'yes')
    """
    marked = after("####", text) or after("answer is", text)
    return last_number(marked or text) or marked


NORMALISERS: dict[str, Callable[[str], str]] = {
    "plain": str.strip,
    "squad": squad,
    "last_number": last_number,
    "after_marker": partial(after, "####"),
    "after_answer_is": partial(after, "answer is"),
    "final": final,
}


def exact_match(predictions: Sequence[str], references: Sequence[str],
                normaliser: str = "squad") -> np.ndarray:
    """1 where prediction and reference are the same after normalisation, else 0; (N,) float64.

    A prediction that normalises to nothing is wrong.

    Args:
        normaliser: a name in NORMALISERS, applied to both.

    Raises:
        UserError: an unknown normaliser, or a reference of which it leaves nothing.
        ValueError: not as many predictions as references.

    Example:
        >>> exact_match(["The 1,234.0", "six"], ["1234", "6"]).tolist()
        [1.0, 0.0]
    """
    normalise = NORMALISERS[validate_choice(normaliser, NORMALISERS, "normaliser")]
    wanted = [normalise(text) for text in references]
    if "" in wanted:
        place = wanted.index("")
        raise UserError(f"normaliser '{normaliser}' leaves nothing of the answer {references[place][:60]!r} "
                        f"(example {place}, from 0); choose another one, or another answer")
    return np.array([float(normalise(text) == want) for text, want in zip(predictions, wanted, strict=True)])


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure of each prediction, (N,) float64 in [0, 1] (Lin 2004, section 3.1), by rouge_score
    without stemming: tokens are runs of ASCII letters and digits in lower case, so a text in another script
    has none and scores 0.

    Raises:
        ValueError: not as many predictions as references.

    Example:
        >>> rouge_l(["the cat sat"], ["the cat was sat upon"]).round(6).tolist()
        [0.75]
    """
    from rouge_score.rouge_scorer import RougeScorer  # with nltk, which takes a second

    scorer = RougeScorer(["rougeL"])
    return np.array([scorer.score(wanted, said)["rougeL"].fmeasure
                     for said, wanted in zip(predictions, references, strict=True)])


LIKELIHOODS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": lambda sums, lengths: sums,  # of the log-probabilities of a choice's tokens
    "mean": np.divide,  # of one token, so that long choices are not at a disadvantage
}


def margins(
    sums: np.ndarray, lengths: np.ndarray, group: np.ndarray, right: np.ndarray, likelihood: str = "sum"
) -> np.ndarray:
    """How much likelier the right choice is than the best wrong one, (..., N) float64, nats (a token, for
    "mean").

    Args:
        sums: (..., R) summed log-probabilities of each row's tokens, nats; a row is a choice of an example.
        lengths: (R,) tokens of each row, at least 1.
        group: (R,) the row's example, from 0 to N - 1.
        right: (R,) bool, the right choice: one row of each example.
        likelihood: "sum", or "mean" for the length-normalised one.

    Raises:
        UserError: an unknown likelihood.
        ValueError: values that are not finite, or an example without exactly one right and at least one wrong
            choice.

    Example:
        >>> rows = np.array([0, 0, 1, 1]), np.array([True, False, True, False])
        >>> margins(np.array([-4.0, -3.0, -1.0, -1.0]), np.array([4, 1, 1, 1]), *rows, "mean").tolist()
        [2.0, 0.0]
    """
    values = LIKELIHOODS[validate_choice(likelihood, LIKELIHOODS, "likelihood")](np.asarray(sums, np.float64),
                                                                                 lengths)
    if not np.isfinite(values).all():
        raise ValueError(f"not finite for {int((~np.isfinite(values)).sum())} of {values.size} likelihoods")
    count = int(group.max()) + 1
    rights, wrongs = (np.bincount(group[rows], minlength=count) for rows in (right, ~right))
    if (rights != 1).any() or (wrongs < 1).any():
        raise ValueError("each example needs exactly one right choice and at least one wrong one")
    order = np.argsort(group, kind="stable")
    values, right = values[..., order], right[order]
    firsts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return values[..., right] - np.maximum.reduceat(np.where(right, -np.inf, values), firsts, axis=-1)


def choice(margin: np.ndarray) -> np.ndarray:
    """1 where the right choice is the likeliest, else 0, of any shape, float64. A tie with a wrong choice is
    wrong, so a host that knows nothing gains nothing by it.

    Example:
        >>> choice(np.array([2.0, 0.0, -1.0])).tolist()
        [1.0, 0.0, 0.0]
    """
    return (np.asarray(margin) > 0).astype(np.float64)
