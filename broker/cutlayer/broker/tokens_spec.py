"""Modalities whose tokenizer is the sites' own: the run knows how many tokens come, and not how they are made."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cutlayer.broker.grid_specs import AudioSpec, ImageSpec
from cutlayer.broker.modality_spec import SpecOfModality, TokenOrder
from cutlayer.broker.series_spec import SeriesSpec
from cutlayer.broker.spec_base import Dimension
from cutlayer.broker.table_spec import TableSpec

__all__ = ["RawSpec", "TokensSpec"]

RawSpec = Annotated[ImageSpec | AudioSpec | SeriesSpec | TableSpec, Field(discriminator="kind")]
_WHOLE: dict[str, tuple[str, ...]] = {
    "image": ("height", "width"),
    "audio": ("num_mels", "num_frames"),
    "series": ("num_steps",),
}
"""The sides of one patch that holds a whole sample."""


class TokensSpec(SpecOfModality):
    """Tokens that each site makes by itself.

    Attributes:
        num_tokens: Tokens N of each sample.
        layout: How they lie: in a `grid`, on a `line`, or as a `set`.
        rows: Rows of a grid.
        raw: What a raw sample is, as another modality of the run would say it, so that data sets can read it; its
            patches mean nothing. None where only a site's own data set knows.
    """

    kind: Literal["tokens"] = "tokens"
    is_ragged: ClassVar[bool] = False
    num_tokens: Dimension
    layout: TokenOrder = "set"
    rows: Dimension | None = None
    raw: RawSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _needs_no_patch(cls, document: Any) -> Any:
        """Fill in the patch that a raw specification of a kind has to have, and that nobody looks at."""
        raw = document.get("raw") if isinstance(document, dict) else None
        if not isinstance(raw, dict) or raw.get("kind") not in _WHOLE or "patch" in raw:
            return document
        sides = [raw.get(side) for side in _WHOLE[raw["kind"]]]
        return document | {"raw": raw | {"patch": sides if len(sides) > 1 else sides[0]}}

    @model_validator(mode="after")
    def _fits(self) -> TokensSpec:
        if (self.layout == "grid") != (self.rows is not None):
            raise ValueError('rows are of layout = "grid", and a grid has some: give both or neither')
        if self.rows is not None and self.num_tokens % self.rows:
            raise ValueError(f"rows = {self.rows} do not divide num_tokens = {self.num_tokens}: take another number")
        return self

    @property
    def order(self) -> TokenOrder:  # type: ignore[override]
        """As the settings say."""
        return self.layout

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns, or (1, N)."""
        rows = self.rows or 1
        return rows, self.num_tokens // rows

    @property
    def raw_form(self) -> tuple[object, ...]:
        """That of `raw`."""
        return (self.kind,) if self.raw is None else self.raw.raw_form

    @property
    def raw_bytes(self) -> int:
        """Those of `raw`; 0 where it is not known."""
        return 0 if self.raw is None else self.raw.raw_bytes

    @property
    def feature_bytes(self) -> int:
        """A raw sample: what comes before tokens is the tokenizer's own affair."""
        return self.raw_bytes

    @property
    def feature_flops(self) -> int:
        """0: nobody but the site knows."""
        return 0

    def token_flops(self, width: int) -> int:
        """Return 0: nobody but the site knows."""
        del width
        return 0

    def parameter_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return none: they never leave the site."""
        del width
        return {}
