"""Rows of a table to tokens: one a column (FT-Transformer, arXiv 2106.11959, section 3.1).

Axes: B samples, F columns (of numbers first, then of categories), M columns of numbers, K categories of all columns
together, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import TableSpec
from cutlayer.edge_agent.tokenizer_checks import Parts, checked_parts, unfit, width_of

__all__ = ["TableTokenizer"]


class TableTokenizer:
    """A number's token is it times its column's vector, plus its column's bias; a category's an embedding plus bias.

    Args:
        spec: The table modality's specification.
        parts: `bias`, (F, D); `weight`, (M, D), where there are columns of numbers; `embedding`, (K, D), where there
            are columns of categories: a row for each category of the first column, then of the next.
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights do not fit `spec`.
    """

    def __init__(self, spec: TableSpec, parts: Parts, *, modality: str = "table") -> None:
        self.spec = spec
        self.modality = modality
        self.num_tokens = spec.num_tokens
        self.width = width_of(spec, parts)
        self._num_numbers = len(spec.columns)
        sizes = [len(category.values) for category in spec.categories]
        self._first_rows = np.cumsum([0, *sizes[:-1]]).astype(np.intp) if sizes else np.zeros(0, np.intp)
        self.take_weights(checked_parts(modality, spec, parts, self.width))

    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Normalize numbers to `(value - mean) / std`, column by column, and check categories.

        Args:
            raw: cells_BF, numbers: the columns in the order of `spec.column_names`; of categories their places in
                `values`, from 0. NaN where a cell is empty.

        Returns:
            cells_BF, float32: NaN where a cell is empty.

        Raises:
            SettingsError: When `raw` has the wrong shape or dtype, infinite values or categories that do not exist.
        """
        spec = self.spec
        names = ", ".join(spec.column_names[:12]) + (", ..." if self.num_tokens > 12 else "")
        expected = f"(B, {self.num_tokens}) numbers: {names}"
        if raw.ndim != 2 or raw.shape[1] != self.num_tokens or raw.dtype.kind not in "iuf":
            raise unfit(self.modality, raw, expected, "give one number a column, and NaN for an empty cell")
        # In double precision: a date in seconds has more digits than float32.
        cells_BF = raw.astype(np.float64)
        if np.isinf(cells_BF).any():
            raise unfit(self.modality, raw, expected, "give NaN for an empty cell, and no infinite values")
        for column, category in enumerate(spec.categories, start=self._num_numbers):
            _check_category(self.modality, category.name, len(category.values), cells_BF[:, column])
        cells_BF[:, : self._num_numbers] -= np.asarray(spec.mean)
        cells_BF[:, : self._num_numbers] /= np.asarray(spec.std)
        with np.errstate(over="ignore"):
            found_BF = cells_BF.astype(np.float32)
        if np.isinf(found_BF).any():
            raise unfit(self.modality, raw, expected, "give a mean and a std that bring the numbers near 0")
        return found_BF

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return tokens_BFD, float32; zeros where a cell is empty."""
        is_empty_BF = np.isnan(features)
        cells_BF = np.where(is_empty_BF, np.float32(0.0), features)
        tokens_BFD = np.repeat(self._bias_FD[None], len(features), axis=0)
        if self._num_numbers:
            tokens_BFD[:, : self._num_numbers] += cells_BF[:, : self._num_numbers, None] * self._parts["weight"]
        if len(self._first_rows):
            tokens_BFD[:, self._num_numbers :] += self._parts["embedding"][self._rows(cells_BF)]
        tokens_BFD[is_empty_BF] = 0.0
        return tokens_BFD

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return which cells are filled, bool (B, F)."""
        present_BF: NDArray[np.bool_] = ~np.isnan(features)
        return present_BF

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the gradients of the parts."""
        is_empty_BF = np.isnan(features)
        cells_BF = np.where(is_empty_BF, np.float32(0.0), features)
        gradient_BFD = np.where(is_empty_BF[:, :, None], np.float32(0.0), gradient_BND)
        found = {"bias": gradient_BFD.sum(axis=0)}
        if self._num_numbers:
            numbers_BM = cells_BF[:, : self._num_numbers]
            found["weight"] = np.einsum("bm,bmd->md", numbers_BM, gradient_BFD[:, : self._num_numbers])
        if len(self._first_rows):
            found["embedding"] = np.zeros_like(self._parts["embedding"])
            np.add.at(found["embedding"], self._rows(cells_BF), gradient_BFD[:, self._num_numbers :])
        return found

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`: tokens_BFD, float32."""
        return self.project(self.features(raw))

    def take_weights(self, parts: Parts) -> None:
        """Use these parts, which fit, from now on."""
        self._parts = dict(parts)
        self._bias_FD = parts["bias"]

    def _rows(self, cells_BF: NDArray[np.float32]) -> NDArray[np.intp]:
        return cells_BF[:, self._num_numbers :].astype(np.intp) + self._first_rows


def _check_category(modality: str, column: str, num_values: int, cells_B: NDArray[np.float64]) -> None:
    known_B = cells_B[~np.isnan(cells_B)]
    wrong_B = known_B[(known_B != np.floor(known_B)) | (known_B < 0) | (known_B >= num_values)]
    if wrong_B.size:
        raise SettingsError(
            f"{modality}: column {column!r} has {wrong_B[0]:g}, and {num_values} values are known",
            f"give the place of a value in `values`, 0 to {num_values - 1}, and NaN for an empty cell",
        )
