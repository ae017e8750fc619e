"""Time series in files: `.npy` arrays, or `.csv` with a step a line, read when they are asked for.

Axes: T steps, C channels.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import SeriesSpec
from cutlayer.edge_agent.data_npy import map_array
from cutlayer.edge_agent.data_unreadable import Unreadable

__all__ = ["SERIES_SUFFIXES", "SeriesReader"]

SERIES_SUFFIXES = (".npy", ".csv")
"""Files that count as series in a folder of classes."""


class SeriesReader:
    """Reads the series of one modality, at the run's rate: nobody resamples them.

    An array is (T, C), or (T,) where there is one channel. A CSV file has a line a step and a column a channel; its
    first line may name these. An empty cell, and NaN, is a value that is missing. Steps behind those that the run looks
    at are not read; a shorter series ends in NaN.

    Args:
        spec: The modality.
    """

    def __init__(self, spec: SeriesSpec) -> None:
        self.spec = spec
        self.shape = (spec.num_steps, spec.channels)

    def check(self, path: Path) -> None:
        """Read a file's header, or its first lines.

        Raises:
            Unreadable: When that fails.
        """
        if path.suffix.lower() == ".npy":
            self._mapped(path)
        else:
            self._lines(path, 1)

    def read(self, path: Path) -> NDArray[Any]:
        """Read a file.

        Returns:
            series_TC, float32, `spec.num_steps` long.

        Raises:
            Unreadable: When it cannot be read, has another number of channels, infinite values, or no value.
        """
        values_TC = self._mapped(path) if path.suffix.lower() == ".npy" else self._lines(path, self.spec.num_steps)
        found_TC = np.full(self.shape, np.nan, np.float32)
        length = min(len(values_TC), self.spec.num_steps)
        found_TC[:length] = values_TC[:length]
        if np.isinf(found_TC).any():
            raise Unreadable("infinite values")
        if np.isnan(found_TC).all():
            raise Unreadable("no value")
        return found_TC

    def _mapped(self, path: Path) -> NDArray[Any]:
        channels = self.spec.channels
        if channels > 1:
            return map_array(path, (None, channels))
        try:
            return map_array(path, (None, channels))
        except Unreadable:
            return map_array(path, (None,))[:, None]

    def _lines(self, path: Path, num_steps: int) -> NDArray[np.float32]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                # One more than is wanted: the first may be names.
                lines = list(itertools.islice((line for line in csv.reader(file) if line), num_steps + 1))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Unreadable.of(error) from error
        start = 1 if lines and _is_header(lines[0]) else 0
        lines = lines[start : start + num_steps]
        if not lines:
            raise Unreadable("no steps")
        return np.array([self._step(line, step + start + 1) for step, line in enumerate(lines)], np.float32)

    def _step(self, line: Sequence[str], number: int) -> list[float]:
        if len(line) != self.spec.channels:
            raise Unreadable(f"line {number} has {len(line)} values; expected {self.spec.channels}, one a channel")
        try:
            return [float(cell) if cell.strip() else np.nan for cell in line]
        except ValueError as error:
            raise Unreadable(f"line {number}: {error}") from error


def _is_header(line: Sequence[str]) -> bool:
    for cell in line:
        try:
            float(cell or "nan")
        except ValueError:
            return True
    return False
