"""What a plan says of a run that trains a part of the encoder."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.plan import Conditions
from cutlayer.simulation.plan_comparison import FederatedChoice
from cutlayer.simulation.plan_model import PlannedModel, plan_model
from cutlayer.simulation.plan_report import make_report
from cutlayer.simulation.plan_sites import CountChoice, DataChoice
from cutlayer.simulation.plan_text import print_plan
from cutlayer.simulation.plan_wire import Link
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


def choice_of(data: str | None) -> DataChoice | CountChoice:
    return CountChoice(100, 20, 2) if data is None else DataChoice(data, {}, 2)


@pytest.mark.parametrize(
    ("data", "sections"),
    [("demo:digits", {}), (None, {"tokenizers": {"mode": "trainable"}, "activations": {"mode": "every-step"}})],
    ids=["with data", "trained"],
)
def test_tokenizers_that_a_plan_does_not_have_are_told(data: str | None, sections: dict[str, Any]) -> None:
    document = small_settings(**sections).model_dump() | {"modalities": {"image": {"kind": "tokens", "num_tokens": 4}}}
    settings = RunSettings.model_validate(document)
    conditions = Conditions(Link("5", 1_000_000), 1, 30.0)
    with pytest.raises(SettingsError, match="plan with --samples N"):
        make_report(
            settings,
            plan_model(settings),
            choice_of(data),
            conditions,
            FederatedChoice(10, (1,), 8),
            worker="w0",
            announce=lambda _: None,
        )


def test_tokens_of_the_sites_own_are_bounded_and_their_work_is_not_made_up() -> None:
    document = small_settings().model_dump() | {"modalities": {"image": {"kind": "tokens", "num_tokens": 4}}}
    settings = RunSettings.model_validate(document)
    report = make_report(
        settings,
        plan_model(settings),
        choice_of(None),
        Conditions(Link("5", 1_000_000), 1, 30.0, duration_s=60.0, forward_s=0.001),
        FederatedChoice(10, (1,), 8),
        worker="w0",
        announce=lambda _: None,
    )
    console = Console(width=300, record=True, file=io.StringIO())
    print_plan(console, report)
    text = console.export_text()
    assert "What the tokenizers of the sites' own take is for each site to say" in text
    assert report.comparison.plan.whole.up > 100 * 4 * 16 * 4
