"""Each check takes what is within its limit, refuses what is not, and says what it got."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from cutlayer.broker.wire import (
    U53,
    Check,
    CheckFailed,
    binary,
    choice,
    flag,
    many,
    number,
    pack_fields,
    pair,
    parse_fields,
    record,
    shape,
    text,
    uint,
    wire,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Point:
    x: int = wire(uint(9))
    name: str = wire(text(3))


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (uint(5), [0, 5], [-1, 6, True, 1.0, "1", None, b"1", []]),
        (uint(), [U53], [U53 + 1]),
        (number(), [0.0, -1.5, 3, 1e300], [math.nan, math.inf, -math.inf, True, "1", None, []]),
        (number(0.0, 2.0), [0, 2], [-0.1, 2.1]),
        (flag(), [True, False], [0, 1, "true", None]),
        (text(3), ["", "abc", "åäö", "a\n\t"], ["abcd", 1, None, b"abc", "\0", "\x1b", "\r", "\x7f", "\x9b"]),
        (binary(3), [b"", b"abc"], [b"abcd", "abc", None, 3, []]),
        (many(uint(3), 2), [[], [1, 3]], [[1, 2, 3], [4], "ab", None, {}, 2]),
        (pair(uint(3), flag()), [[3, True]], [[3], [3, True, 1], [4, True], [3, 3], None, "ab"]),
        (record(Point), [[9, "abc"]], [[10, "abc"], [9], [], None, "ab", 3]),
        (shape(2, 9, 20), [[], [9, 2], [0, 9], [4, 5]], [[3, 7], [10], [1, 1, 1], "ab", None]),
        (choice(Colour), [0, 1], [2, -1, True, "red", None]),
    ],
    ids=["uint5", "uint", "number", "number0-2", "flag", "text", "binary", "many", "pair", "record", "shape", "choice"],
)
def test_a_check_parses_what_is_within_its_limit_and_refuses_the_rest(
    check: Check, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        check.parse(value)
    for value in bad:
        with pytest.raises(CheckFailed):
            check.parse(value)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (uint(5), 6),
        (text(3), "abcd"),
        (binary(3), b"abcd"),
        (many(uint(), 1), [1, 2]),
        (shape(2, 9, 20), (3, 7)),
        (number(0.0), -1.0),
        (choice(Colour), "green"),
        (record(Point), Point(10, "abc")),
    ],
)
def test_packing_a_value_beyond_its_limit_is_a_value_error_of_ours(check: Check, value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        check.pack(value)


def test_a_choice_travels_as_one_byte() -> None:
    assert choice(Colour).pack(Colour.BLUE) == 1
    assert choice(Colour).pack("blue") == 1
    assert choice(Colour).parse(1) is Colour.BLUE


def test_bytes_of_any_kind_are_packed_as_bytes() -> None:
    for value in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        assert binary(3).pack(value) == b"abc"


def test_an_axis_of_length_zero_counts_as_one() -> None:
    with pytest.raises(CheckFailed, match="elements"):
        shape(3, 99, 20).parse([0, 7, 7])


def test_a_record_names_the_class_and_the_field_that_is_wrong() -> None:
    with pytest.raises(CheckFailed, match=r"^Point\.name: .*at most 3 characters"):
        parse_fields(Point, [1, "abcd"])
    with pytest.raises(CheckFailed, match=r"^Point\.x: "):
        pack_fields(Point(10, ""))


def test_a_record_says_how_many_fields_are_missing() -> None:
    with pytest.raises(CheckFailed, match="Point has 1 fields, 2 are needed"):
        parse_fields(Point, [1])


def test_fields_beyond_the_known_ones_are_ignored() -> None:
    assert parse_fields(Point, [1, "a", "later", 2]) == Point(1, "a")


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, list(range(10_000)), 10**4000, {"a": 1}])
def test_a_hostile_value_is_shown_in_a_few_characters(value: object) -> None:
    with pytest.raises(CheckFailed) as caught:
        uint(5).parse(value)
    assert len(str(caught.value)) < 150


def test_what_is_shown_of_a_text_cannot_command_a_terminal() -> None:
    with pytest.raises(CheckFailed) as caught:
        uint(5).parse("\x1b[2J\x9b2J")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
