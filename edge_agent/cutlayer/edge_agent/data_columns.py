"""One modality of all rows: in files, in cells of a table, or in an array.

Axes: R rows of the whole data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_table import Table
from cutlayer.edge_agent.data_unreadable import Unreadable

__all__ = ["ArrayColumn", "Column", "FileColumn", "FileReader"]

_CHECKS_AT_ONCE = 8
"""Opening a file on a network disk is mostly waiting."""
_CHECKS_AHEAD = 512


class FileReader(Protocol):
    """Turns files of one modality into raw samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample."""

    def check(self, path: Path) -> None:
        """Look at a file without reading all of it.

        Raises:
            Unreadable: When it cannot be read.
        """

    def read(self, path: Path) -> NDArray[Any]:
        """Read a file.

        Raises:
            Unreadable: When it cannot be read.
        """


class Column(Protocol):
    """One modality of all rows."""

    @property
    def has(self) -> NDArray[np.bool_]:
        """Which rows have it, bool (R)."""

    @property
    def empty(self) -> NDArray[Any]:
        """What stands in a batch for a row that has it not."""

    def path(self, row: int) -> Path | None:
        """Return the file of a row; None where it is in none."""

    def check(self, rows: NDArray[np.int64], *, is_full: bool) -> Iterator[str | None]:
        """Look at the files of rows: yield for each why it cannot be read, or None."""

    def read(self, row: int) -> NDArray[Any]:
        """Return a row's raw sample.

        Raises:
            Unreadable: When its file cannot be read.
        """


class FileColumn:
    """A file a row, read when it is asked for.

    Args:
        table: The table.
        column: Its column of paths, relative to the table's root; a cell may be empty.
        reader: Reads the files.

    Raises:
        SettingsError: When a path leads out of the root.
    """

    def __init__(self, table: Table, column: str, reader: FileReader) -> None:
        self._root = Path(os.path.normpath(table.root.absolute()))
        self._cells = table.columns[column]
        self._reader = reader
        self.has = np.array([bool(cell) for cell in self._cells], dtype=bool)
        self.empty: NDArray[Any] = np.zeros(reader.shape, np.uint8)
        inside = str(self._root).rstrip(os.sep) + os.sep
        for row, cell in enumerate(self._cells):
            # By name only: a folder of images may well be a link to another disk.
            if cell and not os.path.normpath(self._root / cell).startswith(inside):
                raise SettingsError(
                    f"{table.where(row, column)}: {cell!r} is outside {table.root}",
                    "name files below that folder, or give the folder that they are in: --data-option root=FOLDER",
                )

    def path(self, row: int) -> Path:
        """Return the file of a row."""
        return Path(self._root, self._cells[row])

    def check(self, rows: NDArray[np.int64], *, is_full: bool) -> Iterator[str | None]:
        """Look at the files of rows: yield for each why it cannot be read, or None."""
        look: Callable[[Path], object] = self._reader.read if is_full else self._reader.check

        def reason(row: int) -> str | None:
            try:
                look(self.path(row))
            except Unreadable as error:
                return error.reason
            return None

        with ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
            for start in range(0, rows.size, _CHECKS_AHEAD):
                yield from pool.map(reason, rows[start : start + _CHECKS_AHEAD].tolist())

    def read(self, row: int) -> NDArray[Any]:
        """Return a row's raw sample.

        Raises:
            Unreadable: When its file cannot be read.
        """
        return self._reader.read(self.path(row))


class ArrayColumn:
    """A modality that is in memory, or mapped into it.

    Args:
        values: First axis R.
        has: Which rows have it, bool (R).
    """

    def __init__(self, values: NDArray[Any], has: NDArray[np.bool_]) -> None:
        self._values = values
        self.has = has
        self.empty: NDArray[Any] = np.zeros(values.shape[1:], values.dtype)
        if values.dtype == object:
            self.empty = np.array("", dtype=object)

    def path(self, row: int) -> None:
        """Return None: it is in no file of its own."""

    def check(self, rows: NDArray[np.int64], *, is_full: bool) -> Iterator[str | None]:
        """Yield None for each row: there is nothing to look at."""
        del is_full
        return iter([None] * rows.size)

    def read(self, row: int) -> NDArray[Any]:
        """Return a row's raw sample."""
        return np.asarray(self._values[row])
