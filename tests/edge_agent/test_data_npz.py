"""Arrays in `.npz` files: mapped where they can be, and checked against the run."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec, TextSpec
from cutlayer.broker.tasks import (
    ClassificationSpec,
    MultiLabelSpec,
    RegressionSpec,
    RetrievalSpec,
    TargetSpec,
    TaskSpec,
)
from cutlayer.edge_agent.data_npz import ArrayFile, array_column, targets_of_arrays, texts_of_array

NAN = float("nan")
ONE = ClassificationSpec(classes=("cat", "dog"))
SEVERAL = MultiLabelSpec(classes=("cough", "fever"))
NUMBERS = RegressionSpec(targets=(TargetSpec(name="age", mean=0, std=1), TargetSpec(name="dose", mean=0, std=1)))
IMAGE = ImageSpec(height=4, width=4, channels=1, patch=2)
SERIES = SeriesSpec(rate_hz=1, num_steps=4, channels=2, patch=2)
VITALS = TableSpec(columns=("hr", "temp"))

Save = Callable[..., None]


def same(name: str) -> str:
    return name


def saved(folder: Path, save: Save = np.savez, **arrays: NDArray[Any] | list[Any]) -> ArrayFile:
    save(folder / "data.npz", **arrays)
    return ArrayFile(folder / "data.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array(["a", "bcd", ""]),
        np.zeros((0, 3), np.float32),
        np.array(7),
    ],
    ids=["C order", "Fortran order", "texts", "empty", "scalar"],
)
def test_arrays_come_back_as_they_were_saved(tmp_path: Path, save: Save, array: NDArray[Any]) -> None:
    file = saved(tmp_path, save, first=np.zeros(3), second=array)
    assert file.names == ("first", "second")
    found = file.array("second")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_uncompressed_array_takes_no_memory_until_it_is_read(tmp_path: Path) -> None:
    file = saved(tmp_path, image=np.zeros((1_000, 4, 4, 1), np.float64), big=np.zeros((4_000_000,), np.float64))
    tracemalloc.start()
    try:
        assert file.array("big")[-1] == 0
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000  # of 32 MB


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_python_objects_are_refused(tmp_path: Path, save: Save) -> None:
    file = saved(tmp_path, save, text=np.array(["a", None], dtype=object))
    with pytest.raises(SettingsError, match=r"array 'text': .*[Oo]bject"):
        file.array("text")


def test_file_that_is_no_archive_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(SettingsError, match=r"data\.npz: File is not a zip file"):
        ArrayFile(tmp_path / "data.npz")
    with pytest.raises(SettingsError, match="No such file"):
        ArrayFile(tmp_path / "none.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_anywhere_is_an_error_of_ours_or_another_value(tmp_path: Path, save: Save) -> None:
    rng = np.random.default_rng(0)
    saved(tmp_path, save, image=rng.normal(size=(20, 4)), label=np.arange(20))
    whole, outcomes = (tmp_path / "data.npz").read_bytes(), set()
    for _ in range(150):
        octets = bytearray(whole)
        for place in rng.integers(0, len(octets), 4):
            octets[place] = rng.integers(256)
        (tmp_path / "data.npz").write_bytes(bytes(octets))
        try:
            file = ArrayFile(tmp_path / "data.npz")
            for name in file.names:
                file.array(name).sum()
            outcomes.add("read")
        except SettingsError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("spec", "array", "has"),
    [
        (IMAGE, np.zeros((2, 4, 4, 1), np.uint8), [True, True]),
        (AudioSpec(sample_rate_hz=8_000, num_frames=4, hop_samples=64, fft_samples=128, num_mels=4, patch=2),
         np.zeros((2, 50), np.float32), [True, True]),
        (SERIES, np.array([[[NAN, NAN]] * 3, [[NAN, 1.0]] * 3]), [False, True]),
        (VITALS, np.array([[NAN, 36.6], [NAN, NAN]]), [True, False]),
        (TextSpec(num_tokens=4), np.array(["", "good"]), [False, True]),
    ],
    ids=["image", "audio", "series", "table", "text"],
)  # fmt: skip
def test_rows_without_a_value_lack_the_modality(
    tmp_path: Path, spec: ModalitySpec, array: NDArray[Any], has: list[bool]
) -> None:
    column = array_column(saved(tmp_path, x=array), "x", spec, 2)
    assert column.has.tolist() == has
    np.testing.assert_array_equal(column.read(1), array[1])


def test_flags_say_which_rows_have_a_modality(tmp_path: Path) -> None:
    file = saved(tmp_path, x=np.zeros((3, 4, 4, 1), np.uint8), x_present=np.array([1, 0, 1]))
    assert array_column(file, "x", IMAGE, 3).has.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("spec", "array"),
    [
        (IMAGE, np.zeros((2, 1, 4, 4), np.uint8)),
        (IMAGE, np.zeros((2, 4, 4, 1), np.int64)),
        (IMAGE, np.zeros((3, 4, 4, 1), np.uint8)),
        (IMAGE, np.array(3)),
        (SERIES, np.zeros((2, 3))),
        (VITALS, np.zeros((2, 3))),
        (TextSpec(num_tokens=4), np.array([b"a", b"b"])),
    ],
)
def test_array_that_does_not_fit_the_run_is_named_with_what_fits(
    tmp_path: Path, spec: ModalitySpec, array: NDArray[Any]
) -> None:
    with pytest.raises(SettingsError, match=r"data\.npz, array 'x'") as caught:
        array_column(saved(tmp_path, x=array), "x", spec, 2)
    assert caught.value.fix.startswith("give ")


@pytest.mark.parametrize(
    ("task", "arrays", "targets"),
    [
        (ONE, {"label": ["dog", "cat"]}, [1, 0]),
        (ClassificationSpec(classes=("0", "1")), {"label": np.array([1, 0], np.uint8)}, [1, 0]),
        (SEVERAL, {"labels": [[1, -1], [0, 1]]}, [[1, -1], [0, 1]]),
        (SEVERAL, {"labels": ["fever;cough", ""]}, [[1, 1], [0, 0]]),
        (NUMBERS, {"targets": [[1.5, NAN], [2, 3]]}, [[1.5, NAN], [2, 3]]),
        (RetrievalSpec(between=("image", "note")), {"image": np.zeros((2, 4))}, [0, 0]),
    ],
)
def test_targets_are_read_in_the_form_of_the_task(
    tmp_path: Path, task: TaskSpec, arrays: dict[str, Any], targets: list[Any]
) -> None:
    np.testing.assert_array_equal(targets_of_arrays(saved(tmp_path, **arrays), task, same), targets)


@pytest.mark.parametrize(
    ("task", "arrays", "message"),
    [
        (ONE, {"y": ["cat"]}, "no array 'label'"),
        (ONE, {"label": [0, 1]}, "'0', '1' are none of the run's classes"),
        (ONE, {"label": [0.0, 1.0]}, r"array 'label' is \(2,\) float64"),
        (ONE, {"label": [["cat"]]}, r"array 'label' is \(1, 1\)"),
        (SEVERAL, {"labels": [[1, 0, 0]]}, r"array 'labels' is \(1, 3\)"),
        (SEVERAL, {"labels": [[1, 0], [1, 2]]}, "array 'labels', row 2, column 2: 2"),
        (NUMBERS, {"targets": [[1, float("inf")]]}, "array 'targets', row 1, column 2: inf"),
        (NUMBERS, {"targets": [1, 2]}, r"array 'targets' is \(2,\)"),
        (NUMBERS, {"targets": 3.0}, r"array 'targets' is \(\)"),
    ],
)
def test_targets_that_do_not_fit_are_named(
    tmp_path: Path, task: TaskSpec, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        targets_of_arrays(saved(tmp_path, **arrays), task, same)
    assert caught.value.fix


def test_texts_of_another_length_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="array 'split' has 1 rows for 2 targets"):
        texts_of_array(saved(tmp_path, split=["train"]), "split", 2)
