"""What outputs say in a user's words, and the file that says it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, RetrievalSpec, TargetSpec
from cutlayer.edge_agent.prediction_file import PredictionFile, check_output
from cutlayer.edge_agent.predictions import Column, best_matches, prediction_columns, predictions

CLASSES = ClassificationSpec(classes=("cat", "dog"))
LABELS = MultiLabelSpec(classes=("fever", "cough"))
NUMBERS = RegressionSpec(
    targets=(TargetSpec(name="age", mean=50, std=20, unit="years"), TargetSpec(name="hr", mean=80, std=10))
)
COLUMNS = (Column("row", "whole"), Column("id", "text"), Column("probability cat", "number"))


def test_a_class_comes_with_the_probability_of_each() -> None:
    assert [column.name for column in prediction_columns(CLASSES)] == [
        "predicted",
        "probability cat",
        "probability dog",
    ]
    (row,) = predictions(CLASSES, np.array([[0.0, np.log(3.0)]], np.float32))
    assert row[0] == "dog"
    assert row[1:] == pytest.approx([0.25, 0.75])


def test_each_label_has_a_probability_of_its_own() -> None:
    assert [column.name for column in prediction_columns(LABELS)] == ["probability fever", "probability cough"]
    (row,) = predictions(LABELS, np.array([[np.log(4.0), -1e4]], np.float32))
    assert row == pytest.approx([0.8, 0.0])


def test_numbers_are_in_the_users_units() -> None:
    assert [column.name for column in prediction_columns(NUMBERS)] == ["predicted age", "predicted hr"]
    assert predictions(NUMBERS, np.array([[0.5, -1.0]], np.float32)) == [[60.0, 70.0]]


@given(arrays(np.float32, (3, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_probabilities_of_a_class_add_up_whatever_the_outputs(outputs: np.ndarray) -> None:
    for row in predictions(CLASSES, outputs):
        assert sum(float(cell or 0) for cell in row[1:]) == pytest.approx(1.0)


def test_matches_are_the_nearest_by_angle_and_not_by_length() -> None:
    query = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    items = np.array([[0.1, 0.0], [50.0, 50.0], [0.0, 0.3]], np.float32)
    found = best_matches(query, items, [7, 9], [3, 4, 5], best=2)
    assert [(match.sample, match.rank, match.found) for match in found] == [(7, 1, 3), (7, 2, 4), (9, 1, 5), (9, 2, 4)]
    assert [match.similarity for match in found] == pytest.approx([1.0, 0.5**0.5, 1.0, 0.5**0.5])
    assert len(best_matches(query, items, [7, 9], [3, 4, 5], best=10)) == 6, "no more than there are"
    assert prediction_columns(RetrievalSpec(between=("image", "text"))) == ()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_text("of before")
    with PredictionFile(path, COLUMNS) as file:
        file.write([[1, "a", 0.123456789], [2, "b, c", None]])
        file.write([])
        assert path.read_text() == "of before"
        assert file.finish() == path
    if suffix == "csv":
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        assert rows == [["row", "id", "probability cat"], ["1", "a", "0.1234568"], ["2", "b, c", ""]]
    else:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        assert [list(row) for row in rows] == [["row", "id", "probability cat"]] * 2
        assert rows[0]["probability cat"] == pytest.approx(0.1234568)
        assert rows[1] == {"row": 2, "id": "b, c", "probability cat": None}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_that_does_not_become_whole_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    with PredictionFile(tmp_path / f"out.{suffix}", COLUMNS) as file:
        file.write([[1, "a", 0.5]])
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_parquet_is_written_in_groups(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with PredictionFile(path, COLUMNS) as file:
        for start in range(0, 20_000, 1_000):
            file.write([[row, str(row), 0.5] for row in range(start, start + 1_000)])
        file.finish()
    read = pyarrow.parquet.ParquetFile(path)
    assert read.metadata.num_row_groups > 1
    assert read.read().column("row").to_pylist() == list(range(20_000))


@pytest.mark.parametrize(
    ("name", "problem"),
    [("out.txt", "is no .csv or .parquet file"), ("nowhere/out.csv", "is no folder"), ("folder.csv", "is a folder")],
)
def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SettingsError, match=problem):
        check_output(tmp_path / name)
