"""What every command has in common: how its words are read, and how it ends: 0 done, 1 something failed, 2
something must be changed, 128 and the signal's number where it was stopped. The last three come with one
sentence, which begins with ``portability:``.
"""

import argparse
import logging
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from portability.core.errors import Failed, UnknownName, UserError, closest, validate_choice

STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
KINDS = {  # by type
    "int": "a whole number such as 4", "float": "a number such as 0.5",
    "sizes": "whole numbers, as in 1,4,16"}
LEVELS = {logging.INFO: "%(message)s", logging.WARNING: "%(levelname)s %(name)s: %(message)s"}


@dataclass(frozen=True)
class Command:
    """What a command is.

    Attributes:
        about: what it does; `line`: the same in a few words.
        examples: command lines.
        add: gives a parser its options.
        level: of the log that is shown.
        kept: what is said when it is stopped, or a file cannot be read or written.
        refused: option that it does not have -> what to type instead.
    """

    about: str
    examples: Sequence[str] = ()
    line: str = ""
    add: Callable[["Parser"], None] = lambda _: None
    level: int = logging.WARNING
    kept: str = "nothing was written"
    refused: Mapping[str, str] = field(default_factory=dict)


class Parser(argparse.ArgumentParser):
    """A command's words. What cannot be read is a UserError that says what to type instead.

    Args:
        more: for argparse.
    """

    def __init__(self, command: Command, **more: Any):
        examples = "\n".join(["examples:", *(f"  {line}" for line in command.examples)])
        about = "\n\n".join(textwrap.fill(part, 96) for part in command.about.split("\n\n"))
        super().__init__(description=about, allow_abbrev=False,
                         epilog=examples if command.examples else None,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        self.command = command
        command.add(self)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options. Words and options may stand in any order.

        Raises:
            UserError: what is missing, too much, or unknown.
        """
        nested = any(action.nargs == argparse.PARSER for action in self._actions)
        read = self.parse_known_args if nested else self.parse_known_intermixed_args
        found, unknown = read(words)
        if unknown:
            raise self._unknown(unknown[0], found)
        return found

    def _unknown(self, word: str, found: argparse.Namespace) -> UserError:
        """What to type instead of a word that is left over."""
        parser = getattr(found, "parser", self)  # a nested one's
        name, refused = word.partition("=")[0], parser.command.refused
        if not name.startswith("-"):
            return UserError(f"'{word}' is one word too many; {parser.prog} --help shows what it takes")
        ours = [one for one in parser._option_string_actions if one.startswith("--")]
        close = name if name in refused else closest(name, [*ours, *refused])
        if close in refused:
            return UserError(f"there is no option {name}; type {refused[close]}")
        if close:
            return UnknownName(f"there is no option {name}; did you mean '{close}'?", name, close)
        return UserError(f"there is no option {name}; {parser.prog} --help lists the options")

    def error(self, message: str) -> NoReturn:
        """argparse's sentence as ours."""
        if wrong := re.fullmatch(r"argument (\S+): invalid (.+?) value: ('.*')", message):
            what = KINDS.get(wrong[2], wrong[2])
            raise UserError(f"{wrong[1].split('/')[-1]} must be {what}, got {wrong[3]}")
        message = message.removeprefix("argument ")
        message = message.replace("the following arguments are required:", "missing:")
        raise UserError(f"{message}; {self.prog} --help shows what it takes")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[-1] if action.option_strings else str(action.metavar).lower()
            validate_choice(str(value), action.choices, what)


def carry_out(parser: Parser, work: Callable[[Any], int | None], words: Sequence[str] | None = None) -> int:
    """Read the words, do the work, and give back the command's exit code.

    Args:
        work: gives back the exit code; None is 0.
        words: the command line's, without the command.
    """
    words = sys.argv[1:] if words is None else words
    logging.basicConfig(level=parser.command.level, format=LEVELS[parser.command.level])
    try:
        code = work(parser.read(words)) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        said, code = as_typed(error, words), 1 if isinstance(error, Failed) else 2
    except BrokenPipeError:  # who reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        said, code = f"{what}; {parser.command.kept}, repeat the command when it is put right", 2
    except KeyboardInterrupt as stop:
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        said, code = f"{STOPPED[number]}; {parser.command.kept}, repeat the command to go on", 128 + number
    sys.stderr.write(f"portability: {' '.join(said.split())}\n")
    return code


def as_typed(error: UserError, words: Sequence[str]) -> str:
    """The sentence; the name that would be right stands in it as a word of this command line.

    Example:
        >>> as_typed(UnknownName("no ful; did you mean 'full'?", "ful", "full"), ["+sweep=ful", "mode=plan"])
        "no ful; did you mean '+sweep=full'?"
    """
    said = str(error)
    if not (isinstance(error, UnknownName) and error.close):
        return said
    close = error.close
    name = re.compile(rf"(?<![\w-]){re.escape(error.name)}(?![\w-])")
    word = next(filter(name.search, words), error.name)
    right = name.sub(lambda _: close, word, count=1)
    return said.replace(f"did you mean '{close}'", f"did you mean '{right}'")
