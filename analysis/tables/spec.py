"""The specification by which a table is made and laid out, and the table that is made of it."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.formatting import mean_entry
from portability.analysis.metrics import Metric


@dataclass(frozen=True)
class TableSpec:
    """How a table is made and laid out; `{label}` in the lead is the metric, `{budget}` the study's largest,
    and the arm's words (contrast_arm.say) may stand in it, in the notes, and in the names of columns that a
    view gives.

    `rows` and `column` say how a reader sees the numbers, and `show` how one of them is written. Without a
    `column`, `view` gives the rows and columns that a reader sees of the frame; all of it stands in the CSV
    file. `notes` is a template of captions.SENTENCES; `cells` names the cells of the context that are behind
    the numbers, `keys` what these are by. `needs_better`: not defined for a metric of which neither more nor
    less is better; `needs_tests`: the notes are on tests, and say so where there are none. `applies` says
    which studies have the table.
    """

    make: Callable[[StudyContext], pd.DataFrame]
    title: str
    lead: str
    rows: tuple[str, ...] = ()
    column: str | None = None
    notes: str = "{spread} {counts} {replicates} {gains} {faults} {ahead}"
    best: bool = False
    show: Callable[[pd.Series], str] = mean_entry
    view: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame
    cells: str = "largest"
    keys: tuple[str, ...] = ()
    needs_better: bool = False
    needs_tests: bool = False
    applies: Callable[[StudyContext], bool] = lambda context: True


@dataclass(frozen=True, kw_only=True)
class Table(TableSpec):
    """A finished table: `frame` is tidy (the keys, `quantity`, `unit`, then the numbers), `shown` what a
    reader sees of it; `lead` says in a sentence what it shows, `notes` what its numbers rest on."""

    name: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    metric: Metric

    @property
    def caption(self) -> str:
        """What it is, in a sentence, and what it rests on."""
        return f"{self.lead} {self.notes}"
