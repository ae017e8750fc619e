"""Labels and numbers to learn, from the cells of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.edge_agent.data_table import Table
from cutlayer.edge_agent.data_targets import has_target, read_targets

ONE = ClassificationSpec(classes=("cat", "dog"))
SEVERAL = MultiLabelSpec(classes=("cough", "fever", "rash"))
NUMBERS = RegressionSpec(targets=(TargetSpec(name="age", mean=40, std=20), TargetSpec(name="weight", mean=70, std=10)))


def table(**columns: list[str]) -> Table:
    num_rows = len(next(iter(columns.values())))
    return Table(Path("data.csv"), columns, Path(), range(2, num_rows + 2))


def same(name: str) -> str:
    return name


def test_label_is_the_place_of_its_class_in_the_run() -> None:
    targets = read_targets(table(label=["dog", "cat", "dog"]), ONE, same)
    assert targets.dtype == np.int64
    assert targets.tolist() == [1, 0, 1]


def test_label_may_be_in_another_column() -> None:
    assert read_targets(table(species=["dog"]), ONE, {"label": "species"}.__getitem__).tolist() == [1]


def test_numerals_are_labels_where_the_runs_classes_are_numerals() -> None:
    assert read_targets(table(label=["1", "0"]), ClassificationSpec(classes=("0", "1")), same).tolist() == [1, 0]


def test_several_labels_are_separated_by_semicolons_and_none_is_allowed() -> None:
    targets = read_targets(table(labels=["fever; cough", "", "rash;"]), SEVERAL, same)
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_a_column_a_class_says_yes_no_or_not_known() -> None:
    columns = {"cough": ["1", "0"], "fever": ["", "1"], "rash": ["0", ""]}
    assert read_targets(table(**columns), SEVERAL, same).tolist() == [[1, -1, 0], [0, 1, -1]]


def test_numbers_keep_their_unit_and_may_be_missing() -> None:
    targets = read_targets(table(weight=["70.5", ""], age=["33", "1e1"]), NUMBERS, same)
    np.testing.assert_array_equal(targets, np.array([[33, 70.5], [10, np.nan]], np.float32))


def test_row_has_a_target_where_one_of_them_is_known() -> None:
    targets = read_targets(table(weight=["70.5", "", ""], age=["", "", "3"]), NUMBERS, same)
    assert has_target(NUMBERS, targets).tolist() == [True, False, True]
    assert has_target(ONE, read_targets(table(label=["dog", "cat"]), ONE, same)).tolist() == [True, True]


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        ({"species": ["dog"]}, ONE, r"no column 'label'"),
        ({"label": ["dog", ""]}, ONE, r"line 3, column 'label': the label is missing"),
        ({"label": ["dog", "bird", "fish"]}, ONE, r"line 3, column 'label': 'bird', 'fish' are none of the run's"),
        ({"label": ["dog", "Cat"]}, ONE, r"'Cat' is none of the run's classes, which are 'cat', 'dog'"),
        ({"label": ["0", "1"]}, ONE, r"'0', '1' are none"),
        ({"labels": ["fever", "fever,cough"]}, SEVERAL, r"line 3, column 'labels': 'fever,cough' is none"),
        ({"label": ["fever"]}, SEVERAL, r"no column 'labels'"),
        ({"cough": ["1"], "rash": ["0"]}, SEVERAL, r"no column 'fever'"),
        ({"cough": ["yes"], "fever": ["1"], "rash": ["0"]}, SEVERAL, r"line 2, column 'cough': 'yes' for a class"),
        ({"age": ["33"]}, NUMBERS, r"no column 'weight'"),
        ({"age": ["old"], "weight": ["70"]}, NUMBERS, r"line 2, column 'age': 'old' is no number"),
        ({"age": ["inf"], "weight": ["70"]}, NUMBERS, r"line 2, column 'age': 'inf' is not finite"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_column_and_fix(
    columns: dict[str, list[str]], task: TaskSpec, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read_targets(table(**columns), task, same)
    assert "data.csv" in caught.value.problem
    assert caught.value.fix


def test_numbers_in_the_place_of_names_are_told_from_a_slip_of_the_pen() -> None:
    with pytest.raises(SettingsError) as numbers:
        read_targets(table(label=["0"]), ONE, same)
    assert "names of the classes instead of numbers" in numbers.value.fix
    with pytest.raises(SettingsError) as slip:
        read_targets(table(label=["dogg"]), ONE, same)
    assert "as the run has them" in slip.value.fix
