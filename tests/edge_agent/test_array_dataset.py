from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from support.small_run import CLASSES, small_dataset


def test_batch_holds_the_samples_asked_for_in_their_order() -> None:
    data = small_dataset(0, 12)
    batch = data.batch("train", np.array([7, 0, 7]))
    whole = data.splits["train"]
    assert batch.targets.tolist() == [whole.targets[7], whole.targets[0], whole.targets[7]]
    assert np.array_equal(batch.inputs["image"], whole.inputs["image"][[7, 0, 7]])


def test_sizes_are_those_of_the_splits() -> None:
    data = small_dataset(0, 12, 5)
    assert (data.num_samples("train"), data.num_samples("test")) == (12, 5)
    assert data.classes == CLASSES


def test_index_outside_the_split_is_an_error() -> None:
    with pytest.raises(IndexError):
        small_dataset(0, 12).batch("train", np.array([12]))


def test_missing_split_is_named() -> None:
    data = small_dataset(0)
    with pytest.raises(SettingsError, match="no split 'test'"):
        replace(data, splits={"train": data.splits["train"]})


def test_arrays_of_different_length_are_named() -> None:
    data = small_dataset(0, 12)
    train = data.splits["train"]
    short = Batch({**train.inputs, "audio": train.inputs["audio"][:-1]}, train.targets)
    with pytest.raises(SettingsError, match=r"train: lengths differ: .*'audio': 11.*'targets': 12"):
        ArrayDataset("data", CLASSES, data.modalities, {"train": short, "test": data.splits["test"]})
