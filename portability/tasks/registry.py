"""Which task stands behind the spec of a run."""

from typing import Any

from portability.core.specs import AnswerSpec, TaskSpec
from portability.tasks.base import Task
from portability.tasks.classification import Classification
from portability.tasks.generation import Generation

TASKS: dict[type, Any] = {TaskSpec: Classification, AnswerSpec: Generation}


def task_of(spec: TaskSpec | AnswerSpec) -> Task:
    """The task that a spec describes."""
    found: Task = TASKS[type(spec)](spec)
    return found
