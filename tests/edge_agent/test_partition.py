"""Partitions: every sample in one shard, no shard empty, the same at every agent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.partition import Shard, partition

alphas = st.none() | st.floats(1e-6, 1e6)


@st.composite
def labels_and_shards(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    labels = draw(st.lists(st.integers(0, 12), min_size=1, max_size=200))
    return np.array(labels, dtype=np.int64), draw(st.integers(1, len(labels)))


def balanced_labels(num_samples: int = 2000, num_classes: int = 10) -> NDArray[np.int64]:
    return np.arange(num_samples, dtype=np.int64) % num_classes


def skew(shards: list[NDArray[np.int64]], labels_B: NDArray[np.int64]) -> float:
    """Return the mean distance in total variation between a shard's classes and all samples' (0 is IID)."""
    whole_C = np.bincount(labels_B) / labels_B.size
    parts = [np.bincount(labels_B[shard], minlength=whole_C.size) / shard.size for shard in shards]
    return float(np.mean([np.abs(part_C - whole_C).sum() / 2 for part_C in parts]))


@settings(deadline=None)
@given(labels_and_shards(), alphas, st.integers(0, 2**63 - 1))
def test_every_sample_is_in_exactly_one_shard(
    drawn: tuple[NDArray[np.int64], int], alpha: float | None, seed: int
) -> None:
    labels_B, count = drawn
    shards = partition(labels_B, count, seed=seed, alpha=alpha)
    assert len(shards) == count
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(labels_B.size))


@settings(deadline=None)
@given(labels_and_shards(), alphas, st.integers(0, 2**63 - 1))
def test_no_shard_is_empty_and_sizes_differ_by_one_at_most(
    drawn: tuple[NDArray[np.int64], int], alpha: float | None, seed: int
) -> None:
    labels_B, count = drawn
    sizes = [shard.size for shard in partition(labels_B, count, seed=seed, alpha=alpha)]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_the_seed_alone_decides_the_partition(alpha: float | None) -> None:
    labels_B = balanced_labels()
    first, again, other = (partition(labels_B, 4, seed=seed, alpha=alpha) for seed in (5, 5, 6))
    for shard, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(shard, same)
    assert any(not np.array_equal(shard, different) for shard, different in zip(first, other, strict=True))


def test_the_partition_of_a_release_never_changes() -> None:
    # Agents of two releases share one run: a change here makes their shards overlap.
    labels_B = balanced_labels(12, 3)
    assert [shard.tolist() for shard in partition(labels_B, 3, seed=1)] == [
        [0, 2, 4, 11],
        [1, 3, 5, 6],
        [7, 8, 9, 10],
    ]
    assert [shard.tolist() for shard in partition(labels_B, 3, seed=1, alpha=0.5)] == [
        [0, 3, 6, 9],
        [1, 2, 4, 5],
        [7, 8, 10, 11],
    ]


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    labels_B = balanced_labels()
    skews = [skew(partition(labels_B, 8, seed=3, alpha=alpha), labels_B) for alpha in (0.1, 10.0, 10_000.0)]
    iid = skew(partition(labels_B, 8, seed=3), labels_B)
    assert skews[0] > 0.6 > skews[1] > 0.2 > skews[2]
    assert iid < 0.15


def test_more_shards_than_samples_is_refused() -> None:
    with pytest.raises(SettingsError, match="3 samples do not fill 4 shards"):
        partition(balanced_labels(3), 4, seed=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive_and_finite(alpha: float) -> None:
    with pytest.raises(SettingsError, match="alpha"):
        partition(balanced_labels(), 4, seed=0, alpha=alpha)


def test_a_shard_reads_back_what_it_writes() -> None:
    assert Shard.parse("3/16") == Shard(3, 16)
    assert Shard.parse(str(Shard(3, 16))) == Shard(3, 16)
    assert Shard.parse(" 0 / 4 ") == Shard(0, 4)


@pytest.mark.parametrize("text", ["", "1", "1/", "/4", "a/b", "-1/4", "1/4/2", "1.0/4", "٣/٤", "1/9999999999"])
def test_another_form_of_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match="INDEX/COUNT") as caught:
        Shard.parse(text)
    assert "0/4" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "message"), [("4/4", "part 4 does not exist"), ("0/0", "0 parts"), ("0/100001", "parts")]
)
def test_a_shard_that_does_not_exist_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Shard.parse(text)
