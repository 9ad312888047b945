"""The colour and the marker of every init, in all charts and on the page; and the words of a budget.

A colour means one thing: an init, native or bare. Methods, hosts and states of runs have none of these. The
colours themselves are in charts.css, for light and dark.
"""

SLOTS = {  # init -> its place in charts.css; those of one kind share it, for no study has both
    "ported": 0, "extracted": 0, "sampled": 1, "scratch": 2, "sampled_permute": 3, "extracted_shuffled": 3,
    "sampled_norm": 4, "extracted_noise": 4, "shuffled": 5, "extracted_random": 5, "compute_matched": 6,
    "pissa": 6, "extracted_aligned": 7,
}
OTHER = 7  # of an init that is not named here
REFERENCES = ("native", "bare")
MARKERS = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "M-3-3h6v6h-6z", "M0-4L4 3H-4z",
           "M0-4.5L4.5 0L0 4.5L-4.5 0z")


def css_class(name: str) -> str:
    """The class of an init, or of a reference, in charts.css.

    Example:
        >>> css_class("ported"), css_class("native"), css_class("mine")
        ('s0', 'native', 's7')
    """
    return name if name in REFERENCES else f"s{SLOTS.get(name.partition(', ')[0], OTHER)}"


def marker(name: str) -> str:
    """The outline of an init's marker around (0, 0)."""
    return MARKERS[SLOTS.get(name.partition(", ")[0], OTHER) % len(MARKERS)]


def budget_words(budget: int) -> str:
    """A budget in words.

    Example:
        >>> budget_words(0), budget_words(1000)
        ('before any update', 'after 1,000 updates')
    """
    return "before any update" if budget == 0 else f"after {budget:,} updates"
