"""Which rows are for testing: the same ones each time, a share of each class, by what a row is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_split import hashed_split, named_split
from cutlayer.edge_agent.data_table import Table

IDENTITIES = [f"scans/{number:04d}.png" for number in range(1_000)]
GOLDEN = (0, 5, 7, 17)
STRATA = ["rare" if number % 20 == 0 else "usual" for number in range(1_000)]


def for_testing(identities: list[str], *, share: float = 0.2, seed: int = 0) -> set[str]:
    splits = hashed_split(identities, ["one"] * len(identities), test_share=share, seed=seed)
    return {identity for identity, split in zip(identities, splits, strict=True) if split == "test"}


def test_each_class_gives_its_share() -> None:
    splits = hashed_split(IDENTITIES, STRATA, test_share=0.2)
    strata = np.array(STRATA)
    assert (splits[strata == "rare"] == "test").sum() == 10
    assert (splits[strata == "usual"] == "test").sum() == 190


def test_choice_is_the_same_on_every_machine_and_in_every_release() -> None:
    assert sorted(for_testing(IDENTITIES[:20])) == [f"scans/{number:04d}.png" for number in GOLDEN]


def test_choice_is_of_what_a_row_is_and_not_of_its_place() -> None:
    assert for_testing(IDENTITIES[::-1]) == for_testing(IDENTITIES)


def test_rows_that_are_added_move_hardly_any_other() -> None:
    before, after = for_testing(IDENTITIES), for_testing([*IDENTITIES, *(f"new/{number}.png" for number in range(100))])
    moved = {identity for identity in before ^ after if identity.startswith("scans")}
    assert len(moved) <= 20


def test_another_seed_is_another_choice() -> None:
    assert for_testing(IDENTITIES, seed=1) != for_testing(IDENTITIES)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.001, 1), (0.5, 500)])
def test_share_is_what_was_asked_for(share: float, count: int) -> None:
    assert len(for_testing(IDENTITIES, share=share)) == count


def test_rows_of_one_patient_are_never_parted() -> None:
    patients = [f"patient {number // 5}" for number in range(1_000)]
    splits = hashed_split(patients, STRATA, test_share=0.2)
    assert (splits == "test").sum() == 200
    assert all(len(set(splits[start : start + 5])) == 1 for start in range(0, 1_000, 5))


def test_class_of_one_row_is_trained_on() -> None:
    assert hashed_split(["a"], ["only"], test_share=0.4).tolist() == ["train"]


def test_named_split_is_taken_as_it_is() -> None:
    table = Table(Path("data.csv"), {"fold": ["train", "val", "test"]}, Path(), [2, 3, 4])
    assert named_split(table, "fold").tolist() == ["train", "val", "test"]


@pytest.mark.parametrize("cell", ["", "Train", "testing"])
def test_split_of_another_name_is_named_with_its_line(cell: str) -> None:
    table = Table(Path("data.csv"), {"fold": ["train", cell]}, Path(), [2, 3])
    with pytest.raises(SettingsError, match=rf"data\.csv, line 3, column 'fold': '{cell}' is no split"):
        named_split(table, "fold")
