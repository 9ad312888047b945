"""Dataclasses out of mappings: what is wrong is one sentence with its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, NonNegativeFloat, PositiveFloat

from portability.core.errors import UserError
from portability.core.schema import Axis, Count, Name, build


def check_even(value: int) -> int:
    if value % 2:
        raise UserError("inner.even is odd; choose another one")
    return value


@dataclass(frozen=True)
class Inner:
    even: Annotated[int, AfterValidator(check_even)] = 2
    pair: tuple[int | float, int | float] = (1, 2)


@dataclass(frozen=True)
class Outer:
    name: Name
    kind: Literal["local", "ray"]
    size: Count = 1
    share: NonNegativeFloat = 0.0
    factors: Axis[PositiveFloat] = field(default_factory=lambda: [1.0])
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    inner: Inner = Inner()


def outer(**changes):
    return build(Outer, {"name": "a", "kind": "local"} | changes, "top")


def test_values_keep_their_types_and_whole_numbers_pass_for_decimal_ones():
    got = outer(name=2024, share=1, factors=[1, 2.5], options={"r": 1, "list": [1, 2.0]},
                inner={"pair": [0, 0.5]})
    assert got.name == "2024" and [type(value) for value in (got.share, *got.factors)] == [float] * 3
    assert got.options == {"r": 1, "list": [1, 2.0]} and [type(value)
                                                          for value in got.options["list"]] == [int, float]
    assert got.inner.pair == (0, 0.5) and type(got.inner.pair[0]) is int


@pytest.mark.parametrize(("changes", "words"), [
    ({"siz": 3}, "unknown key in top 'siz'; choose one of: .*; did you mean 'size'"),
    ({"inner": {"evn": 2}}, "unknown key in top.inner 'evn'; .*did you mean 'even'"),
    ({"siz": 3, "size": "x"}, "unknown key in top 'siz'"),
    ({"kind": "locl"}, "unknown top.kind 'locl'; choose one of: local, ray; did you mean 'local'"),
    ({"size": 0}, "top.size must be at least 1, got 0"),
    ({"size": True}, "top.size must be a whole number such as 16, got True"),
    ({"size": "3"}, "top.size must be a whole number such as 16, got '3'"),
    ({"share": -1}, "top.share must be at least 0, got -1"),
    ({"factors": [1, 0]}, "top.factors.1 must be above 0, got 0"),
    ({"factors": 3}, "top.factors must be a list, got 3"),
    ({"factors": []}, r"top.factors must name at least one value and none twice, got \[\]"),
    ({"factors": [1, 1.0]}, "none twice"), ({"options": [1]}, r"top.options must be a mapping, got \[1\]"),
    ({"folder": 3}, "top.folder must be a string, got 3"), ({"name": None}, "top.name must be a string, got "
                                                            "None"),
    ({"inner": {"pair": [1]}}, "top.inner.pair has too few values"),
    ({"inner": 3}, "top.inner must be a mapping, got 3"),
    ({"inner": {"even": 3}}, "^inner.even is odd; choose another one$"),
])
def test_what_is_wrong_is_one_sentence_with_its_place(changes, words):
    with pytest.raises(UserError, match=words) as raised:
        outer(**changes)
    assert "\n" not in str(raised.value)


def test_the_whole_configuration_has_no_place_of_its_own():
    with pytest.raises(UserError, match="^kind is missing$"):
        build(Outer, {"name": "a"}, "")
    with pytest.raises(UserError, match="^top must be a mapping, got None$"):
        build(Outer, None, "top")
