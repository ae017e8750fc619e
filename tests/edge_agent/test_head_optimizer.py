"""The step of a head at the agent is torch's, for AdamW and SGD, with decay, clipping and the run's learning rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.broker.site_optimizer import SiteOptimizer
from cutlayer.edge_agent.head_optimizer import HeadGradient, HeadState, stepped

SPECS = {
    "adamw": SiteOptimizer(lr=0.01, weight_decay=0.1, warmup_ratio=0.2),
    "adamw, clipped": SiteOptimizer(lr=0.01, weight_decay=0.1, clip_norm=0.5),
    "sgd": SiteOptimizer(name="sgd", lr=0.1, weight_decay=0.1, warmup_ratio=0.2),
    "sgd without momentum, clipped": SiteOptimizer(name="sgd", lr=0.1, momentum=0.0, clip_norm=0.5),
    "endless": SiteOptimizer(lr=0.01, warmup_ratio=0.5, is_endless=True),
}
PLANNED = 40


def torch_optimizer(spec: SiteOptimizer, head: torch.nn.Linear) -> torch.optim.Optimizer:
    groups = [
        {"params": [head.weight], "weight_decay": spec.weight_decay},
        {"params": [head.bias], "weight_decay": 0.0},
    ]
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas)
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)


@pytest.mark.parametrize("name", SPECS)
def test_it_is_the_step_of_torch(name: str) -> None:
    spec, rng = SPECS[name], np.random.default_rng(1)
    state = HeadState({"weight": rng.normal(size=(3, 5)), "bias": rng.normal(size=3)})
    head = torch.nn.Linear(5, 3, dtype=torch.float64)
    head.load_state_dict({part: torch.from_numpy(value.copy()) for part, value in state.parts.items()})
    optimizer, done = torch_optimizer(spec, head), 0
    for num_samples in (4, 4, 2, 4, 4, 2, 4, 4, 2, 4, 4, 2):
        sums = {"weight": rng.normal(size=(3, 5)), "bias": rng.normal(size=3)}
        state = stepped(spec, state, HeadGradient(sums, num_samples), PLANNED)
        done += num_samples
        progress = None if spec.is_endless else done / PLANNED
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * learning_rate_factor(
                progress, warmup_ratio=spec.warmup_ratio, min_lr_ratio=spec.min_lr_ratio
            )
        head.weight.grad, head.bias.grad = (torch.from_numpy(sums[part] / num_samples) for part in ("weight", "bias"))
        if spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(head.parameters(), spec.clip_norm)
        optimizer.step()
        for part, value in head.named_parameters():
            np.testing.assert_allclose(state.parts[part], value.detach().numpy(), rtol=1e-12, atol=1e-14)
    assert (state.num_steps, state.num_samples) == (12, 40)


def test_a_gradient_that_is_not_finite_changes_nothing_but_what_is_done() -> None:
    before = HeadState({"weight": np.ones((2, 2)), "bias": np.ones(2)})
    broken = HeadGradient({"weight": np.full((2, 2), np.inf), "bias": np.zeros(2)}, 4)
    after = stepped(SiteOptimizer(lr=0.1), before, broken, 8)
    assert after.parts is before.parts
    assert (after.num_steps, after.num_samples) == (0, 4)


def test_a_step_leaves_the_head_before_it_as_it_was() -> None:
    before = HeadState({"weight": np.ones((2, 2)), "bias": np.ones(2)})
    gradient = HeadGradient({"weight": np.ones((2, 2)), "bias": np.ones(2)}, 4)
    after = stepped(SiteOptimizer(lr=0.1), before, gradient, 8)
    assert (before.parts["weight"] == 1.0).all()
    assert (after.parts["weight"] != 1.0).all()
