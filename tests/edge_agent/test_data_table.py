"""Tables: what is read from CSV and Parquet, and what a person is told about one that cannot be used."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_table import needs_package, read_header, read_table

ALL = ("image", "label", "note")


def written(folder: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def parquet(folder: Path, columns: dict[str, object], *, row_group_size: int = 1_000) -> Path:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.table(columns), folder / "data.parquet", row_group_size=row_group_size)
    return folder / "data.parquet"


def test_cells_are_text_without_outer_blanks_and_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'image,label,note\n a.png ,cat,"red,\nsmall"\n\nb.png,dog,\n')
    table = read_table(path, ALL)
    assert table.columns == {"image": ["a.png", "b.png"], "label": ["cat", "dog"], "note": ["red,\nsmall", ""]}
    assert [table.where(row) for row in range(2)] == [f"{path}, line 2", f"{path}, line 5"]
    assert table.where(1, "note") == f"{path}, line 5, column 'note'"
    assert table.root == tmp_path


def test_only_wanted_columns_are_kept(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "image,secret,label\na.png,x,cat\n"), ("label", "audio"))
    assert table.columns == {"label": ["cat"]}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_counted_also_where_no_column_is_wanted(tmp_path: Path, kind: str) -> None:
    written(tmp_path, "word,label\na,cat\nb,dog\n")
    parquet(tmp_path, {"word": ["a", "b"]})
    assert read_table(tmp_path / f"data.{kind}", ("image",)).columns == {}


def test_parquet_without_rows_is_named_as_empty(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.parquet has no rows"):
        read_table(parquet(tmp_path, {"word": []}), ("image",))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_table_with_another_separator_says_that_columns_are_separated_by_commas(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path, separator.join(("image", "label")) + "\n" + separator.join(("a.png", "cat")) + "\n")
    with pytest.raises(SettingsError, match="its only column is called") as caught:
        read_header(path)
    assert "separate columns by commas" in caught.value.fix


def test_line_that_is_not_utf_8_is_named_however_far_ahead_the_file_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, b"image,label\n" + b"a.png,cat\n" * 3_000 + b"b.png,caf\xe9\n" + b"a.png,cat\n" * 3_000)
    with pytest.raises(SettingsError, match="line 3002: not UTF-8") as caught:
        read_table(path, ALL)
    assert "as UTF-8" in caught.value.fix
    short = written(tmp_path, b"image,label\na.png,caf\xe9\n")
    with pytest.raises(SettingsError, match="line 2: not UTF-8"):
        read_header(short)


def test_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, b"\xef\xbb\xbfimage,label\r\na.png,cat\r\n")) == ("image", "label")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("image,label\n", "has no rows"),
        ("image,label,image\na,b,c\n", "two columns are called 'image'"),
        ("image,,label\na,b,c\n", "column 2 has no name"),
        ("image,label\na.png,cat\nb.png\n", "line 3: 1 cells for 2 columns"),
        ("image,label\na.png,cat\nb, c.png,dog\n", "line 3: 3 cells for 2 columns"),
        (b"image,label\na.png,caf\xe9\n", "line 2: not UTF-8"),
        (b"im\xe9ge,label\na.png,cat\n", "line 1: not UTF-8"),
        ('image,label\n"a.png,cat\n', "unexpected end of data"),
    ],
)
def test_table_that_cannot_be_used_is_named_with_its_line_and_the_fix(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_table(path, ALL)
    assert str(path) in caught.value.problem
    assert caught.value.fix


def test_table_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.csv cannot be read: No such file"):
        read_table(tmp_path / "no.csv", ALL)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        read_table(tmp_path / "folder.csv", ALL)


def test_cell_without_end_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    path = written(tmp_path, 'image,label\n"' + "x" * 1_100_000 + '",cat\n')
    with pytest.raises(SettingsError, match="field larger than field limit"):
        read_table(path, ALL)


def test_parquet_gives_the_cells_that_csv_would(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        {
            "image": ["a.png", None, "c.png"],
            "label": [0, 1, 1],
            "hr": [72.0, None, 80.5],
            "labels": [["cat", "dog"], [], None],
            "day": [dt.date(2024, 1, 2)] * 3,
        },
        row_group_size=2,
    )
    table = read_table(path, ("image", "label", "hr", "labels", "day"))
    assert table.columns == {
        "image": ["a.png", "", "c.png"],
        "label": ["0", "1", "1"],
        "hr": ["72", "", "80.5"],
        "labels": ["cat;dog", "", ""],
        "day": ["2024-01-02"] * 3,
    }
    assert table.where(2) == f"{path}, row 3"


def test_parquet_column_of_bytes_is_refused_only_where_it_is_wanted(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"image": [b"png"], "label": ["cat"]})
    assert read_table(path, ("label",)).columns == {"label": ["cat"]}
    with pytest.raises(SettingsError, match="column 'image' holds bytes") as caught:
        read_table(path, ("image",))
    assert "name the files" in caught.value.fix


def test_file_that_only_ends_in_parquet_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "image,label\n", "data.parquet")
    with pytest.raises(SettingsError, match=r"data\.parquet"):
        read_table(path, ALL)


def test_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SettingsError, match="reading x needs the package surely_not_there") as caught:
        needs_package("surely_not_there", "reading x")
    assert caught.value.fix == 'pip install "cutlayer[data]"'
