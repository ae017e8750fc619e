"""A file of predictions, written as they come: CSV, or Parquet by its name's ending; there whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_table import needs_package
from cutlayer.edge_agent.predictions import Cell, Column

__all__ = ["PredictionFile", "check_output"]

SUFFIXES = (".csv", ".parquet")
_GROUP_ROWS = 8_192
"""Rows that Parquet writes together, and so rows that wait in memory."""


def check_output(path: Path) -> None:
    """Check that a file of predictions can be written: before the work, not after it.

    Raises:
        SettingsError: When its ending is unknown, its folder is not there or not writable, or a package is missing.
    """
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"--output {path} is no {' or '.join(SUFFIXES)} file", "name one, such as predictions.csv")
    if path.suffix == ".parquet":
        needs_package("pyarrow", f"writing {path}")
    if path.is_dir():
        raise SettingsError(f"--output {path} is a folder", "name a file in it, such as predictions.csv")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"--output {path}: {path.parent} is no folder that can be written", "name another")


class _Writer(Protocol):
    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Write rows."""

    def close(self) -> None:
        """Write what is left."""


class PredictionFile:
    """A file under a temporary name, until it is whole.

    Args:
        path: Its name afterwards; an older file of that name is replaced then.
        columns: Its columns.

    Raises:
        SettingsError: As `check_output`, and when the disk is full.
    """

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        check_output(path)
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._is_open = True
        try:
            self._writer: _Writer = (
                _ParquetWriter(self._partial, columns)
                if path.suffix == ".parquet"
                else _CsvWriter(self._partial, columns)
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.discard()

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Write rows of as many cells as there are columns; None for an empty cell.

        Raises:
            SettingsError: When the disk is full.
        """
        try:
            self._writer.write(rows)
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self) -> Path:
        """Give the file its name.

        Raises:
            SettingsError: When the disk is full.
        """
        try:
            self._writer.close()
            self._is_open = False
            self._partial.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        return self.path

    def discard(self) -> None:
        """Remove what is written, unless it is finished."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(OSError):  # a full disk, which was said
                self._writer.close()
            self._partial.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> SettingsError:
        return SettingsError(f"{self._partial} cannot be written: {error.strerror or error}", "name another --output")


class _CsvWriter:
    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow([column.name for column in columns])

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        # Seven digits are what float32 has.
        for row in rows:
            self._rows.writerow([f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row])

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        types = {"text": pa.string(), "whole": pa.int64(), "number": pa.float32()}
        self._schema = pa.schema([(column.name, types[column.kind]) for column in columns])
        self._writer: Any = ParquetWriter(path, self._schema)
        self._rows: list[Sequence[Cell]] = []

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        self._rows += rows
        if len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        cells = zip(*self._rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(cells, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []
