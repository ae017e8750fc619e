"""Validation samples: an agent's own, or set aside from its training samples, never from its test samples."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.manifest import EvaluationSpec, Manifest
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.digits import DigitsDataset
from cutlayer.edge_agent.validation import num_validation_samples, with_validation
from support.conversation import small_manifest
from support.small_run import small_dataset


def manifest(val_ratio: float = 0.1, seed: int = 0) -> Manifest:
    evaluation = EvaluationSpec(keep="best", val_ratio=val_ratio)
    return small_manifest().model_copy(update={"evaluation": evaluation, "seed": seed})


def labels_of(dataset: Dataset, split: str) -> list[int]:
    assert split in ("train", "val", "test")
    indices = np.arange(dataset.num_samples(split))  # type: ignore[arg-type]
    return [int(label) for label in dataset.batch(split, indices).targets]  # type: ignore[arg-type]


def images_of(dataset: Dataset, split: str) -> set[bytes]:
    indices = np.arange(dataset.num_samples(split))  # type: ignore[arg-type]
    images_BHWC = dataset.batch(split, indices).inputs["image"]  # type: ignore[arg-type]
    return {image.tobytes() for image in images_BHWC}


def test_a_share_of_the_training_samples_is_set_aside_and_no_test_sample() -> None:
    whole = small_dataset(0, num_train=400)
    parted = with_validation(whole, manifest(), "clinic/07")
    assert num_validation_samples(parted) == 40
    train, val = images_of(parted, "train"), images_of(parted, "val")
    assert train | val == images_of(whole, "train")
    assert not train & val
    assert images_of(parted, "test") == images_of(whole, "test")


def test_each_process_of_an_agent_sets_the_same_aside_and_another_agent_something_else() -> None:
    whole = small_dataset(0, num_train=400)
    aside = [
        images_of(with_validation(whole, manifest(seed=seed), agent), "val")
        for agent, seed in (("clinic/07", 0), ("clinic/07", 0), ("clinic/08", 0), ("clinic/07", 1))
    ]
    assert aside[0] == aside[1]
    assert aside[0] != aside[2]
    assert aside[0] != aside[3]


def test_validation_samples_of_the_data_are_taken_and_no_training_sample() -> None:
    whole = small_dataset(0, num_train=400, num_val=33)
    assert with_validation(whole, manifest(), "clinic/07") is whole
    assert num_validation_samples(whole) == 33


@pytest.mark.parametrize(
    ("num_train", "num_val", "val_ratio", "said"),
    [
        (400, 0, 0.0, "no validation samples, and [evaluation] val_ratio sets none aside"),
        (300, 0, 0.1, "too few training samples (300) to set any aside"),
        (400, 31, 0.1, "31 validation samples"),
    ],
)
def test_whoever_has_too_few_says_so_and_has_no_say(
    num_train: int, num_val: int, val_ratio: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = small_dataset(0, num_train, num_val=num_val)
    with caplog.at_level(logging.WARNING):
        parted = with_validation(whole, manifest(val_ratio), "clinic/07")
    assert num_validation_samples(parted) == 0
    assert parted.num_samples("train") == num_train, "nothing is set aside in vain"
    assert said in caplog.text
    assert "it has no say in which weights are kept; fix: add rows with the split val, or without" in caplog.text


def test_all_views_of_a_digit_go_the_same_way() -> None:
    digits = open_dataset("demo:digits", options={"views": 3})
    assert isinstance(digits, DigitsDataset)
    parted = with_validation(digits, manifest(), "clinic/07")
    num_val = num_validation_samples(parted)
    assert num_val % 3 == 0
    assert num_val == pytest.approx(0.1 * digits.num_samples("train"), abs=3)
    labels = labels_of(parted, "val")
    assert labels[0::3] == labels[1::3] == labels[2::3]


def _table(folder: Path, cells: list[tuple[str, str]]) -> Path:
    """Write a table of one number and one label a row, each with a patient and a split."""
    lines = ["x,label,id,split"]
    lines += [f"{row}.5,{'yes' if row % 2 else 'no'},{patient},{split}" for row, (patient, split) in enumerate(cells)]
    path = folder / "samples.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _table_manifest(**evaluation: object) -> Manifest:
    document = small_manifest().model_dump()
    document |= {
        "modalities": {"vitals": {"kind": "table", "columns": ["x"], "mean": [0.0], "std": [1.0]}},
        "task": {"kind": "classification", "classes": ["no", "yes"]},
        "evaluation": evaluation,
    }
    return Manifest.model_validate(document)


def test_rows_of_a_table_are_read_for_validation_where_a_run_chooses_and_left_alone_else(tmp_path: Path) -> None:
    cells = [(f"p{row}", ("train", "val", "test")[row % 3]) for row in range(120)]
    path = _table(tmp_path, cells)
    chooses, last = _table_manifest(keep="best"), _table_manifest()
    dataset = open_dataset(str(path), manifest=chooses)
    assert num_validation_samples(with_validation(dataset, chooses, "clinic/07")) == 40
    assert num_validation_samples(open_dataset(str(path), manifest=last)) == 0


def test_rows_of_one_patient_are_not_parted(tmp_path: Path) -> None:
    cells = [(f"p{row // 10}", "train" if row < 400 else "test") for row in range(440)]
    wanted = _table_manifest(keep="best")
    parted = with_validation(open_dataset(str(_table(tmp_path, cells)), manifest=wanted), wanted, "clinic/07")
    indices = np.arange(parted.num_samples("val"))
    patients = np.floor(parted.batch("val", indices).inputs["vitals"][:, 0] / 10)
    assert num_validation_samples(parted) == 40
    assert np.unique(patients, return_counts=True)[1].tolist() == [10, 10, 10, 10]
