"""Studies from Python: asked for, planned, carried out and read. No torch is loaded before a run starts.

    from portability import load_study, run_study
    table = load_study(run_study(["+sweep=smoke"]).root).cells
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from portability.analysis.load import read
from portability.analysis.records import predictions_of
from portability.core.errors import UserError
from portability.core.specs import Cell as Cell
from portability.core.specs import HostSpec as HostSpec
from portability.core.specs import MethodSpec as MethodSpec
from portability.core.specs import PortSpec as PortSpec
from portability.core.specs import RunSpec as RunSpec
from portability.hosts.sources import HostSource as HostSource
from portability.hosts.sources import describe as describe
from portability.planning.plan import Plan, plan
from portability.planning.study import Study
from portability.run import command, compose
from portability.store import Store


@dataclass(frozen=True)
class LoadedStudy:
    """A study's results as tidy tables.

    Attributes:
        store: the study's folder, for records and modules.
        cells: a row for each cell, with its status and numbers (columns: portability.analysis.load.tidy).
        runs: a row for each run that is done: run_id, host, updates, seconds, tokens, trainable, ...
            (portability.analysis.records.FACTS).
    """

    store: Store
    cells: pd.DataFrame
    runs: pd.DataFrame

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for each run that is done, mark and test example (run_id, then the columns of
        portability.analysis.records.predictions_of), read when it is first asked for.

        Raises:
            UserError: predictions of a run are missing or damaged.
        """
        found = [predictions_of(self.store, run_id).assign(run_id=run_id) for run_id in self.runs["run_id"]]
        table = pd.concat(found, ignore_index=True) if found else pd.DataFrame({"run_id": []})
        return table[["run_id", *(name for name in table if name != "run_id")]]


def load_study(path: str | Path, metric: str | None = None) -> LoadedStudy:
    """The results in a study's folder, or in a published copy of one.

    Args:
        metric: of the cells' column `value`: one of portability.analysis.metrics, or of the study's own;
            None: the one that decides the study (portability.analysis.load.read).

    Raises:
        UserError: no study there, or the metric is unknown.
    """
    store = Store(Path(path).expanduser())
    found = read(store, metric)
    return LoadedStudy(store, found.cells, found.runs)


def cells(study: Store | str | Path, metric: str | None = None) -> pd.DataFrame:
    """A row for each cell of a study, with its status and its numbers (columns:
    portability.analysis.load.tidy).

    Args:
        study: its store, or its folder.
        metric: as of `load_study`.

    Raises:
        UserError: as `load_study`.
    """
    return read(study if isinstance(study, Store) else Store(Path(study)), metric).cells


def plan_study(asked: Study | Sequence[str]) -> Plan:
    """The cells, the distinct runs behind them and the marks of each run, of a study that is not carried out.

    Args:
        asked: words as on the command line of ``portability run``, or what `compose` made of them.

    Raises:
        UserError: anything in the configuration that a user can put right.
    """
    return plan(_composed(asked).grid)


def run_study(asked: Study | Sequence[str]) -> Store:
    """Carry out what a study lacks, as ``portability run`` does.

    Args:
        asked: as of `plan_study`.

    Raises:
        UserError: as `plan_study`; or runs failed, and their reasons are in the store.
    """
    study = _composed(asked)
    store = Store(study.results / study.name)
    if command(study):
        raise UserError(f"{len(store.failures())} runs of study {study.name} failed; see mode=status")
    return store


def _composed(asked: Study | Sequence[str]) -> Study:
    return asked if isinstance(asked, Study) else compose(asked)
