"""Modalities that are in the cells of a table themselves: texts, and rows of numbers and categories.

Axes: R rows, F columns of a row.
"""

from __future__ import annotations

import numpy as np

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import TableSpec
from cutlayer.edge_agent.data_columns import ArrayColumn
from cutlayer.edge_agent.data_table import Table
from cutlayer.edge_agent.data_targets import ColumnOf, number_in

__all__ = ["row_column", "text_column"]


def text_column(table: Table, column: str) -> ArrayColumn:
    """Return a column of texts; an empty cell is none."""
    cells = table.columns[column]
    values = np.empty(len(cells), dtype=object)
    values[:] = cells
    return ArrayColumn(values, np.array([bool(cell) for cell in cells], dtype=bool))


def row_column(table: Table, modality: str, spec: TableSpec, column_of: ColumnOf) -> ArrayColumn | None:
    """Return a modality whose values are in columns of their own; a row with none of them lacks it.

    Returns:
        Rows (R, F), float64, NaN for an empty cell, categories by their places in the run's list; None where the table
        has none of the columns.

    Raises:
        SettingsError: When some of the columns are missing, or a cell is no number, or none of the categories.
    """
    columns = {name: column_of(name) for name in spec.column_names}
    lacking = [column for column in columns.values() if column not in table.columns]
    if len(lacking) == len(columns):
        return None
    if lacking:
        raise SettingsError(
            f"{table.path} has no column {', '.join(map(repr, lacking[:8]))}, which {modality} of the run has",
            "add it (cells may stay empty), or say which column it is: --data-option NAME=COLUMN",
        )
    places = {
        category.name: {value: place for place, value in enumerate(category.values)} for category in spec.categories
    }
    values_RF = np.full((table.num_rows, len(columns)), np.nan)
    for place, (name, column) in enumerate(columns.items()):
        known = places.get(name)
        for row, cell in enumerate(table.columns[column]):
            if not cell:
                continue
            if known is None:
                values_RF[row, place] = number_in(table, row, column, cell)
            elif cell in known:
                values_RF[row, place] = known[cell]
            else:
                raise SettingsError(
                    f"{table.where(row, column)}: {cell!r} is none of the run's categories, which are "
                    + ", ".join(map(repr, list(known)[:12])),
                    "write one of them, or leave the cell empty",
                )
    return ArrayColumn(values_RF, ~np.isnan(values_RF).all(axis=1))
