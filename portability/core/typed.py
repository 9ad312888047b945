"""Values out of YAML as dataclasses and lists, checked against their types, with their place in every message."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from portability.core.errors import UserError, choose

T = TypeVar("T")


def build(cls: type[T], value: Any, where: str) -> T:
    """A dataclass from a mapping of its fields.

    Raises:
        UserError: an unknown, missing or wrongly typed key, with its place in the configuration.
    """
    value = mapping(value, where)
    hints = typing.get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in value:
        choose(str(key), names, f"key in {where}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where}.{field.name} is missing")
    return cls(**{key: typed(item, hints[key], f"{where}.{key}") for key, item in value.items()})


def mapping(value: Any, where: str) -> dict[Any, Any]:
    """A mapping as a dict.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping, got {value!r}")
    return dict(value)


def typed(value: Any, hint: Any, where: str) -> Any:
    """A value of the hinted type; whole numbers pass for decimal ones.

    Raises:
        UserError: it is of another type.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(option) or option for option in options)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return float(value)
    plain = tuple(kind for kind in kinds if isinstance(kind, type))
    plain += (dict, list) if Mapping in kinds or any(getattr(kind, "__name__", "") == "Mapping" for kind in kinds) else ()
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise UserError(f"{where} must be {wanted}, got {value!r}")
    return value


def whole(values: Sequence[Any], where: str, least: int | None, note: str = "") -> list[int]:
    """Whole numbers, at least one and none twice.

    Args:
        least: the smallest one allowed, or None.
        note: what the message adds.

    Raises:
        UserError: they are something else.
    """
    for value in distinct(values, where):
        if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
            raise UserError(f"{where} must be whole numbers{note}, got {value!r}")
    return list(values)


def distinct(values: Sequence[Any], where: str) -> list[Any]:
    """At least one value and none twice, as a list.

    Raises:
        UserError: they are something else.
    """
    if not values or len(set(values)) != len(values):
        raise UserError(f"{where} must name at least one value and none twice, got {list(values)}")
    return list(values)
