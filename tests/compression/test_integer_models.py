"""The models of groups of integers: their frequencies, and which is chosen."""

import hashlib

import numpy as np
import pytest

from cutlayer.compression.integer_models import best_models, frequencies_of_class, tables_of_all_classes


def test_frequencies_are_the_same_on_every_machine() -> None:
    frequencies = tables_of_all_classes().frequency.astype("<u4").tobytes()
    golden = "5bece6b6efd79171238ef2f6140f09f976ab640c178a7ae1e7e2a9ed32f9a533"
    assert hashlib.sha256(frequencies).hexdigest() == golden


@pytest.mark.parametrize("index", range(64))
def test_frequencies_follow_their_density_and_fill_the_range(index: int) -> None:
    largest, frequency = frequencies_of_class(index)
    assert frequency.sum() == 2**14
    assert frequency.min() >= 1
    numbers = np.arange(-largest, largest + 1).astype(np.float64)
    variance = 2 ** ((index % 32 - 10) / 2)
    density = np.exp(-(numbers**2) / (2 * variance))
    if index >= 32:
        ratio = 1 + 1 / variance - np.sqrt(2 / variance + 1 / variance**2)
        assert 2 * ratio / (1 - ratio) ** 2 == pytest.approx(variance)
        density = ratio ** np.abs(numbers)
    expected = density / density.sum() * (2**14 - frequency.size)
    np.testing.assert_allclose(frequency[1:], expected, atol=frequency.size)


def model_of(numbers: list[int]) -> int:
    return int(best_models(np.array(numbers, np.int64), np.array([len(numbers)]))[0])


def test_the_model_follows_form_and_width() -> None:
    generator = np.random.default_rng(7)
    normal = np.rint(generator.normal(0, 4, 5000)).astype(int).tolist()
    geometric = (generator.geometric(0.3, 5000) - generator.geometric(0.3, 5000)).tolist()
    assert model_of(normal) == 18  # 2^((18 - 10) / 4) = 4
    assert model_of(geometric) == 128 + 18  # the standard deviation is 3.9
    assert model_of([number * 1024 for number in normal]) == 18 + 4 * 10


def test_empty_groups_have_the_narrowest_model() -> None:
    assert best_models(np.array([5, 6], np.int64), np.array([0, 2, 0])).tolist()[::2] == [0, 0]
    assert best_models(np.empty(0, np.int64), np.array([0])).tolist() == [0]
