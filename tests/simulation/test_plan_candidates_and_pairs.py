"""Plans of runs that judge candidates, and of retrieval, against the runs."""

from __future__ import annotations

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.plan_model import plan_model
from cutlayer.simulation.plan_schedule import Stage
from cutlayer.simulation.plan_sites import CountChoice, sites_from_counts
from support.planned_run import NUM_TEST, SIZES, assert_planned, run_and_plan, settings_of, with_sections
from support.small_run import small_dataset

LINK = LinkFaults(delay_s=0.01)
JUDGED = {"keep": "best", "val_ratio": 0.4}
"""So that each site has 32 samples to tell of."""


def of_candidates(mode: str, codecs: str) -> RunSettings:
    return with_sections(settings_of(mode, codecs), evaluation=JUDGED)


@pytest.mark.parametrize("mode", ["once", "every-step", "delta"])
def test_validation_of_candidates_is_planned(mode: str) -> None:
    settings = of_candidates(mode, "int8+zstd")
    plan, agents = run_and_plan(settings, LINK)
    assert [site.num_val for site in plan.sites] == [60, 36]
    assert [site.num_train for site in plan.sites] == [90, 54]
    assert_planned(plan, agents)
    without, _ = run_and_plan(settings_of(mode, "int8+zstd"), LINK)
    assert plan.of_stage(Stage.FIRST_EPOCH).up < 0.7 * without.of_stage(Stage.FIRST_EPOCH).up


def test_offers_of_candidates_have_the_tokenizers_that_are_trained() -> None:
    trained = {"mode": "trainable", "every_steps": 3, "every_windows": 100}
    settings = with_sections(of_candidates("every-step", "identity"), tokenizers=trained)
    plan, agents = run_and_plan(settings, LINK)
    assert_planned(plan, agents)


def test_a_plan_without_data_sets_validation_samples_aside() -> None:
    model = plan_model(of_candidates("once", "identity"))
    sites = list(sites_from_counts(model, CountChoice(sum(SIZES), 2 * NUM_TEST, 2), worker="w0"))
    assert [(site.num_train, site.num_val) for site in sites] == [(72, 48), (72, 48)]
    few = list(sites_from_counts(model, CountChoice(2 * 70, 2 * NUM_TEST, 2), worker="w0"))
    assert [(site.num_train, site.num_val) for site in few] == [(70, 0)] * 2, "28 samples cannot be told of"


def pairs() -> list[ArrayDataset]:
    made = [small_dataset(index, num_train, NUM_TEST) for index, num_train in enumerate(SIZES)]
    return [ArrayDataset("pairs", (), each.modalities, each.splits) for each in made]


@pytest.mark.parametrize("mode", ["once", "every-step"])
@pytest.mark.parametrize("negatives", ["window", "agent"])
def test_retrieval_is_planned(mode: str, negatives: str) -> None:
    document = with_sections(settings_of(mode, "int4"), model={"fusion": "late"}).model_dump(mode="json")
    task = {"kind": "retrieval", "between": ["audio", "image"], "dimensions": 16, "negatives": negatives}
    settings = RunSettings.model_validate({**document, "task": task})
    plan, agents = run_and_plan(settings, LINK, samples=pairs())
    assert_planned(plan, agents)
