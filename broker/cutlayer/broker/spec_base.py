"""What the records of a run manifest have in common: immutable, closed, without NaN or Infinity."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NAME_PATTERN", "Dimension", "Name", "Spec"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=NAME_PATTERN)]
Dimension = Annotated[int, Field(ge=1, le=65_536)]


class Spec(BaseModel):
    """A part of the manifest."""

    # No NaN or Infinity, which JSON has not and pydantic would take.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)
