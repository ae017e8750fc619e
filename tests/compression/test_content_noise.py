"""Random numbers from a tensor's bytes: the same ones everywhere, and uniform."""

import numpy as np

from cutlayer.compression.content_noise import ContentNoise


def test_the_numbers_of_a_tensor_never_change() -> None:
    draws = ContentNoise(np.arange(4, dtype=np.float32)).draw(6)
    steps = (draws.astype(np.float64) * 2**17 - 1) / 2
    np.testing.assert_array_equal(steps, [18979, 4015, 18337, 65431, 30846, 55032])


def test_numbers_depend_on_every_bit() -> None:
    array = np.zeros(1000, np.float32)
    changed = array.copy()
    changed[999] = -0.0
    assert (ContentNoise(array).draw(1000) != ContentNoise(changed).draw(1000)).mean() > 0.99


def test_numbers_lie_within_0_and_1_and_spread_evenly() -> None:
    draws = ContentNoise(np.ones(3, np.float32)).draw(1_000_000).astype(np.float64)
    assert draws.dtype == np.float64
    assert 0 < draws.min() < 1e-5
    assert 1 - 1e-5 < draws.max() < 1
    # Five standard errors of the mean of a million uniform numbers; the seed is fixed.
    assert abs(draws.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 1000
    counts, _ = np.histogram(draws, bins=64, range=(0, 1))
    expected = draws.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * (2 * 63) ** 0.5


def test_the_next_numbers_are_others() -> None:
    noise = ContentNoise(np.ones(3, np.float32))
    assert (noise.draw(1000) != noise.draw(1000)).mean() > 0.99


def test_how_many_are_drawn_at_a_time_changes_no_number() -> None:
    array = np.ones(3, np.float32)
    in_parts = ContentNoise(array)
    parts = np.concatenate([in_parts.draw(count) for count in (5, 0, 1, 6, 2, 11)])
    np.testing.assert_array_equal(parts, ContentNoise(array).draw(25))
