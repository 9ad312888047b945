"""Mappings out of YAML as dataclasses, checked by pydantic; what is wrong is said in one sentence with its
place.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from portability.core.errors import UserError, validate_choice

T = TypeVar("T")
Count = Annotated[int, Field(ge=1)]


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


Name = Annotated[str, BeforeValidator(_text)]  # YAML reads a name such as 2024 as a number
PLAIN = {  # pydantic's words, and ours
    "Input should be ": "must be ", "Value error, ": "", "a valid boolean": "true or false",
    "an object": "a mapping", "a valid array": "a list", "a valid integer": "a whole number such as 16",
    "a valid ": "a ", "greater than or equal to": "at least", "less than or equal to": "at most",
    "greater than": "above", "Tuple should": "must", " after validation": "",
}
UNKNOWN = "unexpected_keyword_argument"
_adapter: Callable[[type], TypeAdapter[Any]] = cache(TypeAdapter)


def build(cls: type[T], value: Any, where: str) -> T:
    """A dataclass from a mapping of its fields, of which no type is converted but whole numbers to decimal
    ones.

    Args:
        where: place of the mapping in the configuration; empty for the whole of it.

    Raises:
        UserError: an unknown or missing key or a bad value, with its place and, for a typo, the name that
            would be right.
    """
    try:  # as JSON, whose lists are tuples where the dataclass has tuples
        return _adapter(cls).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda one: one["type"] != UNKNOWN)
        raise _said(cls, found[0], where) from error


def _said(cls: type, error: Mapping[str, Any], where: str) -> UserError:
    """What pydantic found, as the sentence for the user."""
    *above, last = error["loc"] or ("",)
    for part in above if error["type"] == UNKNOWN else ():
        cls = get_type_hints(cls)[part]
    level = ".".join(map(str, [where, *above] if where else above))
    place, kind, cause = f"{level}.{last}".strip("."), error["type"], error.get("ctx", {}).get("error")
    try:
        if kind == UNKNOWN:
            validate_choice(str(last), get_type_hints(cls), f"key in {level}" if level else "key")
        if kind == "literal_error":
            validate_choice(str(error["input"]), re.findall("'([^']*)'", error["ctx"]["expected"]), place)
    except UserError as unknown:
        return unknown
    if isinstance(cause, UserError):
        return cause
    if kind == "missing":
        return UserError(f"{level} has too few values" if isinstance(last, int) else f"{place} is missing")
    said = error["msg"]
    for theirs, ours in PLAIN.items():
        said = said.replace(theirs, ours)
    if kind == "list_type" and not any(isinstance(part, int) for part in (*above, last)):
        listed = yaml.safe_dump([error["input"]], default_flow_style=True, width=1000).strip()
        return UserError(f"{place} {said}, got {error['input']!r}; type '{place}={listed}'")
    return UserError(f"{place} {said}, got {error['input']!r}")


def distinct(values: list[T]) -> list[T]:
    """The same values.

    Raises:
        ValueError: none, or one twice.
    """
    if not values or len(set(values)) != len(values):
        raise ValueError("must name at least one value and none twice")
    return values


Axis = Annotated[list[T], AfterValidator(distinct)]
