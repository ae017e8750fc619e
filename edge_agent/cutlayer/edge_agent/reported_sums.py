"""Sums of loss and metrics on their way into a report, and the rule of what may leave: nothing of few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cutlayer.broker.messages import MetricSums
from cutlayer.broker.task_metrics import NOTHING
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES
from cutlayer.edge_agent.losses import LossResult, PartSums

__all__ = ["Sums"]


class Sums:
    """Running sums of loss and metrics.

    Where samples may have one target and lack another, each target's sums are kept apart, its part of the loss with
    them: what is reported of a target is of enough samples that have it, or waits until there are enough.
    """

    def __init__(self) -> None:
        self._now = _State()

    @property
    def num_samples(self) -> int:
        """Samples that have come and are not taken."""
        return self._now.num_samples

    def add(self, result: LossResult) -> None:
        """Add the result of one microbatch."""
        now = self._now
        now.num_samples += result.num_samples
        now.num_correct += result.num_correct
        now.sums = _sum(now.sums, result.sums)
        if result.parts:
            before = now.parts or [None] * len(result.parts)
            now.parts = [_joined(part, more) for part, more in zip(before, result.parts, strict=True)]
        else:
            now.loss_sum += result.loss_sum

    def take(self, *, with_targets: bool = False) -> MetricSums:
        """Take out what may be reported: nothing at all of fewer samples than the limit, no target that fewer have.

        Sums of targets are the same whatever the model says of them. So two of them, over sets of samples that
        overlap, would tell of the few samples in which the sets differ: they leave only with evaluations of all test
        samples, which are always the same.

        Args:
            with_targets: Whether sums of the targets themselves go with those of the errors.
        """
        now = self._now
        ready = [part for part in now.parts if part is not None and not _is_scarce(part)]
        if now.num_samples < MIN_REPORTED_SAMPLES or (now.parts and not ready):
            return NOTHING
        self._now = _State(parts=[part if _is_scarce(part) else None for part in now.parts])
        return now.summed(ready, with_targets=with_targets)

    def all(self) -> MetricSums:
        """Return all sums, for the site itself: they may be of a single sample."""
        return self._now.summed([part for part in self._now.parts if part is not None], with_targets=True)


@dataclass(slots=True)
class _State:
    num_samples: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    parts: list[PartSums | None] = field(default_factory=list)

    def summed(self, parts: Iterable[PartSums], *, with_targets: bool) -> MetricSums:
        """Return these sums with those of some parts."""
        loss_sum, sums = self.loss_sum, self.sums
        for part in parts:
            loss_sum += part.loss_sum
            sums = _sum(sums, part.sums, part.target_sums if with_targets else {})
        return MetricSums(loss_sum, self.num_correct, self.num_samples, tuple(sorted(sums.items())))


def _is_scarce(part: PartSums | None) -> bool:
    return part is not None and part.num_values < MIN_REPORTED_SAMPLES


def _joined(part: PartSums | None, more: PartSums) -> PartSums:
    if part is None:
        return more
    return PartSums(
        part.num_values + more.num_values,
        part.loss_sum + more.loss_sum,
        _sum(part.sums, more.sums),
        _sum(part.target_sums, more.target_sums),
    )


def _sum(*terms: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for term in terms:
        for name, value in term.items():
            total[name] = total.get(name, 0.0) + value
    return total
