"""What every section of the run settings is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MODALITY_PATTERN", "Section", "Share"]

# Part of parameter names, where a dot separates modules.
MODALITY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
