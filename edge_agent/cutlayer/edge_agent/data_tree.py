"""A folder a class, each full of files: the form that torchvision's `ImageFolder` reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_table import Table

__all__ = ["SPLIT_FOLDERS", "has_split_folders", "read_files", "read_tree"]

log = logging.getLogger(__name__)

SPLIT_FOLDERS: Mapping[str, str] = {"train": "train", "val": "val", "test": "test"}


def has_split_folders(folder: Path) -> bool:
    """Return whether the classes are below `train/`, and others beside it."""
    return (folder / "train").is_dir()


def read_tree(folder: Path, classes: Sequence[str], suffixes: Collection[str], modality: str) -> Table:
    """List the files of a tree: `CLASS/**/FILE`, or `train/CLASS/**/FILE` with `val/` and `test/` beside it.

    Args:
        folder: The tree.
        classes: The run's classes, one of which each folder has to be named as; a class may have no folder.
        suffixes: Endings of the files that count, in small letters.
        modality: What they are; the name of their column.

    Returns:
        A table with the columns `modality`, `label` and, where the folders say it, `split`, in the order of the paths.

    Raises:
        SettingsError: When a folder is none of the classes, or there is no file.
    """
    has_splits = has_split_folders(folder)
    tops = [folder / name for name in SPLIT_FOLDERS.values() if (folder / name).is_dir()] if has_splits else [folder]
    _check_folders(tops, classes)
    paths: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    num_others = 0
    for top in tops:
        for name in _folders(top):
            for path in _files(top / name):
                if path.suffix.lower() not in suffixes:
                    num_others += 1
                    continue
                paths.append(os.path.relpath(path, folder))
                labels.append(name)
                splits.append(top.name)
    if not paths:
        raise SettingsError(
            f"{folder} has no {modality} file in the folders of its classes", f"files end in {', '.join(suffixes)}"
        )
    if num_others:
        log.info("%s: %d files of other kinds are left out", folder, num_others)
    if lacking := [name for name in classes if name not in set(labels)]:
        log.info("%s: no sample of %s", folder, ", ".join(lacking[:12]))
    columns = {modality: paths, "label": labels}
    return Table(folder, columns | {"split": splits} if has_splits else columns, folder)


def read_files(folder: Path, suffixes: Collection[str], modality: str) -> Table:
    """List the files below a folder, whatever folders they are in: nobody asks for their classes.

    Args:
        folder: The folder.
        suffixes: Endings of the files that count, in small letters.
        modality: What they are; the name of their column.

    Returns:
        A table with the column `modality`, in the order of the paths.

    Raises:
        SettingsError: When there is none.
    """
    found = [path for path in _files(folder) if path.suffix.lower() in suffixes]
    if not found:
        raise SettingsError(f"{folder} has no {modality} file", f"files end in {', '.join(suffixes)}")
    return Table(folder, {modality: [os.path.relpath(path, folder) for path in found]}, folder)


def _check_folders(tops: Sequence[Path], classes: Sequence[str]) -> None:
    for top in tops:
        names = _folders(top)
        unknown = sorted(set(names) - set(classes))
        if not unknown and names:
            continue
        lacking = [name for name in classes if name not in names]
        raise SettingsError(
            f"{top}: its folders are not named as the run's classes\n"
            f"    folders that are no class: {', '.join(unknown[:12]) or 'none'}\n"
            f"    classes without a folder: {', '.join(lacking[:12]) or 'none'}",
            "name each folder as its class in the run; for a table put data.csv or data.parquet there",
        )


def _folders(top: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(top) if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    found = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found
