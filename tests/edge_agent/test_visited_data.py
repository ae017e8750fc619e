"""The data of a visit: which rows, in which order, called what; and data without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.tasks import MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.data_request import Rows
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.row_names import RowNames
from cutlayer.edge_agent.visited_data import VisitedDataset, open_visited
from support.small_run import small_dataset
from support.small_side import small_manifest, tokenizer_file
from support.user_data import AUDIO, CLASSES, IMAGE, site, write_image, write_table, write_truncated_image


def manifest(task: TaskSpec | None = None, **modalities: Any) -> Manifest:
    found = small_manifest().model_copy(update={"modalities": modalities or {"image": IMAGE, "audio": AUDIO}})
    task = task or found.task.model_copy(update={"classes": CLASSES})
    return found.model_copy(update={"task": task})


def opened(
    path: Path, rows: Rows = "all", *, wants_targets: bool = False, run: Manifest | None = None, **options: Any
) -> tuple[Dataset, RowNames]:
    return open_visited(str(path), run or manifest(), rows, shard=Shard(), options=options, wants_targets=wants_targets)


def greys(dataset: Dataset) -> list[int]:
    images = dataset.batch("test", np.arange(dataset.num_samples("test"))).inputs["image"]
    return [int(image[0, 0, 0]) for image in images]


def test_all_rows_of_a_table_come_in_its_order_and_none_is_for_training(tmp_path: Path) -> None:
    dataset, names = opened(site(tmp_path, 10))
    assert (dataset.num_samples("train"), dataset.num_samples("test")) == (0, 10)
    assert greys(dataset) == [row + (150 if row % 2 else 0) for row in range(10)]
    assert names.of(3) == [4, "images/3.png", "sounds/3.wav"]
    assert list(names.texts) == ["image file", "audio file"]


def test_a_table_needs_no_labels_for_predictions_and_does_for_an_evaluation(tmp_path: Path) -> None:
    site(tmp_path, 4)
    rows = [[f"images/{row}.png", f"case-{row}"] for row in (2, 0)]
    path = write_table(tmp_path / "new.csv", ["image", "id"], rows)
    dataset, names = opened(path)
    assert [names.of(sample) for sample in range(2)] == [[1, "case-2"], [2, "case-0"]]
    assert greys(dataset) == [2, 0]
    with pytest.raises(SettingsError, match="no column 'label'"):
        opened(path, wants_targets=True)
    with pytest.raises(SettingsError, match="no column 'label'"):
        opened(path, "test")  # which rows these are is decided by class


@pytest.mark.parametrize(
    "task",
    [MultiLabelSpec(classes=("fever", "cough")), RegressionSpec(targets=(TargetSpec(name="age", mean=50, std=20),))],
    ids=["multi-label", "regression"],
)
def test_data_of_every_task_may_lack_what_is_learned(tmp_path: Path, task: TaskSpec) -> None:
    site(tmp_path, 4)
    table = write_table(tmp_path / "new.csv", ["image"], [[f"images/{row}.png"] for row in range(4)])
    np.savez(tmp_path / "new.npz", image=np.zeros((3, 8, 8, 3), np.uint8))
    for path, count in ((table, 4), (tmp_path / "new.npz", 3)):
        dataset, _ = opened(path, run=manifest(task))
        targets = dataset.batch("test", np.arange(count)).targets
        assert targets.shape == (count, task.num_outputs)


def test_the_test_rows_of_a_visit_are_those_of_the_training(tmp_path: Path) -> None:
    from cutlayer.edge_agent.datasets import open_dataset

    trained = open_dataset(str(site(tmp_path, 30)), manifest=manifest())
    dataset, names = opened(tmp_path, "test", wants_targets=True)
    assert dataset.num_samples("test") == trained.num_samples("test") == 6
    assert sorted(greys(dataset)) == sorted(greys(trained))
    assert list(names.rows) == sorted(names.rows)


def test_rows_are_chosen_by_the_column_split_also_those_for_validation(tmp_path: Path) -> None:
    site(tmp_path, 4)
    rows = [[f"images/{row}.png", split] for row, split in enumerate(("train", "val", "test", "val"))]
    path = write_table(tmp_path / "new.csv", ["image", "split"], rows)
    found: dict[Rows, list[int]] = {"train": [1], "val": [2, 4], "test": [3], "all": [1, 2, 3, 4]}
    for wanted, numbers in found.items():
        assert list(opened(path, wanted)[1].rows) == numbers
    path = write_table(tmp_path / "new.csv", ["image", "split"], [["images/0.png", "train"]])
    with pytest.raises(SettingsError, match=r"(?s)no row is for 'val'.*--split all"):
        opened(path, "val")


def test_a_folder_of_files_in_any_folders_is_predicted_by_path(tmp_path: Path) -> None:
    for place, name in enumerate(("b.png", "a.png", "deep/er/c.png")):
        write_image(tmp_path / name, 10 * place)
    (tmp_path / "notes.txt").write_text("no image")
    dataset, names = opened(tmp_path, run=manifest(image=IMAGE))
    assert [names.of(sample) for sample in range(3)] == [[1, "a.png"], [2, "b.png"], [3, "deep/er/c.png"]]
    assert greys(dataset) == [10, 0, 20]
    with pytest.raises(SettingsError, match="not named as the run's classes"):
        opened(tmp_path, wants_targets=True, run=manifest(image=IMAGE))


def test_nothing_stands_in_for_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    site(tmp_path, 4)
    write_truncated_image(tmp_path / "images/1.png")
    rows = [[f"images/{row}.png"] for row in range(4)] + [[""]]
    path = write_table(tmp_path / "new.csv", ["image"], rows)
    dataset, names = opened(path, max_unreadable=0.5)
    assert list(names.rows) == [1, 2, 3, 4, 5], "rows that have nothing keep their places"
    batch = dataset.batch("test", np.arange(5))
    assert batch.present["image"].tolist() == [True, False, True, True, False]


def test_a_shard_of_a_visit_has_every_so_many_rows(tmp_path: Path) -> None:
    _, names = open_visited(
        str(site(tmp_path, 5)), manifest(), "all", shard=Shard(1, 2), options={}, wants_targets=False
    )
    assert list(names.rows) == [2, 4]


def test_a_data_set_of_ones_own_is_seen_with_its_splits_one_after_the_other() -> None:
    dataset = small_dataset(0, 5, 3)
    visited = VisitedDataset(dataset, "all")
    batch = visited.batch("test", np.array([7, 0, 5, 4]))
    for split, places, indices in (("test", [0, 2], [2, 0]), ("train", [1, 3], [0, 4])):
        part = dataset.batch(split, np.array(indices))  # type: ignore[arg-type]
        np.testing.assert_array_equal(batch.inputs["image"][places], part.inputs["image"])
        np.testing.assert_array_equal(batch.targets[places], part.targets)
    assert [visited.names.of(sample) for sample in (0, 4, 5, 7)] == [
        [1, "train/0"],
        [5, "train/4"],
        [6, "test/0"],
        [8, "test/2"],
    ]
    with pytest.raises(SettingsError, match="no sample for 'val'"):
        VisitedDataset(dataset, "val")
    with pytest.raises(IndexError):
        visited.batch("test", np.array([8]))


def test_a_client_side_of_a_visit_keeps_no_more_than_its_last_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from cutlayer.edge_agent import sample_features

    monkeypatch.setattr(sample_features, "CACHE_BYTES", 2_000)
    run = small_manifest()
    dataset = VisitedDataset(small_dataset(0, 40, 40), "all")
    client = ClientSide(run, tokenizer_file(), dataset, is_visit=True)
    whole = ClientSide(run, tokenizer_file(), small_dataset(0, 40, 40))
    for start in range(0, 40, 4):
        indices = np.arange(start, start + 4)
        found, wanted = client.tokenize("test", indices, ("image",)), whole.tokenize("train", indices, ("image",))
        np.testing.assert_array_equal(found.tokens[0][1], wanted.tokens[0][1])
        np.testing.assert_array_equal(client.targets("test", indices), wanted.targets)
    assert client._samples._cached_bytes <= 2_000


def test_a_visit_whose_microbatch_is_larger_than_what_is_kept_reads_some_of_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cutlayer.edge_agent import sample_features

    run, indices = small_manifest(), np.arange(4)
    dataset = VisitedDataset(small_dataset(0, 40, 40), "all")
    wanted = ClientSide(run, tokenizer_file(), dataset, is_visit=True).tokenize("test", indices, ("image",))
    monkeypatch.setattr(sample_features, "CACHE_BYTES", 300)
    client = ClientSide(run, tokenizer_file(), dataset, is_visit=True)
    assert client.has_some("test", indices, ("image",)).all()
    assert 0 < len(client._samples._samples) < 4
    found = client.tokenize("test", indices, ("image",))
    np.testing.assert_array_equal(found.tokens[0][1], wanted.tokens[0][1])
