"""Time series in `.npy` and `.csv` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.manifest import SeriesSpec
from cutlayer.edge_agent.data_series import SeriesReader
from cutlayer.edge_agent.data_unreadable import Unreadable

TWO = SeriesSpec(rate_hz=50, num_steps=6, channels=2, patch=3)
ONE = SeriesSpec(rate_hz=50, num_steps=6, channels=1, patch=3)
NAN = float("nan")


def read(spec: SeriesSpec, path: Path) -> NDArray[np.float32]:
    reader = SeriesReader(spec)
    reader.check(path)
    series_TC: NDArray[np.float32] = reader.read(path)
    assert series_TC.dtype == np.float32
    assert series_TC.shape == (spec.num_steps, spec.channels)
    return series_TC


def test_array_is_cut_or_ends_in_nan(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(20).reshape(10, 2))
    np.testing.assert_array_equal(read(TWO, tmp_path / "a.npy"), np.arange(12).reshape(6, 2))
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    np.testing.assert_array_equal(read(TWO, tmp_path / "a.npy"), [[1, 1]] * 4 + [[NAN, NAN]] * 2)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_one_channel_needs_no_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(shape))
    np.testing.assert_array_equal(read(ONE, tmp_path / "a.npy")[:, 0], np.arange(6))


@pytest.mark.parametrize("header", ["", "x,y\n"])
def test_csv_has_a_step_a_line_with_or_without_names(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(header + "1,2\n3,\n\nnan,6\n" + "7,8\n" * 5)
    expected = [[1, 2], [3, NAN], [NAN, 6], [7, 8], [7, 8], [7, 8]]
    np.testing.assert_array_equal(read(TWO, tmp_path / "a.csv"), expected)


def test_lines_behind_those_that_a_run_looks_at_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n" * 6 + "1,2\n" + "broken\n")
    assert not np.isnan(read(TWO, tmp_path / "a.csv")).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no steps"),
        ("x,y\n", "no steps"),
        ("1,2\n1,2,3\n", "line 2 has 3 values; expected 2"),
        ("x,y\n1,2\n1\n", "line 3 has 1 values; expected 2"),
        ("1,2\n1,two\n", "line 2: could not convert string to float: 'two'"),
        ("1,inf\n", "infinite"),
        (",\n,\n", "no value"),
    ],
)
def test_csv_that_does_not_fit_is_unreadable(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(Unreadable, match=message):
        SeriesReader(TWO).read(tmp_path / "a.csv")


def test_array_that_does_not_fit_is_unreadable(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    with pytest.raises(Unreadable, match=r"an array \(4, 3\); expected \(any, 2\)"):
        SeriesReader(TWO).check(tmp_path / "a.npy")
    with pytest.raises(Unreadable, match=r"an array \(4, 3\); expected \(any,\)"):
        SeriesReader(ONE).check(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.full((4, 2), NAN))
    with pytest.raises(Unreadable, match="no value"):
        SeriesReader(TWO).read(tmp_path / "a.npy")


def test_array_that_is_cut_off_or_pickled_is_unreadable_at_the_first_look(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1_000, 2)))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(Unreadable):
        SeriesReader(TWO).check(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Unreadable, match=r"[Oo]bject"):
        SeriesReader(TWO).check(tmp_path / "b.npy")
    with pytest.raises(Unreadable, match="No such file"):
        SeriesReader(TWO).check(tmp_path / "c.npy")
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe1,2\n")
    with pytest.raises(Unreadable):
        SeriesReader(TWO).check(tmp_path / "d.csv")
