"""What a plan says of a run that trains a part of the encoder."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.simulation.plan_model import PlannedModel, plan_model
from support.small_run import small_settings


def planned(depth: int = 4, **sections: Any) -> PlannedModel:
    options = small_settings().model.options | {"depth": depth}
    return plan_model(small_settings(model={"options": options}, **sections))


@pytest.mark.parametrize(
    ("tuning", "passes"),
    [
        ({"mode": "full"}, 3.0),
        ({"mode": "lora", "rank": 4, "embeddings": "none"}, 2.0),
        ({"mode": "frozen", "embeddings": "none"}, 1.0),
        ({"mode": "frozen"}, 2.0),
        ({"mode": "last", "blocks": 1, "embeddings": "none"}, 1.5),
        ({"mode": "last", "blocks": 1}, 2.25),
        ({"mode": "last", "blocks": 4, "embeddings": "none"}, 3.0),
    ],
    ids=str,
)
def test_a_step_takes_the_passes_that_its_mode_needs(tuning: dict[str, object], passes: float) -> None:
    assert planned(tuning=tuning).step_passes() == passes


def test_trained_tokenizers_bring_the_backward_pass_back() -> None:
    frozen = {"mode": "frozen", "embeddings": "none"}
    trained = planned(tuning=frozen, tokenizers={"mode": "trainable"}, activations={"mode": "every-step"})
    assert trained.step_passes() == 2.0


def test_a_head_at_the_agents_is_part_of_the_model_that_others_would_train() -> None:
    model = small_settings().model.model_dump() | {"head": "agent"}
    own = plan_model(small_settings(model=model))
    assert own.sizes == plan_model(small_settings()).sizes
    assert own.manifest.num_parameters < plan_model(small_settings()).manifest.num_parameters


@pytest.mark.parametrize("mode", ["lora", "last", "frozen"])
def test_the_model_that_others_would_train_is_the_same(mode: str) -> None:
    assert planned(tuning={"mode": mode}).sizes == planned().sizes
