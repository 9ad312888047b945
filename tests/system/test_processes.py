"""A function's answers out of a process of its own, whatever becomes of that process."""

import os
import signal
import time
from pathlib import Path

import pytest

from portability.core.errors import UserError
from portability.execution.processes import ChildDied, in_child


def numbers(how):
    yield 1
    if how == "refuse":
        raise UserError("that cannot be")
    if how == "break":
        raise KeyError("lost")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    yield os.getpid()
    time.sleep(60 if how == "sleep" else 0)


@pytest.mark.parametrize(("how", "kind", "words"), [
    ("refuse", UserError, "^that cannot be$"),
    ("break", ChildDied, "KeyError: 'lost'"),
    ("die", ChildDied, "exit code -9, perhaps for want of memory"),
])
def test_what_was_given_is_there_before_the_end_is_told(how, kind, words):
    answers = in_child(numbers, how)
    assert next(answers) == 1
    with pytest.raises(kind, match=words):
        next(answers)


def test_a_process_ends_with_its_reader():
    answers = in_child(numbers, "sleep")
    pid = [next(answers), next(answers)][1]
    answers.close()
    assert not Path(f"/proc/{pid}").exists()
    assert len(list(in_child(numbers, "well"))) == 2
