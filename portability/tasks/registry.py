"""Which task stands behind the spec of a run."""

from portability.core.specs import AnswerSpec, TaskSpec
from portability.tasks.classification import Classification, Scorer
from portability.tasks.generation import AnswerScorer, Generation

Task = Classification | Generation
TaskScorer = Scorer | AnswerScorer


def task_of(spec: TaskSpec | AnswerSpec) -> Task:
    """The task that a spec describes."""
    return Generation(spec) if isinstance(spec, AnswerSpec) else Classification(spec)
