"""What every section of the run settings is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Section", "Share"]

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
