"""What the data have and nothing reads: a forgotten option leaves a modality out, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.manifest import ModalitySpec, TableSpec, TextSpec
from cutlayer.edge_agent.data_opening import open_user_data
from cutlayer.edge_agent.data_request import DataRequest
from support.user_data import IMAGE, asked, write_image, write_table

NOTES: Mapping[str, ModalitySpec] = {"image": IMAGE, "note": TextSpec(num_tokens=8)}


def notes(folder: Path, *more: str) -> Path:
    """Make a table of scans with notes, whose images have a column of their own name."""
    write_image(folder / "a.png")
    header = ["scan path", "note", "label", *more]
    return write_table(
        folder / "data.csv", header, [["a.png", str(row), "cat", *[str(row)] * len(more)] for row in range(20)]
    )


def warnings(path: Path, request: DataRequest, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Open data, and return what is warned of."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "cutlayer"):
        open_user_data(str(path), request)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_columns_that_nothing_reads_are_named_where_a_modality_is_lacking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = notes(tmp_path, "ward")
    expected = f"{path}: not read: scan path, ward; to give image: --data-option image=COLUMN"
    assert warnings(path, asked(NOTES), caplog) == [expected]


def test_nothing_is_said_where_nothing_is_lacking_or_all_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = notes(tmp_path, "ward")
    assert warnings(path, asked(NOTES, image="scan path"), caplog) == []
    path = write_table(tmp_path / "data.csv", ["note", "label"], [["a", "cat"]])
    assert warnings(path, asked(NOTES), caplog) == []


def test_columns_of_a_lacking_table_are_named_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_table(tmp_path / "data.csv", ["note", "pulse", "label"], [["a", 1, "cat"]])
    modalities = {"note": NOTES["note"], "vitals": TableSpec(columns=("hr", "temp"))}
    [said] = warnings(path, asked(modalities), caplog)
    assert said.endswith("not read: pulse; to give vitals: --data-option hr=COLUMN --data-option temp=COLUMN")


def test_arrays_that_nothing_reads_are_named_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.npz"
    texts, images = ["a"] * 4, np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(path, note=texts, note_present=np.ones(4, bool), scans=images, label=["cat"] * 4)
    expected = f"{path}: not read: scans; to give image: --data-option image=ARRAY"
    assert warnings(path, asked(NOTES), caplog) == [expected]


def test_visit_is_warned_that_its_rows_for_testing_may_be_others_than_those_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    visit = replace(asked(NOTES), rows="test")
    [said] = warnings(notes(tmp_path), visit, caplog)
    assert "they may be rows that it has learned from" in said
    for column in ("id", "split"):
        cells = [str(row) if column == "id" else ("train", "test")[row % 2] for row in range(10)]
        rows = [["a.png", "a", "cat", cell] for cell in cells]
        path = write_table(tmp_path / "data.csv", ["scan path", "note", "label", column], rows)
        [said] = warnings(path, visit, caplog)
        assert "learned from" not in said
    [said] = warnings(notes(tmp_path), replace(visit, rows="all"), caplog)
    assert "learned from" not in said
