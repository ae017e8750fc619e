"""A user's samples: numbers that mean the same always, whatever can be read, and no more memory than a batch takes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow.parquet import write_table as write_parquet

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ImageSpec
from cutlayer.broker.tasks import RegressionSpec, RetrievalSpec, TargetSpec
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.data_opening import open_user_data
from cutlayer.edge_agent.data_samples import UserDataset
from support.user_data import AUDIO, CLASSES, IMAGE, asked, site, write_image, write_table, write_truncated_image

SPLITS: tuple[Split, ...] = ("train", "test")


def all_of(dataset: UserDataset, split: Split = "train") -> NDArray[np.int64]:
    return np.arange(dataset.num_samples(split))


def greys(dataset: UserDataset, split: Split = "train") -> list[int]:
    """Return the grey of each image of a split, which names its row in `site`."""
    images = dataset.batch(split, all_of(dataset, split)).inputs["image"]
    return [int(image.max()) for image in images]


def grey_table(folder: Path, count: int, *, split: str = "train") -> Path:
    """Make a table of images whose greys are their rows, all of one split."""
    for row in range(count):
        write_image(folder / f"{row}.png", row)
    rows = [[f"{row}.png", CLASSES[row % 2], split] for row in range(count)]
    return write_table(folder / "data.csv", ["image", "label", "split"], rows)


def open_greys(path: Path, **options: Any) -> UserDataset:
    return open_user_data(str(path), asked({"image": IMAGE}, **options))


def test_batch_has_samples_targets_and_who_lacks_what(tmp_path: Path) -> None:
    dataset = open_user_data(str(site(tmp_path, 20, without_sound=range(0, 20, 4))), asked())
    batch = dataset.batch("train", all_of(dataset))
    assert dataset.classes == CLASSES
    assert dataset.modalities == {"audio": AUDIO, "image": IMAGE}
    assert batch.inputs["image"].shape == (16, 8, 8, 3)
    assert batch.inputs["image"].dtype == np.uint8
    assert batch.inputs["audio"].shape == (16, AUDIO.num_samples)
    assert batch.inputs["audio"].dtype == np.float32
    assert set(batch.present) == {"audio"}
    rows = [grey - (0 if label == 0 else 150) for grey, label in zip(greys(dataset), batch.targets, strict=True)]
    assert (batch.present["audio"] == [row % 4 != 0 for row in rows]).all()
    is_loud = np.abs(batch.inputs["audio"]).max(axis=1) > 0.5
    assert (is_loud == (batch.targets == 1)).all()


def test_order_of_a_batch_is_that_of_its_numbers(tmp_path: Path) -> None:
    dataset = open_greys(grey_table(tmp_path, 6))
    assert dataset.batch("train", np.array([4, 0, 4])).inputs["image"][:, 0, 0, 0].tolist() == [4, 0, 4]


@pytest.mark.parametrize("index", [-1, 16])
def test_number_outside_the_split_is_an_index_error(tmp_path: Path, index: int) -> None:
    dataset = open_user_data(str(site(tmp_path)), asked())
    with pytest.raises(IndexError, match="train has 16 samples"):
        dataset.batch("train", np.array([index]))
    assert dataset.batch("train", np.zeros(0, np.int64)).inputs["image"].shape == (0, 8, 8, 3)


def test_shards_share_all_rows_and_none_is_in_two(tmp_path: Path) -> None:
    site(tmp_path, 30)
    for split, total in zip(SPLITS, (24, 6), strict=True):
        shards = [open_user_data(str(tmp_path), asked(shard=f"{index}/3")) for index in range(3)]
        found = [grey for shard in shards for grey in greys(shard, split)]
        assert len(found) == len(set(found)) == total


def test_shards_agree_although_one_cannot_read_some_files(tmp_path: Path) -> None:
    site(tmp_path, 30)
    before = greys(open_user_data(str(tmp_path), asked({"image": IMAGE}, shard="1/2")))
    others = greys(open_user_data(str(tmp_path), asked({"image": IMAGE}, shard="0/2")))
    (tmp_path / "images" / f"{others[0] % 150}.png").unlink()
    assert greys(open_user_data(str(tmp_path), asked({"image": IMAGE}, shard="1/2"))) == before
    left = greys(open_user_data(str(tmp_path), asked({"image": IMAGE}, shard="0/2", max_unreadable=0.2)))
    assert left == others[1:]


def test_alpha_skews_classes_over_shards(tmp_path: Path) -> None:
    site(tmp_path, 80)
    shares = [
        open_user_data(str(tmp_path), asked(shard=f"{index}/2", alpha=0.05))
        .batch("train", np.arange(32))
        .targets.mean()
        for index in range(2)
    ]
    assert abs(shares[0] - shares[1]) > 0.8


def test_alpha_without_classes_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = write_table(tmp_path / "data.csv", ["image", "age"], [["a.png", 3]] * 5)
    task = RegressionSpec(targets=(TargetSpec(name="age", mean=0, std=1),))
    with pytest.raises(SettingsError, match=r"alpha=0\.5 divides by class"):
        open_user_data(str(path), asked({"image": IMAGE}, task=task, alpha="0.5"))
    assert open_user_data(str(path), asked({"image": IMAGE}, task=task)).batch("train", np.arange(1)).targets == [[3]]


def test_rows_without_any_modality_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "a.png", 5)
    rows = [["a.png", "", "cat", "train"], ["", "", "dog", "train"], ["", "", "cat", "test"]]
    path = write_table(tmp_path / "data.csv", ["image", "audio", "label", "split"], rows)
    with caplog.at_level("INFO", "cutlayer"):
        dataset = open_user_data(str(path), asked())
    assert (dataset.num_samples("train"), dataset.num_samples("test")) == (1, 0)
    assert dataset.num_skipped == 2
    assert (
        f"{path}: 1 samples for training, 0 for testing, 1 lack audio, 2 rows without a modality to learn from skipped"
        in (caplog.messages)
    )


AGE = RegressionSpec(targets=(TargetSpec(name="age", mean=0, std=1),))


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_rows_without_any_target_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    ages, splits = [1.0, None, 3.0, None, 5.0], ["train", "train", "train", "test", "test"]
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        targets = np.array([[np.nan if age is None else age] for age in ages])
        np.savez(path, image=np.zeros((5, 8, 8, 3), np.uint8), targets=targets, split=splits)
    elif kind == "parquet":
        write_image(tmp_path / "a.png")
        write_parquet(pa.table({"image": ["a.png"] * 5, "age": ages, "split": splits}), path)
    else:
        write_image(tmp_path / "a.png")
        rows = [["a.png", "" if age is None else age, split] for age, split in zip(ages, splits, strict=True)]
        write_table(path, ["image", "age", "split"], rows)
    with caplog.at_level("INFO", "cutlayer"):
        dataset = open_user_data(str(path), asked({"image": IMAGE}, task=AGE))
    assert dataset.batch("train", all_of(dataset)).targets.tolist() == [[1], [3]]
    assert dataset.batch("test", all_of(dataset, "test")).targets.tolist() == [[5]]
    assert f"{path}: 2 samples for training, 1 for testing, 2 rows without a target skipped" in caplog.messages


def test_visit_keeps_rows_without_a_target(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = write_table(tmp_path / "data.csv", ["image", "age"], [["a.png", 3], ["a.png", ""]])
    dataset = open_user_data(str(path), replace(asked({"image": IMAGE}, task=AGE), rows="all"))
    np.testing.assert_array_equal(dataset.batch("test", np.arange(2)).targets, [[3], [np.nan]])


def test_table_without_any_target_says_so(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = write_table(tmp_path / "data.csv", ["image", "age"], [["a.png", ""]] * 10)
    with pytest.raises(SettingsError, match="no row for training is left") as caught:
        open_user_data(str(path), asked({"image": IMAGE}, task=AGE))
    assert "with a target" in caught.value.fix


def test_table_without_a_row_for_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no row is for training"):
        open_greys(grey_table(tmp_path, 3, split="test"))
    write_table(tmp_path / "data.csv", ["image", "label", "split"], [["", "cat", "train"]])
    with pytest.raises(SettingsError, match="no row for training is left in shard 0/1 of 1 rows"):
        open_greys(tmp_path / "data.csv")


def test_rows_for_validation_stand_in_for_those_for_testing_only_where_there_are_none(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = [["a.png", "cat", "train"], ["a.png", "dog", "val"]]
    path = write_table(tmp_path / "data.csv", ["image", "label", "split"], rows)
    assert open_greys(path).batch("test", np.arange(1)).targets.tolist() == [1]
    write_table(path, ["image", "label", "split"], [*rows, ["a.png", "cat", "test"]])
    dataset = open_greys(path)
    assert dataset.num_samples("test") == 1
    assert dataset.batch("test", np.arange(1)).targets.tolist() == [0]


def test_unreadable_file_is_an_empty_cell(tmp_path: Path) -> None:
    site(tmp_path, 20)
    (tmp_path / "sounds" / "3.wav").write_bytes(b"no sound")
    (tmp_path / "images" / "5.png").unlink()
    dataset = open_user_data(str(tmp_path), asked(max_unreadable=0.1))
    assert sum(dataset.num_samples(split) for split in SPLITS) == 20
    lacking = dict.fromkeys(dataset.modalities, 0)
    for split in SPLITS:
        for modality, present_B in dataset.batch(split, all_of(dataset, split)).present.items():
            lacking[modality] += int((~present_B).sum())
    assert lacking == {"audio": 1, "image": 1}


def test_more_unreadable_files_than_are_borne_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    site(tmp_path, 20)
    for row in range(8):
        (tmp_path / "images" / f"{row}.png").write_bytes(b"")
    with pytest.raises(SettingsError, match="8 of 40 files cannot be read") as caught:
        open_user_data(str(tmp_path), asked())
    assert str(tmp_path / "images" / "0.png") in caught.value.problem
    assert "and 3 more" in caught.value.problem


def test_full_check_finds_what_a_header_does_not_show(tmp_path: Path) -> None:
    path = grey_table(tmp_path, 10)
    write_truncated_image(tmp_path / "4.png")
    assert open_greys(path, max_unreadable=0.1).num_samples("train") == 10
    assert open_greys(path, max_unreadable=0.1, check="full").num_samples("train") == 9


def test_number_of_a_file_that_fails_late_stands_for_the_next_sample_in_every_process(tmp_path: Path) -> None:
    path = grey_table(tmp_path, 10)
    for row in (4, 5, 9):
        write_truncated_image(tmp_path / f"{row}.png")
    expected = [0, 1, 2, 3, 6, 6, 6, 7, 8, 0]
    dataset = open_greys(path, max_unreadable=0.3)
    batch = dataset.batch("train", np.arange(10))
    assert batch.inputs["image"][:, 0, 0, 0].tolist() == expected
    assert batch.targets.tolist() == [grey % 2 for grey in expected]
    # Another process, which meets them in another order.
    again = open_greys(path, max_unreadable=0.3)
    found = {int(index): again.batch("train", np.array([index])) for index in np.arange(10)[::-1]}
    assert [int(found[index].inputs["image"][0, 0, 0, 0]) for index in range(10)] == expected
    assert [dataset.num_samples("train"), again.num_samples("train")] == [10, 10]


def test_file_that_fails_late_leaves_the_samples_other_modality(tmp_path: Path) -> None:
    site(tmp_path, 20)
    write_truncated_image(tmp_path / "images" / "3.png")
    dataset = open_user_data(str(tmp_path), asked(max_unreadable=0.1))
    present = [dataset.batch(split, all_of(dataset, split)).present.get("image", np.ones(1, bool)) for split in SPLITS]
    assert sum(int((~present_B).sum()) for present_B in present) == 1


def test_late_failures_count_against_the_share(tmp_path: Path) -> None:
    path = grey_table(tmp_path, 10)
    for row in (4, 7):
        write_truncated_image(tmp_path / f"{row}.png")
    dataset = open_greys(path, max_unreadable=0.1)
    dataset.batch("train", np.array([4]))
    with pytest.raises(SettingsError, match=r"2 of 10 files cannot be read") as caught:
        dataset.batch("train", np.array([7]))
    assert "7.png" in caught.value.problem


def test_file_that_was_read_before_may_not_fail(tmp_path: Path) -> None:
    path = grey_table(tmp_path, 10)
    dataset = open_greys(path, max_unreadable=0.5)
    dataset.batch("train", np.array([4]))
    (tmp_path / "4.png").unlink()
    with pytest.raises(
        SettingsError, match=r"4\.png was read before and cannot be read any more: No such file"
    ) as caught:
        dataset.batch("train", np.array([4]))
    assert "start the agent again" in caught.value.fix


def test_images_of_8_and_of_16_bits_make_one_batch(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 65_535, np.uint16)).save(tmp_path / "deep.png")
    write_image(tmp_path / "flat.png", 255)
    path = write_table(
        tmp_path / "data.csv",
        ["image", "audio", "label", "split"],
        [["deep.png", "", "cat", "train"], ["flat.png", "", "dog", "train"]],
    )
    images = open_user_data(str(path), asked()).batch("train", np.arange(2)).inputs["image"]
    assert images.dtype == np.float32
    assert (images == 1.0).all()


def test_two_thousand_images_take_the_memory_of_a_few(tmp_path: Path) -> None:
    spec = ImageSpec(height=96, width=96, channels=3, patch=16)
    noise = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), dtype=np.uint8)
    for kind, pixels_HWC in enumerate(noise):
        Image.fromarray(pixels_HWC).save(tmp_path / f"original-{kind}.png")
    rows = []
    for row in range(2_000):
        (tmp_path / f"{row}.png").hardlink_to(tmp_path / f"original-{row % 4}.png")
        rows.append([f"{row}.png", CLASSES[row % 2]])
    path = write_table(tmp_path / "data.csv", ["image", "label"], rows)
    tracemalloc.start()
    try:
        dataset = open_user_data(str(path), asked({"image": spec}))
        for start in range(0, dataset.num_samples("train"), 16):
            dataset.batch("train", all_of(dataset)[start : start + 16])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert dataset.num_samples("train") == 1_600
    all_bytes = 2_000 * 96 * 96 * 3
    assert peak_bytes < all_bytes / 10


def test_pairs_need_both_of_their_modalities(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = RetrievalSpec(between=("image", "audio"))
    site(tmp_path, 20, without_sound=[3, 4])
    with caplog.at_level("INFO", "cutlayer"):
        dataset = open_user_data(str(tmp_path), asked(task=task))
    assert caplog.messages[-1].endswith(", 2 rows without one half of the pair skipped")
    assert dataset.classes == ()
    assert dataset.num_skipped == 2
    assert dataset.num_samples("train") + dataset.num_samples("test") == 18
    batch = dataset.batch("train", all_of(dataset))
    assert not batch.present
    assert not batch.targets.any()
    write_table(tmp_path / "data.csv", ["image"], [["images/0.png"]])
    with pytest.raises(SettingsError, match="has no audio, and the run matches image and audio"):
        open_user_data(str(tmp_path), asked(task=task))
