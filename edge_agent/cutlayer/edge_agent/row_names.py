"""What the rows of a user's data are called, so that she finds them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowNames"]


@dataclass(frozen=True, slots=True)
class RowNames:
    """Names of the samples of a visit.

    Attributes:
        rows: The row of each sample in the data, int64, counted from 1.
        texts: What else names it, by the name of the column: `id`, or a file.
    """

    rows: NDArray[np.int64]
    texts: Mapping[str, Sequence[str]]

    def of(self, sample: int) -> list[str | int | float | None]:
        """Return the cells that name a sample."""
        return [int(self.rows[sample]), *(texts[sample] for texts in self.texts.values())]
