"""How every start looks, in all charts and on the page: its colour and its marker; and the words of a budget.

A colour means one thing: a start, native or bare. Methods, hosts and states of runs have none of these. The colours themselves
are in assets/charts.css, for light and dark.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

SLOTS = {  # start -> its place in charts.css; what is of one kind shares it, for no study has both
    "ported": 0, "extracted": 0, "sampled": 1, "scratch": 2, "sampled_permute": 3, "extracted_shuffled": 3, "sampled_norm": 4,
    "extracted_noise": 4, "shuffled": 5, "extracted_random": 5, "compute_matched": 6, "pissa": 6,
    "extracted_aligned": 7,
}
OTHER = 7  # of a start that is not named here
REFERENCES = ("native", "bare")
MARKERS = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "M-3-3h6v6h-6z", "M0-4L4 3H-4z", "M0-4.5L4.5 0L0 4.5L-4.5 0z")


def look(name: str) -> str:
    """The class of a start, or of a reference, in charts.css.

    Example:
        >>> look("ported"), look("native"), look("mine")
        ('s0', 'native', 's7')
    """
    return name if name in REFERENCES else f"s{SLOTS.get(name.partition(', ')[0], OTHER)}"


def marker(name: str) -> str:
    """The outline of a start's marker around (0, 0)."""
    return MARKERS[SLOTS.get(name.partition(", ")[0], OTHER) % len(MARKERS)]


def groups(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """The parts of a frame that are told apart, each with its names; all of it where nothing is."""
    if not keys:
        yield [], frame
        return
    for names, part in frame.groupby(list(keys), sort=False):
        yield list(map(str, names)), part


def budget_words(budget: int) -> str:
    """A budget in words.

    Example:
        >>> budget_words(0), budget_words(1000)
        ('before any update', 'after 1,000 updates')
    """
    return "before any update" if budget == 0 else f"after {budget:,} updates"
