"""A table of samples in memory: names of files, texts, values and labels, as text. The files stay on disk."""

from __future__ import annotations

import csv
import importlib.util
import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutlayer.broker.errors import SettingsError

__all__ = ["DATA_EXTRA", "MAX_CELL_CHARACTERS", "TABLE_NAMES", "Table", "needs_package", "read_header", "read_table"]

TABLE_NAMES = ("data.csv", "data.parquet")
"""What a table is called in a folder."""
MAX_CELL_CHARACTERS = 1_000_000
"""A quotation mark that nobody closes makes the rest of a CSV file one cell."""
_OTHER_SEPARATORS = (";", "\t")
"""What spreadsheets separate columns by where the comma is a decimal one."""
DATA_EXTRA = 'pip install "cutlayer[data]"'


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, by column.

    Attributes:
        path: Where it was read from: a file, or the folder that was walked.
        columns: Cells of each column, by its name; an empty cell is "".
        lines: Line of each row in the file, for errors; None where rows have none.
        root: Folder that paths are relative to.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    root: Path
    lines: Sequence[int] | None = None

    @property
    def num_rows(self) -> int:
        """Rows; 0 where no column was wanted."""
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def where(self, row: int, column: str | None = None) -> str:
        """Name a row, and a column of it, as a person finds them."""
        place = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.path}, {place}" + (f", column {column!r}" if column is not None else "")


def needs_package(package: str, what: str) -> None:
    """Check that an optional package is there.

    Raises:
        SettingsError: When it is not; the text says what needs it, and how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise SettingsError(f"{what} needs the package {package}, which is not installed", DATA_EXTRA)


def read_header(path: Path) -> tuple[str, ...]:
    """Return the names of a table's columns.

    Raises:
        SettingsError: When the file cannot be read, two columns have one name, or commas do not separate them.
    """
    if path.suffix == ".parquet":
        names = tuple(str(name) for name in _parquet_file(path).schema_arrow.names)
    else:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                names = tuple(next(csv.reader(file, strict=True), ()))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise _unreadable(path, error) from error
        if len(names) == 1 and any(separator in names[0] for separator in _OTHER_SEPARATORS):
            raise SettingsError(f"{path}: its only column is called {names[0]!r}", "separate columns by commas")
    _check_names(path, names)
    return names


def read_table(path: Path, columns: Collection[str], root: Path | None = None) -> Table:
    """Read columns of a CSV file (UTF-8, comma, first line names) or of a Parquet file.

    Args:
        path: The file.
        columns: Which of its columns; the others take no memory.
        root: Folder that its paths are relative to; its own when left out.

    Raises:
        SettingsError: When it cannot be read, has no row, or names a column twice; a package is missing.
    """
    names = read_header(path)
    root = path.parent if root is None else root
    if path.suffix == ".parquet":
        cells, num_rows = _parquet_columns(path, [name for name in names if name in columns])
        table = Table(path, cells, root)
    else:
        cells, lines = _csv_columns(path, names, columns)
        table, num_rows = Table(path, cells, root, lines), len(lines)
    if num_rows == 0:
        raise SettingsError(f"{path} has no rows below its header", "write one row a sample")
    return table


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not names or not any(names):
        raise SettingsError(f"{path} is empty", "begin with a line that names the columns, such as image,label")
    for name in names:
        if not name.strip():
            raise SettingsError(f"{path}: column {names.index(name) + 1} has no name", "name it in the first line")
        if names.count(name) > 1:
            raise SettingsError(f"{path}: two columns are called {name!r}", "rename or remove one of them")


def _csv_columns(
    path: Path, names: Sequence[str], wanted: Collection[str]
) -> tuple[dict[str, list[str]], Sequence[int]]:
    columns: dict[str, list[str]] = {name: [] for name in names if name in wanted}
    places = [(names.index(name), column) for name, column in columns.items()]
    lines = array("q")
    limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            next(reader)
            first = reader.line_num + 1
            for row in reader:
                line, first = first, reader.line_num + 1
                if not row:
                    continue  # an empty line
                if len(row) != len(names):
                    raise SettingsError(
                        f"{path}, line {line}: {len(row)} cells for {len(names)} columns",
                        'write as many cells as there are columns; put text with a comma in quotation marks, "a, b"',
                    )
                lines.append(line)
                for place, column in places:
                    column.append(row[place].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error, line=len(lines) + 2) from error
    finally:
        csv.field_size_limit(limit)
    return columns, lines


def _parquet_file(path: Path) -> Any:
    needs_package("pyarrow", f"reading {path}")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise _unreadable(path, error) from error


def _parquet_columns(path: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    from pyarrow import ArrowException

    file = _parquet_file(path)
    columns: dict[str, list[str]] = {name: [] for name in names}
    try:
        for group in range(file.num_row_groups):  # a group at a time: Python's objects take more than Arrow's
            table = file.read_row_group(group, columns=list(names))
            for name in names:
                columns[name] += [_cell_text(path, name, value) for value in table.column(name).to_pylist()]
    except (OSError, ArrowException) as error:
        raise _unreadable(path, error) from error
    return columns, int(file.metadata.num_rows)


def _cell_text(path: Path, column: str, value: object) -> str:
    """Return a cell as a CSV file would have it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ";".join(value)  # several labels
    if isinstance(value, bytes | list | dict):
        raise SettingsError(
            f"{path}, column {column!r} holds {type(value).__name__} values",
            "write bytes and arrays to files and name the files in the column, or drop the column",
        )
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # integers with missing cells are floats in many tools
    return str(value).strip()


def _unreadable(path: Path, error: Exception, line: int | None = None) -> SettingsError:
    if isinstance(error, UnicodeDecodeError):
        return SettingsError(f"{path}{_line_not_utf8(path)}: not UTF-8 ({error.reason})", "save the table as UTF-8")
    where = f"{path}" if line is None else f"{path}, about line {line}"
    if isinstance(error, OSError):
        return SettingsError(f"{path} cannot be read: {error.strerror or error}", "check the name and your rights")
    return SettingsError(f"{where}: {error}", "save it again, in the form that docs/data.md shows")


def _line_not_utf8(path: Path) -> str:
    """Return where the first line is that is not UTF-8: files are decoded far ahead of the line that is read."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number}"
    return ""
