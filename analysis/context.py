"""What the tables, figures and findings of one study share: its cells, one metric, and its comparisons, each
made once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import pandas as pd

from portability.analysis.load import Study, read
from portability.analysis.metrics import OVER_EXAMPLES, Metric, metric_of
from portability.analysis.records import by_example
from portability.analysis.stats.blocks import LEVELS, compare
from portability.analysis.stats.pairing import PORTED, Answers, arm_of, init_pairs, stratify_keys
from portability.core.contrasts import kinds
from portability.core.errors import UserError
from portability.core.specs import BARE
from portability.store import Store

log = logging.getLogger(__name__)
once = lru_cache(maxsize=4)  # of a frame that is made once for each context, and that nobody changes


@dataclass(frozen=True, eq=False)
class StudyContext:
    """A study with one metric.

    `answers` says what each test example contributes to a run's metric, for intervals over seeds and
    examples; it is None, and `why` says the reason, where intervals are over seeds only.
    """

    study: Study
    metric: Metric
    answers: Answers | None = None
    why: str = "only what is given is used"

    @property
    def cells(self) -> pd.DataFrame:
        """The tidy frame (load.tidy)."""
        return self.study.cells

    @property
    def examples(self) -> str:
        """Behind "new seeds": whether intervals cover new test examples."""
        return " only" if self.why else " and new test examples"

    @cached_property
    def arms(self) -> pd.DataFrame:
        """All cells but those of the bare host, which is a reference and no arm."""
        return self.cells[self.cells["init"] != BARE]

    @cached_property
    def arm(self) -> str:
        """The init whose gains over all others the study is about (pairing.arm_of)."""
        return arm_of(self.cells)

    @cached_property
    def strata(self) -> list[str]:
        """Receiving data and port, where the study has several of them (pairing.stratify_keys)."""
        return stratify_keys(self.cells)

    @cached_property
    def largest(self) -> pd.DataFrame:
        """The arms at the largest budget."""
        return self.arms[self.arms["budget"] == self.arms["budget"].max()]

    @cached_property
    def start(self) -> pd.DataFrame:
        """The arms before any update on the receiving host."""
        return self.arms[self.arms["budget"] == 0]

    @cached_property
    def kinds(self) -> dict[tuple[str, str], str]:
        """(origin, receiving) to what relates them, as the manifests say."""
        return kinds(self.study.facts)

    def parts(self) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
        """The arms for every data set and port that a study has several of; what carries no port of the arm's
        is in each."""
        arms, keys = self.arms, self.strata
        ports = arms.loc[arms["init"] == self.arm, "port"].unique()
        own = arms[arms["init"] == self.arm] if "port" in keys else arms
        for names in own[keys].drop_duplicates().itertuples(index=False, name=None) if keys else [()]:
            labels, part = dict(zip(keys, names, strict=True)), arms
            for key, name in labels.items():
                part = part[(part[key] == name) | ((key == "port") & ~part["port"].isin(ports))]
            yield labels, part

    @cached_property
    def levels(self) -> dict[str, pd.DataFrame]:
        """The arm against every other init at every budget, zero-shot included where it is ported, by each of
        blocks.LEVELS."""
        return {name: self.compare(self.cells, keys) for name, keys in LEVELS.items()}

    @cached_property
    def pairs(self) -> dict[str, pd.DataFrame]:
        """The arm paired with every other init, made once for all comparisons. Before any update extracted is
        the bare host like all other inits, so nothing is compared there."""
        cells = self.cells if self.arm == PORTED else self.cells[self.cells["budget"] > 0]
        return init_pairs(cells, self.metric.scale)

    def compare(self, cells: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
        """blocks.compare with this study's answers and the metric's scale.

        Args:
            cells: this study's cells of some budgets and some inits, whole.
        """
        inits, budgets = set(cells["init"]), cells["budget"].unique()
        known = {name: own for name, own in self.pairs.items() if {name, self.arm} <= inits}
        pairs = {name: own[own["budget"].isin(budgets)].reset_index(drop=True) for name, own in known.items()}
        pairs = {name: own for name, own in pairs.items() if len(own)}
        return compare(cells, keys, self.answers, self.metric.scale, pairs)


def gather(store: Store, metric: str | None = None) -> StudyContext:
    """Read a study and its predictions.

    Args:
        metric: as of load.read.

    Raises:
        UserError: no study there, or the metric is unknown.
    """
    study = read(store, metric)
    chosen = metric_of(study.metric)
    if chosen.name not in OVER_EXAMPLES:
        why = f"{chosen.label} is no mean over examples of what each contributes"
        return StudyContext(study, chosen, None, why)
    try:
        return StudyContext(study, chosen, by_example(store, study.cells, chosen.name), "")
    except (UserError, OSError) as error:
        log.warning("%s: intervals are over seeds only: %s", study.name, error)
        return StudyContext(study, chosen, None,
                            "the predictions of some runs are not there or cannot be used")
