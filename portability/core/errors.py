"""The one error class for what a user can put right: bad configuration, bad data, impossible ports."""

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import PurePath


class UserError(ValueError):
    """Says in one sentence what is wrong, where, and what to do; the command prints it and exits with 2."""


class UnknownName(UserError):
    """A name that is none of the known ones.

    Attributes:
        name: as it was given.
        close: the known one that was probably meant; empty where none is like it.
    """

    def __init__(self, text: str, name: str = "", close: str = ""):
        super().__init__(text)
        self.name, self.close = name, close


class Failed(UserError):
    """Work that was asked for well, was done, and failed; the command exits with 1."""


class GracefulStop(Exception):
    """A worker was stopped, kept its checkpoints, and ends."""


def validate_choice(name: str, choices: Iterable[object], what: str) -> str:
    """Give back `name` if it is one of `choices`, else raise an error that lists them, and the one probably
    meant.

    Raises:
        UnknownName: `name` is none of them.

    Example:
        >>> validate_choice("lora", {"lora": 1, "prefix": 2}, "method")
        'lora'
    """
    known = sorted(str(choice) for choice in choices)
    if name not in known:
        close = closest(name, known)
        raise UnknownName(f"unknown {what} '{name}'; choose one of: {', '.join(known) or '(none)'}"
                          + (f"; did you mean '{close}'?" if close else ""), name, close)
    return name


def closest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant: capitals, signs, and a folder or ending around it do not count.
    Empty where none is like it.

    Example:
        >>> closest("LoRA", ["lora", "prefix"]), closest("sweeps/full.yaml", ["demo", "full"])
        ('lora', 'full')
    """
    plain = {re.sub(r"[\W_]+", "", one).casefold(): one for one in sorted(known, reverse=True)}
    for said in (name, PurePath(name).stem):
        if found := difflib.get_close_matches(re.sub(r"[\W_]+", "", said).casefold(), plain, 1):
            return plain[found[0]]
    return ""


# of a run, not of the disk
RUN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)


def redact_paths(text: str) -> str:
    """A message or traceback without this machine's folders: absolute paths keep their last two parts.

    Example:
        >>> redact_paths('File "/home/me/site-packages/torch/nn.py", line 3: no /data/x')
        'File ".../torch/nn.py", line 3: no .../data/x'
    """
    return re.sub(r"(?<![\w.])(?:/[^\s/\"':,()]+)*?((?:/[^\s/\"':,()]+){2})(?=[\s\"':,()]|$)", r"...\1", text)
