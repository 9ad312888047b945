"""Scores of a whole evaluation: metrics of the evaluate library that live here and need no hub.

All are means of the per-example scores of `scoring`, fractions in [0, 1]. Importing this module takes seconds (evaluate), so
only workers do.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from portability.tasks.scoring import SQUAD, choice, exact_match, rouge_l


class Mean(evaluate.Metric):
    """A mean over examples; `columns` names what `compute` expects and the kind of each, one value an example."""

    columns: ClassVar[Mapping[str, str]] = {"predictions": "string", "references": "string"}
    citation_text: ClassVar[str] = ""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value(kind) for name, kind in self.columns.items()})
        described = ", ".join(f"{name}: (N,) {kind}" for name, kind in self.columns.items())
        return evaluate.MetricInfo(
            description=str(self.__doc__), citation=self.citation_text, features=features, inputs_description=described
        )

    def _compute(self, **columns: Any) -> dict[str, float]:
        return {"value": self.value(**columns)}

    @staticmethod
    @abstractmethod
    def value(**columns: Any) -> float:
        """The number, from the columns by name."""


class ExactMatch(Mean):
    """Share of answers that are the reference after normalisation (`scoring.NORMALISERS`)."""

    citation_text = SQUAD

    @staticmethod
    def value(predictions: Sequence[str], references: Sequence[str], normaliser: str = "squad") -> float:
        """Mean of `scoring.exact_match`."""
        return float(exact_match(predictions, references, normaliser).mean())


class RougeL(Mean):
    """Mean F-measure of the longest common subsequence of words."""

    citation_text = "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.1"

    @staticmethod
    def value(predictions: Sequence[str], references: Sequence[str]) -> float:
        """Mean of `scoring.rouge_l`."""
        return float(rouge_l(predictions, references).mean())


class ChoiceAccuracy(Mean):
    """Share of examples whose right choice is likelier than every other; predictions are margins (`scoring.margins`)."""

    columns = {"predictions": "float64"}

    @staticmethod
    def value(predictions: Sequence[float]) -> float:
        """Mean of `scoring.choice`."""
        return float(choice(np.asarray(predictions)).mean())


METRICS: dict[str, type[Mean]] = {"exact_match": ExactMatch, "rougeL": RougeL, "choice_accuracy": ChoiceAccuracy}
