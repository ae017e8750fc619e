"""`--data` and its options: which kind of data is meant, which column is which, and what is said of a misfit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ModalitySpec, SeriesSpec, TableSpec, TextSpec
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RetrievalSpec
from cutlayer.edge_agent.data_opening import check_user_data, open_user_data
from cutlayer.edge_agent.data_options import user_data_options
from cutlayer.edge_agent.datasets import check_data, open_dataset
from support.small_side import small_manifest
from support.user_data import AUDIO, CLASSES, IMAGE, asked, site, write_image, write_sound, write_table

EVERYTHING: Mapping[str, ModalitySpec] = {
    "image": IMAGE,
    "audio": AUDIO,
    "note": TextSpec(num_tokens=8),
    "ecg": SeriesSpec(rate_hz=100, num_steps=8, channels=2, patch=4),
    "vitals": TableSpec(columns=("hr", "temp")),
}


KINDS = {"data.csv": "column", "data.npz": "array"}


def test_folder_with_a_table_and_the_table_itself_are_the_same_data(tmp_path: Path) -> None:
    site(tmp_path)
    folder, table = (open_user_data(str(path), asked()) for path in (tmp_path, tmp_path / "data.csv"))
    assert folder.num_samples("train") == table.num_samples("train") == 16
    everything = np.arange(16)
    np.testing.assert_array_equal(
        folder.batch("train", everything).inputs["image"], table.batch("train", everything).inputs["image"]
    )


def test_all_kinds_of_modalities_come_from_one_table(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 9)
    write_sound(tmp_path / "a.wav", np.full((900, 1), 0.5))
    np.save(tmp_path / "a.npy", np.ones((5, 2)))
    header = ["image", "audio", "ecg", "note", "hr", "temp", "label", "split"]
    rows: list[list[Any]] = [
        ["a.png", "a.wav", "a.npy", "coughs", 72, 36.6, "cat", "train"],
        ["", "", "", "", "", "", "dog", "train"],
        ["", "", "", "sleeps, too", "", 37, "dog", "train"],
    ]
    dataset = open_user_data(str(write_table(tmp_path / "data.csv", header, rows)), asked(EVERYTHING))
    batch = dataset.batch("train", np.arange(2))
    assert batch.targets.tolist() == [0, 1]
    assert {name: present_B.tolist() for name, present_B in batch.present.items()} == {
        "image": [True, False],
        "audio": [True, False],
        "ecg": [True, False],
    }
    assert batch.inputs["note"].tolist() == ["coughs", "sleeps, too"]
    np.testing.assert_array_equal(batch.inputs["vitals"], [[72, 36.6], [np.nan, 37]])
    assert batch.inputs["ecg"].shape == (2, 8, 2)
    assert np.isnan(batch.inputs["ecg"][0]).sum() == 6


def test_options_say_which_column_is_which(tmp_path: Path) -> None:
    write_image(tmp_path / "scans" / "a.png", 9)
    header = ["scan_path", "pulse", "t", "diagnosis", "fold"]
    path = write_table(tmp_path / "data.csv", header, [["a.png", 72, 36.6, "dog", "train"]])
    request = asked(
        {"image": IMAGE, "vitals": EVERYTHING["vitals"]},
        image="scan_path",
        hr="pulse",
        temp="t",
        label="diagnosis",
        split="fold",
        root=str(tmp_path / "scans"),
    )
    batch = open_user_data(str(path), request).batch("train", np.arange(1))
    assert batch.inputs["image"].max() == 9
    assert batch.inputs["vitals"].tolist() == [[72, 36.6]]
    assert batch.targets.tolist() == [1]


def test_column_id_decides_the_split_and_files_may_then_move(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")

    def for_testing(image: str, **options: Any) -> list[float]:
        rows = [[image, f"patient {row}", row, "cat"] for row in range(40)]
        path = write_table(tmp_path / "data.csv", ["image", "id", "hr", "label"], rows)
        request = asked({"image": IMAGE, "vitals": TableSpec(columns=("hr",))}, **options)
        found = open_user_data(str(path), request).batch("test", np.arange(8)).inputs["vitals"][:, 0].tolist()
        assert len(set(found)) == 8
        return sorted(map(float, found))

    assert for_testing("a.png") == for_testing("b.png")
    assert for_testing("a.png", split_seed="1") != for_testing("a.png")


def test_rows_of_one_id_stay_together_and_rows_that_look_alike_do_not(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = [["a.png", row % 2, f"patient {row // 10}", "cat"] for row in range(100)]
    path = write_table(tmp_path / "data.csv", ["image", "sex", "id", "label"], rows)
    request = asked({"image": IMAGE, "person": TableSpec(columns=("sex",))})
    assert open_user_data(str(path), request).num_samples("test") == 20
    path.write_text(path.read_text().replace(",id,", ",patient,", 1))
    batch = open_user_data(str(path), request).batch("test", np.arange(20))
    assert set(batch.inputs["person"][:, 0].tolist()) == {0, 1}


def test_label_that_is_mended_moves_no_row_of_another_class(tmp_path: Path) -> None:
    site(tmp_path, 40)
    before = open_user_data(str(tmp_path), asked()).batch("test", np.arange(8)).inputs["image"][:, 0, 0, 0]
    table = tmp_path / "data.csv"
    table.write_text(table.read_text().replace("images/0.png,sounds/0.wav,cat", "images/0.png,sounds/0.wav,dog"))
    after = open_user_data(str(tmp_path), asked()).batch("test", np.arange(8)).inputs["image"][:, 0, 0, 0]
    assert len(set(before.tolist()) ^ set(after.tolist())) <= 2


def test_test_share_may_be_chosen(tmp_path: Path) -> None:
    site(tmp_path)
    assert open_user_data(str(tmp_path), asked(test_share="0.5")).num_samples("test") == 10
    assert open_user_data(str(tmp_path), asked(test_share="0")).num_samples("test") == 0


def test_fit_reaches_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 255, width=32, height=16)
    path = write_table(tmp_path / "data.csv", ["image", "label"], [["a.png", "cat"]])
    request = asked({"image": IMAGE}, fit="pad")
    assert open_user_data(str(path), request).batch("train", np.arange(1)).inputs["image"][0, 0].max() == 0


def test_tree_of_classes_is_read(tmp_path: Path) -> None:
    for row in range(10):
        write_image(tmp_path / CLASSES[row % 2] / f"{row}.png", row + 100 * (row % 2))
    dataset = open_user_data(str(tmp_path), asked({"image": IMAGE}))
    assert (dataset.num_samples("train"), dataset.num_samples("test")) == (8, 2)
    batch = dataset.batch("train", np.arange(8))
    assert ((batch.inputs["image"][:, 0, 0, 0] >= 100) == batch.targets).all()


def test_tree_holds_one_of_several_modalities_where_that_is_said(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "cat" / "a.png", 3)
    write_image(tmp_path / "test" / "dog" / "b.png", 4)
    with pytest.raises(SettingsError, match="modalities in files are audio, image") as caught:
        open_user_data(str(tmp_path), asked())
    assert "modality=NAME" in caught.value.fix
    dataset = open_user_data(str(tmp_path), asked(modality="image"))
    assert dataset.modalities == {"image": IMAGE}
    assert dataset.batch("test", np.arange(1)).targets.tolist() == [1]
    with pytest.raises(SettingsError, match="modalities in files are audio, image"):
        open_user_data(str(tmp_path), asked(modality="smell"))


def test_tree_has_one_label_a_sample(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a.png")
    with pytest.raises(SettingsError, match="the run's task is multi-label"):
        open_user_data(str(tmp_path), asked({"image": IMAGE}, task=MultiLabelSpec(classes=CLASSES)))


def test_arrays_are_read_and_sharded(tmp_path: Path) -> None:
    images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", image=images, label=["cat", "dog"] * 10, image_present=[False] + [True] * 19)
    found: list[int] = []
    for index in range(2):
        dataset = open_user_data(str(tmp_path / "data.npz"), asked(shard=f"{index}/2"))
        for split in ("train", "test"):
            batch = dataset.batch(split, np.arange(dataset.num_samples(split)))
            greys = batch.inputs["image"][:, 0, 0, 0].tolist()
            assert [grey % 2 for grey in greys] == batch.targets.tolist()
            found += greys
    assert sorted(found) == list(range(1, 20))


def test_arrays_may_say_the_split_and_be_called_otherwise(tmp_path: Path) -> None:
    images, folds = np.zeros((3, 8, 8, 3), np.uint8), ["train", "test", "test"]
    np.savez(tmp_path / "data.npz", x=images, y=["cat", "dog", "dog"], fold=folds)
    dataset = open_user_data(str(tmp_path / "data.npz"), asked(image="x", label="y", split="fold"))
    assert (dataset.num_samples("train"), dataset.num_samples("test")) == (1, 2)


@pytest.mark.parametrize("name", ["data.csv", "data.npz"])
def test_data_without_any_modality_of_the_run_are_refused_with_what_they_have(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / "data.csv", ["scan", "label"], [["a.png", "cat"]])
    np.savez(tmp_path / "data.npz", scan=np.zeros(3), label=["cat"] * 3)
    with pytest.raises(
        SettingsError, match=rf"none of the run's {KINDS[name]}s audio, image; it has scan, label"
    ) as caught:
        open_user_data(str(tmp_path / name), asked())
    assert f"--data-option audio={KINDS[name].upper()}" in caught.value.fix


@pytest.mark.parametrize("rows", [None, "all"])
def test_table_of_which_the_run_has_no_column_at_all_is_not_called_empty(
    tmp_path: Path, rows: Literal["all"] | None
) -> None:
    path = write_table(tmp_path / "data.csv", ["label", "word"], [["cat", "a"], ["dog", "b"]])
    modalities: Mapping[str, ModalitySpec] = {"photo": IMAGE, "text": TextSpec(num_tokens=8)}
    request = replace(asked(modalities, task=RetrievalSpec(between=("photo", "text"))), rows=rows)
    with pytest.raises(SettingsError, match="none of the run's columns photo, text; it has label, word") as caught:
        open_user_data(str(path), request)
    assert "--data-option photo=COLUMN" in caught.value.fix


def test_columns_of_a_table_modality_are_named_and_not_the_modality(tmp_path: Path) -> None:
    path = write_table(tmp_path / "data.csv", ["pulse"], [[70]])
    with pytest.raises(SettingsError, match="none of the run's columns hr, temp; it has pulse") as caught:
        open_user_data(str(path), asked({"vitals": EVERYTHING["vitals"]}))
    assert "--data-option hr=COLUMN" in caught.value.fix


@pytest.mark.parametrize("name", ["data.csv", "data.npz"])
def test_column_that_an_option_names_has_to_be_there_and_the_run_has_to_know_the_name(
    tmp_path: Path, name: str
) -> None:
    write_table(tmp_path / "data.csv", ["scan", "label"], [["a.png", "cat"]])
    np.savez(tmp_path / "data.npz", scan=np.zeros((1, 8, 8, 3), np.uint8), label=["cat"])
    path = str(tmp_path / name)
    with pytest.raises(SettingsError, match=r"--data-option image=scans: .* has no 'scans', it has scan, label"):
        check_user_data(path, user_data_options({"image": "scans"}))
    check_user_data(path, user_data_options({"img": "scan"}))
    with pytest.raises(SettingsError, match="--data-option img=scan: the run has nothing that is called 'img'"):
        open_user_data(path, asked(img="scan"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "squash"}, "fit=squash"),
        ({"test_share": "1"}, "test_share=1"),
        ({"max_unreadable": "-0.1"}, "max_unreadable=-0.1"),
        ({"check": "none"}, "check=none"),
        ({"split_seed": "x"}, "split_seed=x"),
        ({"image": ""}, "image=: that is no name of a column"),
        ({"image": 3}, "image=3: that is no name of a column"),
    ],
)
def test_option_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        user_data_options(options)
    assert caught.value.fix


def test_choices_of_an_option_are_the_fix() -> None:
    with pytest.raises(SettingsError, match="fit=croop: no such choice") as caught:
        user_data_options({"fit": "croop"})
    assert caught.value.fix == "choose 'crop', 'stretch' or 'pad'"


def test_what_data_is_not_there_or_of_no_known_kind_shows_before_a_run_is_known(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    (tmp_path / "data.csv").touch()
    for name, message in {
        str(tmp_path / "none"): "there is no such file or folder",
        str(tmp_path / "data.xlsx"): "a file of an unknown kind",
        str(tmp_path / "data.csv"): "is empty",
        "no_such_module:make": "No module named",
        "demo:cats": "no data set 'demo:cats'",
    }.items():
        with pytest.raises(SettingsError, match=message) as caught:
            check_data(name)
        assert caught.value.fix


def test_folder_with_two_tables_asks_which(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    (tmp_path / "data.parquet").touch()
    with pytest.raises(SettingsError, match=r"both data\.csv and data\.parquet") as caught:
        check_data(str(tmp_path))
    assert caught.value.fix == f"name one: --data {tmp_path / 'data.csv'}"


def test_tree_takes_no_names_of_columns(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a.png")
    check_data(str(tmp_path), options={"fit": "pad"})
    with pytest.raises(SettingsError, match="image=x"):
        check_data(str(tmp_path), options={"image": "x"})


def test_data_of_a_user_open_for_a_run_only(tmp_path: Path) -> None:
    site(tmp_path)
    with pytest.raises(SettingsError, match="opened for a run"):
        open_dataset(str(tmp_path))
    classes = ClassificationSpec(classes=CLASSES)
    manifest = small_manifest().model_copy(update={"modalities": {"image": IMAGE}, "task": classes})
    dataset = open_dataset(str(tmp_path), manifest=manifest, seed=manifest.seed)
    assert dataset.name == str(tmp_path)
    assert dataset.num_samples("train") == 16
