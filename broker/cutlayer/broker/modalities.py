"""The kinds of modalities that a run may have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cutlayer.broker.grid_specs import AudioSpec, ImageSpec

__all__ = ["AudioSpec", "ImageSpec", "ModalitySpec"]

ModalitySpec = Annotated[ImageSpec | AudioSpec, Field(discriminator="kind")]
