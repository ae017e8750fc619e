"""Field checks: how one value of a message is packed, parsed and limited.

A message class (`cutlayer.broker.messages`) declares each field with a check from here, so that a field, its
type and its limit stand on one line. A check both packs (ours: a violation is a bug, ValueError) and parses
(theirs: a violation is `MalformedMessage`); the text says what was got and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, cast

__all__ = [
    "Check",
    "binary",
    "choice",
    "flag",
    "many",
    "number",
    "pack_fields",
    "pair",
    "parse_fields",
    "record",
    "shape",
    "text",
    "uint",
    "wire",
]

U32 = (1 << 32) - 1
U53 = (1 << 53) - 1  # the largest integer that every JSON and JavaScript reader keeps exact

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed; a terminal obeys U+009B like ESC [


class CheckFailed(ValueError):
    """A value that its check does not admit."""


@dataclass(frozen=True, slots=True)
class Check:
    """How one value travels.

    Attributes:
        pack: Turns the value into what MessagePack can write; raises `CheckFailed`.
        parse: Turns what MessagePack has read into the value; raises `CheckFailed`.
    """

    pack: Callable[[Any], Any]
    parse: Callable[[Any], Any]


def wire(check: Check, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field that travels under `check`; a default is for whoever makes one, never for the wire."""
    return dataclasses.field(default=default, metadata={"check": check})


def uint(limit: int = U53) -> Check:
    """Admit an integer from 0 to `limit`."""

    def check(value: object) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise CheckFailed(f"{_show(value)} is no integer from 0 to {limit}")
        return value

    return Check(check, check)


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Admit a finite float from `low` to `high`."""

    def check(value: object) -> float:
        if not isinstance(value, float | int) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckFailed(f"{_show(value)} is no finite number")
        if not low <= value <= high:
            raise CheckFailed(f"{_show(value)} is not from {low} to {high}")
        return float(value)

    return Check(check, check)


def flag() -> Check:
    """Admit true or false."""

    def check(value: object) -> bool:
        if type(value) is not bool:
            raise CheckFailed(f"{_show(value)} is neither true nor false")
        return value

    return Check(check, check)


def text(limit: int) -> Check:
    """Admit UTF-8 text of at most `limit` characters, without control characters."""

    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise CheckFailed(f"{_show(value)} is no text of at most {limit} characters")
        if _CONTROL.search(value):
            raise CheckFailed(f"{_show(value)} holds control characters")
        return value

    return Check(check, check)


def binary(limit: int) -> Check:
    """Admit at most `limit` bytes."""

    def check(value: object) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview) or len(value) > limit:
            size = len(value) if isinstance(value, bytes | bytearray | memoryview) else type(value).__name__
            raise CheckFailed(f"{size} is no byte string of at most {limit} B")
        return bytes(value)

    return Check(check, check)


def choice(kinds: type[StrEnum]) -> Check:
    """Admit one of the enumeration's values; on the wire it is its position, one byte."""
    members = tuple(kinds)

    def pack(value: object) -> int:
        return members.index(kinds(cast("str", value)))

    def parse(value: object) -> StrEnum:
        if type(value) is not int or not 0 <= value < len(members):
            raise CheckFailed(f"{_show(value)} is none of {', '.join(members)}")
        return members[value]

    return Check(pack, parse)


def many(item: Check, limit: int) -> Check:
    """Admit a list of at most `limit` items."""

    def pack(value: Any) -> list[Any]:
        _check_length(value, limit)
        return [item.pack(entry) for entry in value]

    def parse(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise CheckFailed(f"{_show(value)} is no list")
        _check_length(value, limit)
        return tuple(item.parse(entry) for entry in value)

    return Check(pack, parse)


def shape(max_axes: int, max_axis: int, max_elements: int) -> Check:
    """Admit the shape of a tensor of at most `max_elements`, where an axis of length zero counts as one.

    So a size computed from a peer's shape stays small, whatever the tensor's data are.
    """
    axes = many(uint(max_axis), max_axes)

    def check(value: Any) -> Any:
        if math.prod(max(axis, 1) for axis in value) > max_elements:
            raise CheckFailed(f"a tensor of {' x '.join(map(str, value))} has more than {max_elements} elements")
        return value

    return Check(lambda value: check(axes.pack(value)), lambda value: check(axes.parse(value)))


def pair(first: Check, second: Check) -> Check:
    """Admit a list of exactly two values."""

    def pack(value: Any) -> list[Any]:
        return [first.pack(value[0]), second.pack(value[1])]

    def parse(value: object) -> tuple[Any, Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise CheckFailed(f"{_show(value)} is no pair")
        return first.parse(value[0]), second.parse(value[1])

    return Check(pack, parse)


def record(kind: type[Any]) -> Check:
    """Admit a nested record: a dataclass whose fields declare checks."""

    def parse(value: object) -> Any:
        if not isinstance(value, list):
            raise CheckFailed(f"{_show(value)} is no {kind.__name__}")
        return parse_fields(kind, value)

    return Check(lambda value: pack_fields(value), parse)


def pack_fields(message: Any) -> list[Any]:
    """Pack a record's fields in the order of their declaration.

    Raises:
        CheckFailed: When a value breaks its field's check; the text names the field.
    """
    packed = []
    for name, check in _checks(type(message)):
        try:
            packed.append(check.pack(getattr(message, name)))
        except ValueError as error:
            raise CheckFailed(f"{type(message).__name__}.{name}: {error}") from None
    return packed


def parse_fields(kind: type[Any], values: list[Any]) -> Any:
    """Build a record from its values. Values beyond the known fields are ignored (a later minor addition).

    Raises:
        CheckFailed: When one is missing or breaks its field's check; the text names the field.
    """
    checks = _checks(kind)
    if len(values) < len(checks):
        raise CheckFailed(f"{kind.__name__} has {len(values)} fields, {len(checks)} are needed")
    parsed: dict[str, Any] = {}
    for (name, check), value in zip(checks, values, strict=False):
        try:
            parsed[name] = check.parse(value)
        except ValueError as error:
            raise CheckFailed(f"{kind.__name__}.{name}: {error}") from None
    return kind(**parsed)


class _CheckTable:
    tables: ClassVar[dict[type[Any], tuple[tuple[str, Check], ...]]] = {}


def _checks(kind: type[Any]) -> tuple[tuple[str, Check], ...]:
    table = _CheckTable.tables.get(kind)
    if table is None:
        table = tuple((entry.name, entry.metadata["check"]) for entry in dataclasses.fields(kind))
        _CheckTable.tables[kind] = table
    return table


def _check_length(value: Any, limit: int) -> None:
    if len(value) > limit:
        raise CheckFailed(f"{len(value)} entries, at most {limit} are allowed")


def _show(value: object) -> str:
    """Return a short text for an error; a peer's value may be long or hostile."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    shown = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return shown if len(shown) <= 80 else shown[:77] + "..."
