"""The step of a head at the agent: AdamW (arXiv 1711.05101) or SGD with momentum, as torch has them, in NumPy.

Axes: B samples, C outputs, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.site_optimizer import SiteOptimizer

__all__ = ["EPSILON", "HeadGradient", "HeadState", "stepped"]

EPSILON = 1e-8
"""Of AdamW's denominator; torch's default."""
_CLIP_EPSILON = 1e-6
"""Of clipping; torch's."""
Parts = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class HeadGradient:
    """The gradient of a loss that is summed over samples.

    Attributes:
        parts: `weight`, (C, D), and `bias`, (C).
        num_samples: Samples.
    """

    parts: Parts
    num_samples: int


@dataclass(frozen=True, slots=True)
class HeadState:
    """A head and its optimizer. Never written to: a step makes another.

    Float64 throughout: a head is small, and its first steps would amplify rounding.

    Attributes:
        parts: `weight`, (C, D), and `bias`, (C).
        first: AdamW's first moments, or SGD's momentum, by part; empty before the first step.
        second: AdamW's second moments, by part; empty before the first step, and with SGD.
        num_steps: Steps so far.
        num_samples: Samples of those steps.
    """

    parts: Parts
    first: Parts = field(default_factory=dict)
    second: Parts = field(default_factory=dict)
    num_steps: int = 0
    num_samples: int = 0


def stepped(spec: SiteOptimizer, state: HeadState, gradient: HeadGradient, planned_samples: int) -> HeadState:
    """Return a head after one step on the mean gradient.

    A mean gradient that is not finite changes nothing, as at the worker.

    Args:
        spec: The optimizer.
        state: The head before.
        gradient: Of a microbatch.
        planned_samples: Training samples of this agent in the whole run.
    """
    num_samples = state.num_samples + gradient.num_samples
    mean = {name: part / gradient.num_samples for name, part in gradient.parts.items()}
    norm = float(np.sqrt(sum(np.square(part).sum() for part in mean.values())))
    if not np.isfinite(norm):
        return replace(state, num_samples=num_samples)
    if spec.clip_norm is not None:
        factor = min(spec.clip_norm / (norm + _CLIP_EPSILON), 1.0)
        mean = {name: part * factor for name, part in mean.items()}
    rate = spec.rate(num_samples, planned_samples)
    after = replace(state, num_steps=state.num_steps + 1, num_samples=num_samples)
    return _adamw(spec, after, mean, rate) if spec.name == "adamw" else _sgd(spec, after, mean, rate)


def _decay(spec: SiteOptimizer, name: str) -> float:
    return spec.weight_decay if name == "weight" else 0.0  # biases are spared, as timm does


def _adamw(spec: SiteOptimizer, state: HeadState, mean: Parts, rate: float) -> HeadState:
    (beta1, beta2), step = spec.betas, state.num_steps
    parts, first, second = {}, {}, {}
    for name, gradient in mean.items():
        first[name] = beta1 * state.first.get(name, 0.0) + (1.0 - beta1) * gradient
        second[name] = beta2 * state.second.get(name, 0.0) + (1.0 - beta2) * np.square(gradient)
        denominator = np.sqrt(second[name] / (1.0 - beta2**step)) + EPSILON
        decayed = state.parts[name] * (1.0 - rate * _decay(spec, name))
        parts[name] = decayed - rate / (1.0 - beta1**step) * first[name] / denominator
    return replace(state, parts=parts, first=first, second=second)


def _sgd(spec: SiteOptimizer, state: HeadState, mean: Parts, rate: float) -> HeadState:
    parts, first = {}, {}
    for name, gradient in mean.items():
        decayed = gradient + _decay(spec, name) * state.parts[name]
        first[name] = spec.momentum * state.first.get(name, 0.0) + decayed
        parts[name] = state.parts[name] - rate * first[name]
    return replace(state, parts=parts, first=first)
