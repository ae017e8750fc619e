"""Columns of paths: which files they mean, and which they may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_columns import FileColumn
from cutlayer.edge_agent.data_images import ImageReader
from cutlayer.edge_agent.data_table import Table
from support.user_data import IMAGE, write_image

READER = ImageReader(IMAGE, "crop")


def column(root: Path, *cells: str) -> FileColumn:
    return FileColumn(Table(root / "data.csv", {"image": cells}, root, range(2, 2 + len(cells))), "image", READER)


def test_paths_are_relative_to_the_root_or_whole(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", 7, width=8, height=8)
    files = column(tmp_path, "in/a.png", "in/../in/a.png", str(tmp_path / "in" / "a.png"), "")
    assert files.has.tolist() == [True, True, True, False]
    assert [int(files.read(row).max()) for row in range(3)] == [7, 7, 7]


@pytest.mark.parametrize("cell", ["../a.png", "in/../../a.png", "/etc/passwd", ".."])
def test_path_that_leads_outside_is_named_with_its_line(tmp_path: Path, cell: str) -> None:
    with pytest.raises(SettingsError, match=r"data\.csv, line 3, column 'image': .* is outside") as caught:
        column(tmp_path / "site", "in/a.png", cell)
    assert "root=FOLDER" in caught.value.fix


def test_folder_whose_name_only_begins_alike_is_outside(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is outside"):
        column(tmp_path / "site", "../site-of-others/a.png")


def test_linked_folder_is_inside(tmp_path: Path) -> None:
    write_image(tmp_path / "disk" / "a.png", 9, width=8, height=8)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "images").symlink_to(tmp_path / "disk")
    assert column(tmp_path / "site", "images/a.png").read(0).max() == 9


def test_check_says_of_each_row_why_it_cannot_be_read_in_the_rows_order(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png")
    names = [f"{number}.png" for number in range(1_200)]
    for number, name in enumerate(names):
        if number % 100:
            (tmp_path / name).hardlink_to(tmp_path / "image.png")
    rows = np.arange(1_200)[::-1]
    reasons = list(column(tmp_path, *names).check(rows, is_full=False))
    assert [int(row) for row, reason in zip(rows, reasons, strict=True) if reason] == list(range(1_100, -1, -100))
