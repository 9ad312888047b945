"""What a table is, and the specification by which it is made and laid out."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.formatting import mean_entry
from portability.analysis.metrics import Metric

MEANS = "{s.spread} {s.counts} {s.replicates} {s.gains} {s.faults} {s.ahead}"


@dataclass(frozen=True)
class Table:
    """A finished table. `frame` is tidy: the keys, `quantity`, `unit`, then the numbers.

    `lead` says in a sentence what it shows, and heads it; `notes` say what its numbers rest on. `rows` and
    `column` say how a reader sees it (column None: the frame as it is, restricted to `shown`), `show` how one
    row of the frame is written.
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
class TableSpec:
    """How a table is made and laid out; `{label}` in the lead is the metric, `{budget}` the study's largest,
    and the arm's words (contrast_arm.say) may stand in it, in the notes, and in the names of columns that a
    view gives.

    Without a `column`, `view` gives the rows and columns that a reader sees of the frame; all of it stands in
    the CSV file. `notes` is a template in which `{s....}` are sentences (captions.Sentences), and other names
    those that `values` gives; `cells` and `keys` give the cells behind the numbers, and what these are by.
    `needs_better`: not defined for a metric of which neither more nor less is better; `needs_tests`: the
    notes are on tests, and say so where there are none. `applies` says which studies have the table.
    """

    make: Callable[[StudyContext], pd.DataFrame]
    title: str
    lead: str
    rows: tuple[str, ...] = ()
    column: str | None = None
    notes: str = MEANS
    best: bool = False
    show: Callable[[pd.Series], str] = mean_entry
    view: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    cells: Callable[[StudyContext], pd.DataFrame] = lambda context: context.largest
    keys: tuple[str, ...] = ()
    values: Callable[[StudyContext, pd.DataFrame], dict[str, object]] = lambda context, frame: {}
    needs_better: bool = False
    needs_tests: bool = False
    applies: Callable[[StudyContext], bool] = lambda context: True
