"""Words around the prompts and answers of a set: Jinja templates over the columns of a row, and choices
behind letters."""

import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from portability.core.errors import UserError

PARTS = ("prompt", "answer")  # of an example, that may have a template
LETTERS = string.ascii_uppercase
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def behind_letters(prompt: str, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """A question with its choices, a line each behind its letter, and the letters.

    Source: Hendrycks et al. 2021 (arXiv 2009.03300), format_example of their evaluate.py.

    Example:
        >>> behind_letters("2 + 2 =", ["3", "4"])
        ('2 + 2 =\\nA. 3\\nB. 4\\nAnswer:', ('A', 'B'))
    """
    letters = tuple(LETTERS[: len(choices)])
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(letters, choices, strict=True)]
    return "\n".join([prompt.strip(), *lines, "Answer:"]), letters


def are_told(prompt: str, choices: int) -> bool:
    """Whether so many choices stand in a prompt behind letters.

    Example:
        >>> are_told("2 + 2 =\\nA. 3\\nB. 4\\nAnswer:", 2), are_told("2 + 2 =", 2)
        (True, False)
    """
    return all(f"\n{letter}. " in prompt for letter in LETTERS[:choices])


def columns_of(templates: Mapping[str, str]) -> set[str]:
    """Columns of a row that templates read, beside prompt and answer.

    Raises:
        UserError: a template of something else, or one that cannot be read.

    Example:
        >>> sorted(columns_of({"prompt": "About {{ subject }}: {{ prompt }}"}))
        ['subject']
    """
    found: set[str] = set()
    for part, text in templates.items():
        if part not in PARTS:
            raise UserError(f"templates are of prompt and answer, got one of {part!r}")
        try:
            found |= meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        except TemplateError as error:
            raise UserError(f"the template of {part} cannot be read: {error}") from error
    return found - {*PARTS}


@functools.cache
def _template(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def filled(templates: Mapping[str, str], part: str, row: Mapping[str, Any], text: str) -> str:
    """The text of a prompt, or of an answer, inside its template; as it is where there is none.

    Raises:
        UserError: the template cannot be filled, or the row lacks what it reads.

    Example:
        >>> filled({"prompt": "About {{ subject }}: {{ prompt }}"}, "prompt", {"subject": "law"}, "who ?")
        'About law: who ?'
    """
    if part not in templates:
        return text
    try:
        return _template(templates[part]).render({**row, part: text})
    except Exception as error:  # filters raise plain ones
        raise UserError(f"the template of {part} cannot be filled: {error}") from error
