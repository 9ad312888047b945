"""What a table is, and the recipe by which it is made and laid out."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis.entries import mean_entry
from analysis.evidence import Evidence
from analysis.metrics import Metric


@dataclass(frozen=True)
class Table:
    """A finished table. `frame` is tidy: the keys, `quantity`, `unit`, then the columns of stats.summarise.

    `lead` says in a sentence what it shows, and heads it; `notes` say what its numbers rest on. `rows` and `column` say how a
    reader sees it (column None: the frame as it is, restricted to `shown`), `show` how one row of the frame is written.
    """

    name: str
    title: str
    lead: str
    notes: str
    frame: pd.DataFrame
    rows: tuple[str, ...]
    column: str | None
    best: bool
    metric: Metric
    shown: pd.DataFrame
    show: Callable[[pd.Series], str] = mean_entry

    @property
    def caption(self) -> str:
        """What it is, in a sentence, and what it rests on."""
        return f"{self.lead} {self.notes}"


@dataclass(frozen=True)
class Recipe:
    """How a table is made and laid out; `{label}` in the lead is the metric, `{budget}` the study's largest, and the arm's
    words (arms.say) may stand in it and in the names of columns that a view gives.

    Without a `column`, `view` gives the rows and columns that a reader sees of the frame; all of it stands in the CSV file.
    `behind` gives the cells whose replicates the caption tells of, and `words`, where it is given, writes what stands
    behind the lead instead of captions.caption. `of` says which studies have the table; by default all.
    """

    make: Callable[[Evidence], pd.DataFrame]
    title: str
    lead: str
    rows: tuple[str, ...] = ()
    column: str | None = None
    best: bool = False
    show: Callable[[pd.Series], str] = mean_entry
    behind: Callable[[Evidence], pd.DataFrame] = lambda found: found.largest
    view: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    words: Callable[[Evidence, pd.DataFrame], str] | None = None
    of: Callable[[Evidence], bool] = lambda _: True
