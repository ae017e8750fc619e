"""How agents train what is their own: heads, and tokenizers that never leave them. A part of the run manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.broker.spec_base import Spec

__all__ = ["HeadStart", "SiteOptimizer"]

HeadStart = Literal["alike", "secret"]
"""`alike`: all heads begin with the same weights, drawn from the run's seed. `secret`: each agent draws its own."""
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class SiteOptimizer(Spec):
    """The encoder's optimizer, over again at each agent.

    Attributes:
        name: `adamw` or `sgd`.
        lr: Peak learning rate.
        weight_decay: Of matrices; biases and other vectors are spared.
        betas: AdamW's.
        momentum: SGD's.
        warmup_ratio: Share of the agent's planned samples over which the rate rises from 0 to `lr`.
        min_lr_ratio: Share of `lr` that is left at the end of the run.
        clip_norm: Largest norm of the mean gradient, of each part by itself; None for no limit.
        is_endless: Whether nobody plans samples, as in a service: the rate is then always `lr`.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9
    warmup_ratio: Share = 0.0
    min_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    clip_norm: PositiveFloat | None = None
    is_endless: bool = False

    def rate(self, num_samples: int, planned_samples: int) -> float:
        """Return the learning rate of a step.

        Args:
            num_samples: Samples that the agent has trained on, the step's included.
            planned_samples: Training samples of the agent in the whole run.
        """
        progress = None if self.is_endless else num_samples / planned_samples
        return self.lr * learning_rate_factor(progress, warmup_ratio=self.warmup_ratio, min_lr_ratio=self.min_lr_ratio)
