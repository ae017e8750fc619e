"""What is to be learned of each row, from the cells of a table.

Axes: R rows, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, RetrievalSpec, TaskSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.data_table import Table

__all__ = ["LABELS_SEPARATOR", "ColumnOf", "has_target", "no_targets", "number_in", "read_targets", "target_columns"]

LABELS_SEPARATOR = ";"

ColumnOf = Callable[[str], str]


def target_columns(task: TaskSpec) -> tuple[str, ...]:
    """Return the names under which a table may have a task's labels or targets."""
    if isinstance(task, ClassificationSpec):
        return ("label",)
    if isinstance(task, MultiLabelSpec):
        return ("labels", *task.classes)
    return task.output_names  # of retrieval: none


def no_targets(task: TaskSpec, num_rows: int) -> Targets:
    """Return targets that mean nothing, for rows that are only predicted; read-only, and as large as one of them."""
    if isinstance(task, ClassificationSpec | RetrievalSpec):
        return np.broadcast_to(np.int64(0), (num_rows,))
    return np.broadcast_to(np.float32(0), (num_rows, task.num_outputs))


def read_targets(table: Table, task: TaskSpec, column_of: ColumnOf) -> Targets:
    """Read the targets of all rows.

    One label: column `label`. Several: column `labels` with the names of those that are there, separated by `;`, or a
    column a class with 1, 0, or nothing where it is not known. Numbers: a column each. Pairs: none.

    Args:
        table: The table.
        task: What is learned.
        column_of: Returns the column for a name.

    Returns:
        Targets of each row, in the form of `batches.Batch`.

    Raises:
        SettingsError: When a column is missing, a class is none of the run's, a label is empty, or a cell is no number.
    """
    if isinstance(task, RetrievalSpec):
        return np.zeros(table.num_rows, np.int64)  # a row's own cells belong together
    if isinstance(task, RegressionSpec):
        return _numbers(table, task.output_names, column_of)
    if isinstance(task, MultiLabelSpec):
        if column_of("labels") not in table.columns and any(column_of(name) in table.columns for name in task.classes):
            return _flags(table, task.classes, column_of)
        column = _needed(table, "labels", column_of)
        number_of = _numbers_of(table, column, task.classes, is_single=False)
        targets_RC = np.zeros((table.num_rows, task.num_outputs), np.float32)
        for row, cell in enumerate(table.columns[column]):
            targets_RC[row, [number_of[name] for name in _names(cell)]] = 1.0
        return targets_RC
    column = _needed(table, "label", column_of)
    number_of = _numbers_of(table, column, task.classes, is_single=True)
    return np.array([number_of[cell] for cell in table.columns[column]], dtype=np.int64)


def has_target(task: TaskSpec, targets: Targets) -> NDArray[np.bool_]:
    """Return which rows have something to be learned, bool (R): of a regression's targets one at least.

    Args:
        task: What is learned.
        targets: Of all rows.
    """
    if isinstance(task, RegressionSpec):
        return np.asarray(~np.isnan(targets).all(axis=1))
    return np.ones(len(targets), np.bool_)


def _needed(table: Table, name: str, column_of: ColumnOf) -> str:
    column = column_of(name)
    if column not in table.columns:
        raise SettingsError(
            f"{table.path} has no column {column!r}, and the run learns from it",
            f"add it, or say which column it is: --data-option {name}=COLUMN",
        )
    return column


def _names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(LABELS_SEPARATOR) if name.strip()]


def _numbers_of(table: Table, column: str, classes: Sequence[str], *, is_single: bool) -> dict[str, int]:
    """Return each class's number, once it is known that the column names no other."""
    number_of = {name: number for number, name in enumerate(classes)}
    unknown: dict[str, int] = {}
    for row, cell in enumerate(table.columns[column]):
        if is_single and not cell:
            raise SettingsError(
                f"{table.where(row, column)}: the label is missing", "write one, or remove the row from the table"
            )
        for name in [cell] if is_single else _names(cell):
            if name not in number_of:
                unknown.setdefault(name, row)
    if unknown:
        first = next(iter(unknown.values()))
        raise SettingsError(
            f"{table.where(first, column)}: {_some(list(unknown))} {'is' if len(unknown) == 1 else 'are'} none of the "
            f"run's classes, which are {_some(classes)}",
            _fix(list(unknown)),
        )
    return number_of


def _fix(unknown: Sequence[str]) -> str:
    if all(name.isdecimal() for name in unknown):
        return "write the names of the classes instead of numbers"
    return "write the names as the run has them, or have the run's [task] classes changed"


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _numbers(table: Table, names: Sequence[str], column_of: ColumnOf) -> NDArray[np.float32]:
    columns = [_needed(table, name, column_of) for name in names]
    values_RC = np.full((table.num_rows, len(names)), np.nan, np.float32)
    for place, column in enumerate(columns):
        for row, cell in enumerate(table.columns[column]):
            if cell:
                values_RC[row, place] = number_in(table, row, column, cell)
    return values_RC


def number_in(table: Table, row: int, column: str, cell: str) -> float:
    """Return the number that a cell holds.

    Raises:
        SettingsError: When it holds none, or one that is not finite.
    """
    try:
        value = float(cell)
    except ValueError as error:
        raise SettingsError(
            f"{table.where(row, column)}: {cell!r} is no number", "write one, or leave the cell empty"
        ) from error
    if not math.isfinite(value):
        raise SettingsError(f"{table.where(row, column)}: {cell!r} is not finite", "leave the cell empty instead")
    return value


def _flags(table: Table, classes: Sequence[str], column_of: ColumnOf) -> NDArray[np.float32]:
    """Return targets from a column a class; -1 where one is not known."""
    known = {"": -1.0, "0": 0.0, "1": 1.0}
    flags_RC = np.empty((table.num_rows, len(classes)), np.float32)
    for place, column in enumerate(_needed(table, name, column_of) for name in classes):
        for row, cell in enumerate(table.columns[column]):
            if cell not in known:
                raise SettingsError(
                    f"{table.where(row, column)}: {cell!r} for a class",
                    "write 1 where it is there, 0 where it is not, and nothing where that is not known",
                )
            flags_RC[row, place] = known[cell]
    return flags_RC
