"""Texts and rows of values that stand in a table's cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import TableSpec
from cutlayer.broker.table_spec import CategorySpec
from cutlayer.edge_agent.data_cells import row_column, text_column
from cutlayer.edge_agent.data_table import Table

VITALS = TableSpec(columns=("hr", "temp"), categories=(CategorySpec(name="ward", values=("a", "b")),))


def table(**columns: list[str]) -> Table:
    return Table(Path("data.csv"), columns, Path(), [2, 3, 4])


def same(name: str) -> str:
    return name


def test_empty_text_is_none() -> None:
    column = text_column(table(text=["good", "", "bad, very"]), "text")
    assert column.has.tolist() == [True, False, True]
    assert [str(column.read(row)) for row in range(3)] == ["good", "", "bad, very"]


def test_row_has_numbers_then_places_of_categories_and_nan_for_empty_cells() -> None:
    cells = table(ward=["b", "", ""], temp=["36.6", "", ""], hr=["72", "80", ""])
    column = row_column(cells, "vitals", VITALS, same)
    assert column is not None
    assert column.has.tolist() == [True, True, False]
    np.testing.assert_array_equal(column.read(0), [72, 36.6, 1])
    np.testing.assert_array_equal(column.read(1), [80, np.nan, np.nan])


def test_columns_may_have_other_names() -> None:
    cells = table(pulse=["72", "1", "1"], temp=["1", "1", "1"], ward=["a", "a", "a"])
    column = row_column(cells, "vitals", VITALS, lambda name: {"hr": "pulse"}.get(name, name))
    assert column is not None
    np.testing.assert_array_equal(column.read(0), [72, 1, 0])


def test_table_without_any_of_the_columns_lacks_the_modality() -> None:
    assert row_column(table(image=["a", "b", "c"]), "vitals", VITALS, same) is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"hr": ["1", "2", "3"]}, "no column 'temp', 'ward', which vitals of the run has"),
        ({"hr": ["1", "x", ""], "temp": [""] * 3, "ward": [""] * 3}, "line 3, column 'hr': 'x' is no number"),
        ({"hr": ["1", "", "inf"], "temp": [""] * 3, "ward": [""] * 3}, "line 4, column 'hr': 'inf' is not finite"),
        ({"hr": [""] * 3, "temp": [""] * 3, "ward": ["c", "", ""]}, "line 2, column 'ward': 'c' is none of the run's"),
    ],
)
def test_cell_that_does_not_fit_is_named(columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        row_column(table(**columns), "vitals", VITALS, same)
    assert caught.value.fix
