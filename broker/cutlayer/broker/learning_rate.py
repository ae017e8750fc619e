"""The learning rate over a run, by the share of the planned samples that is committed.

Nobody knows beforehand how many windows an asynchronous run has, so nothing here counts steps.
"""

from __future__ import annotations

import math

__all__ = ["learning_rate_factor"]


def learning_rate_factor(progress: float | None, *, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then half a cosine (SGDR, arXiv 1608.03983).

    Args:
        progress: Committed samples / planned samples, the window being committed included, so that the first
            step is not wasted on a rate of 0. Clamped to 0..1, since resent samples may pass the plan. None for
            a run without an end: the factor is then always 1.
        warmup_ratio: Share of the planned samples over which the factor rises from 0 to 1; 0..1, 1 excluded.
        min_lr_ratio: Factor at the end of the run; 0..1.
    """
    if progress is None:
        return 1.0
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup_ratio:
        return progress / warmup_ratio
    through_cosine = (progress - warmup_ratio) / (1.0 - warmup_ratio)
    return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * through_cosine))
