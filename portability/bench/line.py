"""The line between the driver and a child: commands on standard input, one JSON object a line on standard output."""

import json
import os
import sys
import time
from typing import Any, TextIO


class Line:
    """A child's end. Whatever a library prints goes to standard error, so that answers stay clean.

    Commands are ``train N`` (go on for N optimiser updates), ``eval`` (score the test set) and ``quit``.
    """

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._began = time.perf_counter()
        self._imported: float | None = None

    def imported(self) -> None:
        """Imports are done; what follows is set-up."""
        self._imported = time.perf_counter()

    def ready(self, **facts: Any) -> None:
        """Say once that the first command can come, with the seconds that imports and set-up took."""
        now = time.perf_counter()
        imported = self._imported if self._imported is not None else now
        self.answer(ready=True, import_s=imported - self._began, setup_s=now - imported, **facts)

    def answer(self, **values: Any) -> None:
        """One line of JSON."""
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()

    def command(self) -> tuple[str, int]:
        """The next command and its number; ``quit`` where the driver is gone."""
        word, _, number = sys.stdin.readline().strip().partition(" ")
        return word or "quit", int(number or 0)
