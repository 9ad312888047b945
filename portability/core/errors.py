"""The one error class for what a user can put right: bad configuration, bad data, impossible ports."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Says in one sentence what is wrong, where, and what to do; the command prints it and exits with 2."""


class GracefulStop(Exception):
    """A worker was stopped, kept its checkpoints, and ends."""


def validate_choice(name: str, choices: Iterable[object], what: str) -> str:
    """Give back `name` if it is one of `choices`, else raise an error that lists them, and the one probably
    meant.

    Raises:
        UserError: `name` is unknown.

    Example:
        >>> validate_choice("lora", {"lora": 1, "prefix": 2}, "method")
        'lora'
    """
    known = sorted(str(choice) for choice in choices)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise UserError(f"unknown {what} '{name}'; choose one of: {', '.join(known) or '(none)'}"
                        + (f"; did you mean '{close[0]}'?" if close else ""))
    return name


# of a run, not of the disk
RUN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)


def redact_paths(text: str) -> str:
    """A message or traceback without this machine's folders: absolute paths keep their last two parts.

    Example:
        >>> redact_paths('File "/home/me/site-packages/torch/nn.py", line 3: no /data/x')
        'File ".../torch/nn.py", line 3: no .../data/x'
    """
    return re.sub(r"(?<![\w.])(?:/[^\s/\"':,()]+)*?((?:/[^\s/\"':,()]+){2})(?=[\s\"':,()]|$)", r"...\1", text)
