"""The kinds of modalities that a run may have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cutlayer.broker.grid_specs import AudioSpec, ImageSpec
from cutlayer.broker.series_spec import SeriesSpec
from cutlayer.broker.table_spec import CategorySpec, TableSpec
from cutlayer.broker.text_spec import TextSpec
from cutlayer.broker.tokens_spec import TokensSpec

__all__ = [
    "MODALITY_KINDS",
    "AudioSpec",
    "CategorySpec",
    "ImageSpec",
    "ModalitySpec",
    "SeriesSpec",
    "TableSpec",
    "TextSpec",
    "TokensSpec",
]

ModalitySpec = Annotated[
    ImageSpec | AudioSpec | TextSpec | SeriesSpec | TableSpec | TokensSpec, Field(discriminator="kind")
]
MODALITY_KINDS = ("image", "audio", "text", "series", "table", "tokens")
