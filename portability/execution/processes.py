"""Process plumbing, once: a function's answers out of a process of its own, and processes that end with their
command."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

from portability.core.errors import UserError
from portability.execution.worker import ENVIRONMENT

LEAVING_SECONDS = 5.0  # that a process has to end by itself, once it has answered everything (our choice)


class ChildDied(UserError):
    """How a process ended that had not answered everything."""


def in_child(function: Callable[..., Iterable[Any]], *args: Any) -> Generator[Any]:
    """What a generator function of a module gives, from a spawned process of its own. The process is killed
    when the caller stops reading, so temporary folders belong to the caller; Ctrl-C is the caller's affair.

    Args:
        function: its arguments, what it gives and its UserErrors must be picklable.

    Raises:
        UserError: the function raised one.
        ChildDied: it raised something else, or the process could not start, crashed or was killed.

    Example:
        >>> list(in_child(sorted, [3, 1, 2]))
        [1, 2, 3]
    """
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, function, args), daemon=True)
    try:
        child.start()
        theirs.close()
        while (answer := ours.recv()) is not None:
            if isinstance(answer[0], UserError):
                raise answer[0]
            yield answer[0]
        child.join(LEAVING_SECONDS)  # one that is killed while it leaves is warned of
    except (EOFError, OSError) as error:
        if child.pid is None:
            raise ChildDied(f"no process could be started ({error})") from error
        child.join()
        why = ", perhaps for want of memory" if child.exitcode == -signal.SIGKILL else ""
        raise ChildDied(f"the process ended with exit code {child.exitcode}{why}") from error
    finally:
        if child.pid is not None:
            child.kill()
            child.join()


def _answer(pipe: Connection, function: Callable[..., Iterable[Any]], args: tuple[Any, ...]) -> None:
    """Send each value in a list of its own, then None, or an error."""
    end_with_parent()
    try:
        for value in function(*args):
            pipe.send([value])
        pipe.send(None)
    except UserError as error:
        pipe.send([UserError(str(error))])
    except Exception as error:  # whatever it is, the caller is told
        pipe.send([ChildDied(f"{type(error).__name__}: {error}")])


def end_with_parent() -> None:
    """Called in a process of a command: Ctrl-C is left to the command, with whose end this process ends
    too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
