"""What all tasks do alike: sites' parts are disjoint, draws are everybody's, packages that lack are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.tasks.division import divide, draws, held_out
from benchmarks.tasks.package_files import package_file, picture
from PIL import Image

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Batch
from cutlayer.edge_agent.partition import Shard


def numbered(num_samples: int) -> Batch:
    """Rows of a table whose first cell is their number."""
    numbers_B = np.arange(num_samples)
    cells_BF = np.repeat(numbers_B[:, None], 6, axis=1).astype(np.float32)
    return Batch({"blood": cells_BF, "examination": cells_BF[:, :4]}, numbers_B[:, None].astype(np.float32))


def parts(count: int, seed: int, alpha: float | None) -> list[tuple[set[int], set[int]]]:
    """Numbers of each site's training and test samples."""
    kinds_B = np.arange(200) % 4
    found = []
    for index in range(count):
        part = divide("vitals", numbered(200), numbered(90), kinds_B, Shard(index, count), seed, alpha)
        found.append(
            (
                {int(number) for number in part.splits["train"].targets[:, 0]},
                {int(number) for number in part.splits["test"].targets[:, 0]},
            )
        )
    return found


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_every_sample_is_at_one_site(alpha: float | None) -> None:
    sites = parts(4, 5, alpha)
    assert sorted(number for train, _ in sites for number in train) == list(range(200))
    assert sorted(number for _, test in sites for number in test) == list(range(90))


def test_test_samples_are_divided_alike_whatever_the_skew_is() -> None:
    assert [test for _, test in parts(4, 5, None)] == [test for _, test in parts(4, 5, 0.1)]


def test_skew_gives_sites_other_shares_of_the_kinds() -> None:
    largest = [max(sum(number % 4 == kind for number in train) for kind in range(4)) for train, _ in parts(4, 5, 0.1)]
    assert max(largest) > 40  # of 50; IID gives about 12


def test_another_seed_divides_otherwise() -> None:
    assert parts(4, 5, None) != parts(4, 6, None)


def test_draws_are_a_function_of_seed_and_purpose() -> None:
    assert draws(1, "train").randint(1 << 30) == draws(1, "train").randint(1 << 30)
    assert len({draws(seed, purpose).randint(1 << 30) for seed in (1, 2) for purpose in ("train", "test")}) == 4


def test_held_out_names_are_a_share_of_all_and_at_least_one() -> None:
    names = [f"person {number}" for number in range(10)]
    assert len(held_out(names, 0.3, 0)) == 3
    assert held_out(names, 0.3, 0) <= set(names)
    assert len(held_out(names[:2], 0.01, 0)) == 1
    assert len({frozenset(held_out(names, 0.3, seed)) for seed in range(8)}) > 1


def test_a_package_that_is_missing_is_named_with_what_installs_it() -> None:
    with pytest.raises(SettingsError, match=r"no_such_package.*not installed") as caught:
        package_file("no_such_package", "data")
    assert 'pip install "cutlayer[bench]"' in str(caught.value)


def test_a_file_that_a_package_lacks_is_named() -> None:
    with pytest.raises(SettingsError, match=r"numpy has no data/none\.csv"):
        package_file("numpy", "data/none.csv")


def test_a_picture_is_averaged_down_on_white(tmp_path: Path) -> None:
    pixels_HWC = np.zeros((4, 4, 4), np.uint8)
    pixels_HWC[:2, :2] = (100, 50, 0, 255)  # opaque
    pixels_HWC[0, 0] = (200, 50, 0, 255)
    Image.fromarray(pixels_HWC).save(tmp_path / "picture.png")
    small_HWC = picture(tmp_path / "picture.png", 2)
    assert small_HWC.dtype == np.uint8
    assert small_HWC[0, 0].tolist() == [125, 50, 0]
    assert small_HWC[1, 1].tolist() == [255, 255, 255]


def test_a_picture_of_another_size_or_none_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "odd.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SettingsError, match="5 x 5 pixels"):
        picture(tmp_path / "odd.png", 2)
    with pytest.raises(SettingsError, match=r"text\.png cannot be read as a picture"):
        picture(tmp_path / "text.png", 2)
