"""The arm of a study, whose gains over the other inits are what the study is about, and the words that go with it."""

from dataclasses import dataclass

import pandas as pd

PORTED, EXTRACTED = "ported", "extracted"
ARMS = (PORTED, EXTRACTED)  # the first that a study has is its arm; every other init of it is a baseline of a gain


@dataclass(frozen=True)
class Words:
    """What stands in a text for `{arm}` and the like (see `say`)."""

    arm: str
    start: str  # one run of the arm, as what saves something
    starts: str
    origin: str  # what such a run starts from
    its: str  # the same, of one run
    origins: str  # what of it is counted among the costs
    of_origin: str  # the data behind it
    saw: str  # what tells relations apart
    itself: str  # what is not counted among the costs


WORDS: dict[str, Words] = {
    PORTED: Words(
        arm=PORTED, start="a port", starts="ports", origin="an origin", its="its origin",
        origins="The training of the origins stands", of_origin="origin data",
        saw="whether the origin saw the receiving data set", itself="porting",
    ),
    EXTRACTED: Words(
        arm=EXTRACTED, start="a start from extracted weights", starts="starts from extracted weights", origin="an extraction",
        its="the extraction", origins="The extractions stand", of_origin="seed examples",
        saw="whether the seed examples are of the receiving data set", itself="starting",
    ),
}


def arm_of(cells: pd.DataFrame) -> str:
    """The arm of a study: ported where it is there, else extracted; without either, ported, of which there is then no gain.

    Args:
        cells: all cells of a study, or those of some of its methods, data sets, ports or budgets: column init.

    Example:
        >>> arm_of(pd.DataFrame({"init": ["scratch", "extracted"]})), arm_of(pd.DataFrame({"init": ["extracted", "ported"]}))
        ('extracted', 'ported')
    """
    there = set(cells["init"].unique())
    return next((name for name in ARMS if name in there), PORTED)


def say(text: str, arm: str) -> str:
    """A text with the arm's words in place of `{arm}`, `{start}` and the like; other braces stay.

    Example:
        >>> say("{label}: what {start} saves", "ported")
        '{label}: what a port saves'
    """
    for name, word in vars(WORDS[arm]).items():
        text = text.replace(f"{{{name}}}", word)
    return text
