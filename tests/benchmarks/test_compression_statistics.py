"""Means, intervals, differences by seed, the Pareto front."""

from __future__ import annotations

import pytest
from benchmarks.compression_statistics import mean_of, paired_difference, pareto_front


def test_interval_is_that_of_students_t() -> None:
    # t of 2 degrees of freedom at 0.975 is 4.3027, of 4 it is 2.7764 (any table of Student's t).
    assert mean_of([1.0, 2.0, 3.0]).half_width() == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert mean_of([1.0, 2.0, 3.0, 4.0, 5.0]).half_width() == pytest.approx(2.7764 * (2.5 / 5) ** 0.5, rel=1e-4)
    assert mean_of([1.0, 2.0, 3.0]).half_width(0.9) == pytest.approx(2.9200 / 3**0.5, rel=1e-4)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    mean = mean_of([0.5])
    assert (mean.value, mean.error, mean.half_width(), mean.num_seeds) == (0.5, None, None, 1)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_of([])


def test_a_difference_is_taken_seed_by_seed() -> None:
    # Seeds differ by far more than the schemes do: unpaired, the error would be that of the seeds.
    reference = {0: 0.2, 1: 0.5, 2: 0.8}
    difference = paired_difference({0: 0.21, 1: 0.52, 2: 0.83}, reference)
    assert difference is not None
    assert difference.value == pytest.approx(0.02)
    assert difference.error == pytest.approx(0.01 / 3**0.5)


def test_seeds_that_only_one_scheme_has_are_left_out() -> None:
    difference = paired_difference({0: 1.0, 1: 2.0, 7: 100.0}, {0: 0.0, 1: 0.0, 2: -100.0})
    assert difference is not None
    assert (difference.value, difference.num_seeds) == (1.5, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_front_holds_what_no_other_point_beats() -> None:
    points = {
        "dear": (100.0, 0.95),
        "dear and bad": (90.0, 0.80),
        "cheap": (10.0, 0.85),
        "cheaper and as good": (9.0, 0.85),
        "as cheap and worse": (9.0, 0.70),
        "cheapest": (1.0, 0.5),
    }
    assert pareto_front(points) == ["cheapest", "cheaper and as good", "dear"]
