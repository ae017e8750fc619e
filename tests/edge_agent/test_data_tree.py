"""A folder a class: what counts as a file, whose class it is, and what is said of folders that are no class."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_tree import read_tree

CLASSES = ("cat", "dog")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_files_are_listed_in_the_order_of_their_paths_with_their_folders_class(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.png", "dog/a.PNG", "cat/deep/er/c.png", "cat/z.png")
    table = read_tree(tmp_path, CLASSES, (".png",), "image")
    assert table.columns == {
        "image": ["cat/z.png", "cat/deep/er/c.png", "dog/a.PNG", "dog/b.png"],
        "label": ["cat", "cat", "dog", "dog"],
    }


def test_train_val_and_test_folders_say_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/dog/c.png", "test/cat/d.png")
    table = read_tree(tmp_path, CLASSES, (".png",), "image")
    assert table.columns == {
        "image": ["train/cat/a.png", "train/dog/b.png", "val/dog/c.png", "test/cat/d.png"],
        "label": ["cat", "dog", "dog", "cat"],
        "split": ["train", "train", "val", "test"],
    }


def test_hidden_and_other_files_do_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "cat/a.png", "cat/.b.png", "cat/notes.txt", "cat/.cache/c.png", ".git/d.png", "readme.md")
    with caplog.at_level("INFO", "cutlayer"):
        table = read_tree(tmp_path, CLASSES, (".png",), "image")
    assert table.columns["image"] == ["cat/a.png"]
    assert f"{tmp_path}: 1 files of other kinds are left out" in caplog.messages
    assert f"{tmp_path}: no sample of dog" in caplog.messages


def test_linked_folder_is_walked(tmp_path: Path) -> None:
    disk = touch(tmp_path / "disk", "a.png")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "cat").symlink_to(disk)
    assert read_tree(tmp_path / "tree", CLASSES, (".png",), "image").columns["image"] == ["cat/a.png"]


def test_folder_that_links_to_one_above_it_is_walked_once(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert read_tree(tmp_path, CLASSES, (".png",), "image").columns["image"] == ["cat/a.png"]


def test_folders_that_are_no_class_and_classes_without_a_folder_are_both_listed(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png", "Dog/b.png", "bird/c.png")
    with pytest.raises(SettingsError, match="not named as the run's classes") as caught:
        read_tree(tmp_path, CLASSES, (".png",), "image")
    assert "folders that are no class: Dog, bird\n" in caught.value.problem
    assert "classes without a folder: dog" in caught.value.problem


def test_empty_folder_and_classes_without_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="folders that are no class: none"):
        read_tree(tmp_path, CLASSES, (".png",), "image")
    touch(tmp_path, "cat/a.txt")
    with pytest.raises(SettingsError, match="no image file") as caught:
        read_tree(tmp_path, CLASSES, (".png", ".jpg"), "image")
    assert ".png, .jpg" in caught.value.fix
