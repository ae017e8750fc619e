"""Rows of a table: numbers and categories, a token for each column (FT-Transformer, arXiv 2106.11959, section 3.1)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cutlayer.broker.modality_spec import FLOAT32_BYTES, Deviation, Mean, SpecOfModality, TokenOrder, check_count
from cutlayer.broker.spec_base import Spec

__all__ = ["CategorySpec", "TableSpec"]

ColumnName = Annotated[str, Field(min_length=1, max_length=64)]


class CategorySpec(Spec):
    """A column of categories.

    Attributes:
        name: The column's.
        values: What a cell may say, in the order of the categories' numbers.
    """

    name: ColumnName
    values: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(min_length=1, max_length=4_096)]

    @model_validator(mode="after")
    def _values_differ(self) -> CategorySpec:
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"values of {self.name!r} has one twice: name each once")
        return self


class TableSpec(SpecOfModality):
    """A row: the columns of numbers, and behind them those of categories.

    Attributes:
        columns: Names of the columns of numbers.
        mean: Subtracted from numbers: one number, or one a column of `columns`.
        std: Divides them afterwards.
        categories: The columns of categories.
    """

    order: ClassVar[TokenOrder] = "set"
    is_ragged: ClassVar[bool] = True
    kind: Literal["table"] = "table"
    columns: Annotated[tuple[ColumnName, ...], Field(max_length=4_096)] = ()
    mean: Mean = 0.0
    std: Deviation = 1.0
    categories: Annotated[tuple[CategorySpec, ...], Field(max_length=4_096)] = ()

    @model_validator(mode="after")
    def _fits(self) -> TableSpec:
        names = self.column_names
        if not names:
            raise ValueError("a table without columns: name some in columns or categories")
        if len(set(names)) != len(names):
            raise ValueError("a column is named twice: name each once, in columns or in categories")
        check_count(self.mean, len(self.columns), "mean", "columns")
        check_count(self.std, len(self.columns), "std", "columns")
        return self

    @property
    def column_names(self) -> tuple[str, ...]:
        """All columns, F of them, in the order of raw data and tokens: numbers, then categories."""
        return *self.columns, *(category.name for category in self.categories)

    @property
    def num_tokens(self) -> int:
        """F: one a column."""
        return len(self.columns) + len(self.categories)

    @property
    def num_categories(self) -> int:
        """Categories of all columns together."""
        return sum(len(category.values) for category in self.categories)

    @property
    def grid(self) -> tuple[int, int]:
        """(1, F)."""
        return 1, self.num_tokens

    @property
    def raw_form(self) -> tuple[object, ...]:
        """The columns and their categories."""
        return self.kind, self.columns, self.categories

    @property
    def raw_bytes(self) -> int:
        """Four bytes a cell."""
        return self.num_tokens * FLOAT32_BYTES

    @property
    def feature_bytes(self) -> int:
        """F float32."""
        return self.num_tokens * FLOAT32_BYTES

    @property
    def feature_flops(self) -> int:
        """Two a number: mean, deviation."""
        return 2 * len(self.columns)

    def token_flops(self, width: int) -> int:
        """Return 2 x D: a number times a vector, plus a vector."""
        return 2 * width

    def parameter_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return those of `bias`, (F, D); of `weight`, (columns of numbers, D); of `embedding`, (categories, D)."""
        shapes: dict[str, tuple[int, ...]] = {"bias": (self.num_tokens, width)}
        if self.columns:
            shapes["weight"] = (len(self.columns), width)
        if self.categories:
            shapes["embedding"] = (self.num_categories, width)
        return shapes
