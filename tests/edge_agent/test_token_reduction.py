"""Fewer tokens: which are left, that they are the same each time, and what merging makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.manifest import TokenReduction
from cutlayer.edge_agent.token_reduction import reduce_present_tokens, reduce_tokens

KINDS = ("random", "content", "merge")


def tokens(seed: int = 0, num_samples: int = 3, num_tokens: int = 16, width: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num_samples, num_tokens, width)).astype(np.float32)


def names(num_samples: int) -> list[str]:
    return [f"sample-{index}" for index in range(num_samples)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "num_kept"), [(0.01, 1), (0.25, 4), (0.5, 8), (0.9, 14), (1.0, 16)])
def test_the_share_of_the_tokens_that_is_wanted_is_left(kind: str, keep: float, num_kept: int) -> None:
    spec = TokenReduction.model_validate({"kind": kind, "keep": keep})
    kept_BKD, positions_BK = reduce_tokens(spec, tokens(), names(3))
    assert kept_BKD.shape == (3, num_kept, 8)
    assert kept_BKD.dtype == np.float32
    assert positions_BK.shape == (3, num_kept)
    assert (np.diff(positions_BK, axis=1) > 0).all(), "ascending, none twice"
    assert positions_BK.min() >= 0
    assert positions_BK.max() < 16


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_are_left_as_they_are(kind: str) -> None:
    spec = TokenReduction.model_validate({"kind": kind, "keep": 1.0})
    kept_BKD, positions_BK = reduce_tokens(spec, tokens(), names(3))
    np.testing.assert_array_equal(kept_BKD, tokens())
    np.testing.assert_array_equal(positions_BK, np.tile(np.arange(16), (3, 1)))


@pytest.mark.parametrize("kind", ["random", "content"])
def test_a_dropped_token_leaves_the_others_where_they_were(kind: str) -> None:
    spec = TokenReduction.model_validate({"kind": kind, "keep": 0.5})
    kept_BKD, positions_BK = reduce_tokens(spec, tokens(), names(3))
    np.testing.assert_array_equal(kept_BKD, np.take_along_axis(tokens(), positions_BK[:, :, None], axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_reduced_alike_in_whatever_company(kind: str) -> None:
    spec = TokenReduction.model_validate({"kind": kind, "keep": 0.4})
    together_BKD, places_BK = reduce_tokens(spec, tokens(), names(3))
    for row in range(3):
        alone_BKD, alone_BK = reduce_tokens(spec, tokens()[row : row + 1], names(3)[row : row + 1])
        np.testing.assert_array_equal(alone_BKD[0], together_BKD[row])
        np.testing.assert_array_equal(alone_BK[0], places_BK[row])


def test_random_drops_other_tokens_of_other_samples() -> None:
    _, positions_BK = reduce_tokens(TokenReduction(kind="random", keep=0.5), tokens(num_samples=20), names(20))
    assert len({tuple(row) for row in positions_BK.tolist()}) > 15


def test_content_keeps_the_tokens_that_differ_from_the_rest() -> None:
    flat = np.ones((1, 16, 8), np.float32)
    flat[0, [3, 7, 12]] += np.arange(1, 9, dtype=np.float32)
    _, positions_BK = reduce_tokens(TokenReduction(kind="content", keep=3 / 16), flat, names(1))
    assert positions_BK.tolist() == [[3, 7, 12]]


def test_merging_averages_equal_tokens_and_keeps_the_mean_of_all() -> None:
    directions = np.eye(4, 8, dtype=np.float32)
    doubled = np.repeat(directions, 4, axis=0)[None]  # each of four tokens four times
    kept_BKD, positions_BK = reduce_tokens(TokenReduction(kind="merge", keep=0.25), doubled, names(1))
    np.testing.assert_allclose(kept_BKD[0], directions, atol=1e-6)
    assert positions_BK.tolist() == [[0, 4, 8, 12]], "a merged token stands where the first of them was"


def test_merging_weighs_by_how_many_tokens_each_stands_for() -> None:
    values = tokens(num_samples=1, num_tokens=9)
    kept_BKD, _ = reduce_tokens(TokenReduction(kind="merge", keep=0.01), values, names(1))
    np.testing.assert_allclose(kept_BKD[0, 0], values[0].mean(axis=0), atol=1e-5)


def test_zeros_are_merged_without_a_warning() -> None:
    kept_BKD, _ = reduce_tokens(TokenReduction(kind="merge", keep=0.5), np.zeros((1, 8, 4), np.float32), names(1))
    np.testing.assert_array_equal(kept_BKD, np.zeros((1, 4, 4), np.float32))


def some_present(num_samples: int = 6, num_tokens: int = 16) -> NDArray[np.bool_]:
    """Samples with all of their tokens, one, none, and some."""
    present_BN = np.random.default_rng(1).random((num_samples, num_tokens)) < 0.6
    present_BN[0], present_BN[1], present_BN[2] = True, False, False
    present_BN[2, 5] = True
    return present_BN


def test_without_a_reduction_all_that_is_there_stays_in_order() -> None:
    tokens_BND, present_BN = tokens(num_samples=6), some_present()
    kept_BKD, positions_BK = reduce_present_tokens(None, tokens_BND, present_BN, names(6))
    assert kept_BKD.shape == tokens_BND.shape
    for row in range(6):
        places = np.flatnonzero(present_BN[row])
        assert positions_BK[row].tolist() == [*places, *[16] * (16 - len(places))]
        np.testing.assert_array_equal(kept_BKD[row, : len(places)], tokens_BND[row, places])
        assert (kept_BKD[row, len(places) :] == 0.0).all()


@pytest.mark.parametrize("kind", ["random", "content"])
def test_only_tokens_that_are_there_are_left(kind: str) -> None:
    spec = TokenReduction.model_validate({"kind": kind, "keep": 0.25})
    tokens_BND, present_BN = tokens(num_samples=6), some_present()
    kept_BKD, positions_BK = reduce_present_tokens(spec, tokens_BND, present_BN, names(6))
    assert kept_BKD.shape == (6, 4, 8)
    for row in range(6):
        places = positions_BK[row][positions_BK[row] < 16]
        assert len(places) == min(4, present_BN[row].sum())
        assert present_BN[row, places].all()
        np.testing.assert_array_equal(kept_BKD[row, : len(places)], tokens_BND[row, places])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_have_all_tokens_are_reduced_as_without_a_mask(kind: str) -> None:
    spec = TokenReduction.model_validate({"kind": kind, "keep": 0.5})
    expected_BKD, expected_BK = reduce_tokens(spec, tokens(), names(3))
    kept_BKD, positions_BK = reduce_present_tokens(spec, tokens(), np.ones((3, 16), np.bool_), names(3))
    np.testing.assert_array_equal(kept_BKD, expected_BKD)
    np.testing.assert_array_equal(positions_BK, expected_BK)
