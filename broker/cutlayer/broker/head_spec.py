"""A head of each agent's own: how it begins and how it is trained. A part of the run manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from cutlayer.broker.spec_base import Spec

__all__ = ["HeadSpec", "HeadStart"]

HeadStart = Literal["alike", "secret"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class HeadSpec(Spec):
    """A linear head at each agent, which never leaves it.

    Attributes:
        start: `alike`: all heads begin with the same weights, drawn from the run's seed. `secret`: each agent draws its
            own, which nobody else can know.
        optimizer: `adamw` or `sgd`: the optimizer of the encoder, over again at the agent.
        lr: Peak learning rate.
        weight_decay: Of the weight; the bias is spared.
        betas: AdamW's.
        momentum: SGD's.
        warmup_ratio: Share of the agent's planned samples over which the rate rises from 0 to `lr`.
        min_lr_ratio: Share of `lr` that is left at the end of the run.
        clip_norm: Largest norm of the head's mean gradient, by itself; None for no limit.
        is_endless: Whether nobody plans samples, as in a service: the rate is then always `lr`.
    """

    start: HeadStart = "alike"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9
    warmup_ratio: Share = 0.0
    min_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    clip_norm: PositiveFloat | None = None
    is_endless: bool = False
