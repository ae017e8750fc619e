"""What several seeds say: means, their standard errors, and differences from the same seeds of another scheme."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.special import stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        error: Its standard error; None with one seed, which tells nothing about it.
        num_seeds: Of how many.
    """

    value: float
    error: float | None
    num_seeds: int

    def half_width(self, confidence: float = CONFIDENCE) -> float | None:
        """Return half of the confidence interval, by Student's t with a degree of freedom less than seeds.

        Args:
            confidence: Above 0 and below 1.
        """
        if self.error is None:
            return None
        return float(stdtrit(self.num_seeds - 1, (1 + confidence) / 2)) * self.error


def mean_of(values: Iterable[float]) -> Mean:
    """Return the mean of at least one value.

    Raises:
        ValueError: There is none.
    """
    found = list(values)
    if not found:
        raise ValueError("a mean needs at least one value")
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
    return Mean(statistics.fmean(found), error, len(found))


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Mean | None:
    """Return the mean of value minus reference, seed by seed: what the seeds have in common is not in its error.

    Args:
        values: By seed.
        reference: By seed; seeds that only one of the two has are left out.

    Returns:
        None, when they have no seed in common.
    """
    common = sorted(values.keys() & reference.keys())
    return mean_of(values[seed] - reference[seed] for seed in common) if common else None


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of points that no other one beats, from the fewest bytes to the most.

    Args:
        points: (bytes, accuracy) by name: fewer and higher are better. Of two equal points, the first stays.
    """
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front
