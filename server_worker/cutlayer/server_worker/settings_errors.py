"""From pydantic's findings to one SettingsError that names the file, the key, the value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import get_args

import pydantic
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.spec_base import NAME_PATTERN
from cutlayer.broker.tasks import without_kind
from cutlayer.server_worker.settings_section import MODALITY_PATTERN

__all__ = ["settings_error"]

Location = tuple[str, ...]

_CHARACTERS = {
    NAME_PATTERN: "use letters from A to Z and a to z, digits, '.', '_' and '-', with a letter or a digit first",
    MODALITY_PATTERN: "use letters from A to Z and a to z, digits, '_' and '-', with a letter or a digit first",
}
"""What a name may be made of, by the pattern that says so to pydantic."""


def settings_error(source: str, error: pydantic.ValidationError, model: type[BaseModel]) -> SettingsError:
    """Turn the findings into one error; several findings become one line each.

    Args:
        source: The file the settings come from.
        error: What pydantic found.
        model: The model that was validated; its keys are what misspelled ones are compared with.
    """
    findings = [_explain(detail, model) for detail in error.errors(include_url=False)]
    if len(findings) == 1:
        problem, fix = findings[0]
        return SettingsError(f"{source}: {problem}", fix)
    lines = "".join(f"\n  {problem} ({fix})" for problem, fix in findings)
    return SettingsError(f"{source}: {len(findings)} settings are wrong:{lines}", "mend each as its line says")


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Return the problem and the fix."""
    # pydantic puts the kind that it chose for a modality or a task into the location; the file has no such key.
    location = tuple(str(part) for part in without_kind(detail["loc"]))
    if location[:1] == ("modalities",) and len(location) > 2:
        location = location[:2] + location[3:]
    kind, message = detail["type"], detail["msg"]
    key = _spell(location, is_section=_is_section(location, model) or _is_table(detail))
    if kind == "extra_forbidden":
        return f"unknown key {key}", _nearest(location, model)
    if kind == "missing":
        return f"{key} is missing", f"add {key}"
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return f"{key} has no known kind", f"set its kind to {_kinds(location[0], model)}"
    if kind == "value_error":
        # Our own validators say "problem: fix".
        problem, _, fix = message.removeprefix("Value error, ").partition(": ")
        return f"{key}: {problem}" if location else problem, fix
    if kind == "string_pattern_mismatch" and (words := _CHARACTERS.get(str(detail.get("ctx", {}).get("pattern")))):
        return f"{key} = {detail['input']!r} is refused", words
    fix = message.removeprefix("Input should ")
    return f"{key} = {detail['input']!r} is refused", f"it should {fix}" if fix != message else message


def _kinds(section: str, model: type[BaseModel]) -> str:
    """Return the kinds that a section may be of, as TOML has them."""
    choices = _models_in(model.model_fields[section].annotation)
    *others, last = [f'"{each.model_fields["kind"].default}"' for each in choices if "kind" in each.model_fields]
    return f"{', '.join(others)} or {last}" if others else last


def _spell(location: Location, *, is_section: bool = False) -> str:
    """`[optimizer] lr`, the way that TOML shows it."""
    if not location:
        return "the file"
    if len(location) == 1:
        return f"[{location[0]}]" if is_section else location[0]
    if location[0] == "modalities":
        section = ".".join(location[:2])
        return f"[{section}] {'.'.join(location[2:])}".rstrip()
    return f"[{location[0]}] {'.'.join(location[1:])}"


def _is_section(location: Location, model: type[BaseModel]) -> bool:
    field = model.model_fields.get(location[0]) if len(location) == 1 else None
    return field is not None and any(_models_in(field.annotation))


def _is_table(detail: ErrorDetails) -> bool:
    # What is missing comes with the table that it is missing from.
    return detail["type"] != "missing" and isinstance(detail["input"], dict)


def _nearest(location: Location, model: type[BaseModel]) -> str:
    known = list(_known_keys(model))
    siblings = [key for key in known if _parent(key) == _parent(location)]
    near = difflib.get_close_matches(location[-1], [key[-1] for key in siblings], n=1)
    if near:
        return f"did you mean {near[0]}?"
    elsewhere = [key for key in known if key[-1] == location[-1]]
    if elsewhere:
        return f"did you mean {_spell(elsewhere[0])}?"
    return f"known here: {', '.join(key[-1] for key in siblings)}" if siblings else "remove it"


def _parent(location: Sequence[str]) -> Sequence[str]:
    """The section that a key lies in; modalities share one, whatever their names, and so do entries of a list."""
    if location[0] == "modalities" and len(location) == 3:
        return ("modalities", "*")
    return tuple(part for part in location[:-1] if not part.isdigit())


def _known_keys(model: type[BaseModel], prefix: Location = ()) -> Iterator[Location]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        for section in _models_in(field.annotation):
            inner = (*prefix, name, "*") if name == "modalities" else (*prefix, name)
            yield from _known_keys(section, inner)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
