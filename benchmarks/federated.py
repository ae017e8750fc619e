"""Federated averaging (McMahan et al., arXiv 1602.05629, algorithm 1), with all sites in each round, fairly tuned.

Each round every site trains some epochs from the global weights, and the mean of what comes of it, weighted by
samples, is the next global model. A site's optimizer starts anew each round, as is usual: its moments belong to weights
that are gone. The learning rate's schedule runs over all rounds. The server's learning rate is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from benchmarks.site_training import Trainer
from benchmarks.task_sites import Site
from torch import Tensor

from cutlayer.server_worker.model_builder import BuiltModel
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.settings import RunSettings

FLOAT32_BYTES = 4
LEARNING_RATE_FACTORS = (1.0, 0.3, 3.0)
LOCAL_EPOCHS = (1, 3)


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """What federated averaging is tuned in.

    Attributes:
        factor: On the run's learning rate.
        local_epochs: Epochs of a site in a round.
    """

    factor: float
    local_epochs: int


def grid(epochs: int) -> list[Choice]:
    """Return what is tried: each rate with each number of local epochs, or its nearest divisor of all epochs."""
    divisors = [number for number in range(1, epochs + 1) if epochs % number == 0]
    local = {min(divisors, key=lambda number: (abs(number - wanted), number)) for wanted in LOCAL_EPOCHS}
    return [Choice(factor, number) for number in sorted(local) for factor in LEARNING_RATE_FACTORS]


def chosen(found: Mapping[Choice, float | None], *, is_more_better: bool) -> Choice:
    """Return the choice with the best metric on the validation samples; of equal ones the first.

    Args:
        found: The metric of each choice; None where the training diverged.
        is_more_better: Whether more of it is better.

    Raises:
        ValueError: All have diverged.
    """
    values = {choice: value for choice, value in found.items() if value is not None}
    if not values:
        raise ValueError("federated averaging diverged with every learning rate")
    return max(values, key=lambda choice: values[choice] if is_more_better else -values[choice])


def with_rate(settings: RunSettings, factor: float) -> RunSettings:
    """Return a run with its learning rate times a factor."""
    optimizer = settings.optimizer.model_copy(update={"lr": settings.optimizer.lr * factor})
    return settings.model_copy(update={"optimizer": optimizer})


def average(weights: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the mean of several models, in float64 and rounded once.

    Args:
        weights: Samples and weights of each site. What is no floating-point number is taken from the first.
    """
    total = sum(num_samples for num_samples, _ in weights)
    averaged: dict[str, Tensor] = {}
    for name, first in weights[0][1].items():
        if not first.is_floating_point():
            averaged[name] = first.clone()
            continue
        sum_ = torch.zeros_like(first, dtype=torch.float64)
        for num_samples, state in weights:
            sum_ += num_samples * state[name].double()
        averaged[name] = (sum_ / total).to(first.dtype)
    return averaged


def train_federated(settings: RunSettings, built: BuiltModel, sites: Sequence[Site], choice: Choice) -> Trainer:
    """Train by federated averaging; the trainer that is returned holds the last global model."""
    trainer = Trainer(with_rate(settings, choice.factor), built)
    weights = trainer.state.weights
    for first in range(0, settings.run.epochs, choice.local_epochs):
        found = []
        for site in sites:
            trainer.load(EngineState(0, weights, {}))
            trainer.train(site, range(first, first + choice.local_epochs))
            found.append((site.plan.num_train, trainer.state.weights))
        weights = average(found)
    trainer.load(EngineState(0, weights, {}))
    return trainer


def num_bytes(num_parameters: int, num_sites: int, rounds: int) -> int:
    """Return what all sites move: trained parameters as float32, down and up, in each round. No protocol, no test."""
    return 2 * FLOAT32_BYTES * num_parameters * num_sites * rounds
