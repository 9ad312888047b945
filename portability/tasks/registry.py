"""Which task stands behind the spec of a run."""

from portability.core.specs import AnswerSpec, TaskSpec
from portability.tasks.base import Task
from portability.tasks.classification import Classification
from portability.tasks.generation import Generation


def task_of(spec: TaskSpec | AnswerSpec) -> Task:
    """The task that a spec describes."""
    return Generation(spec) if isinstance(spec, AnswerSpec) else Classification(spec)
