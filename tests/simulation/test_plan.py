"""What stands beside a plan's bytes: schedules, operations, memory, alternatives, and which of them is cheaper."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cutlayer.broker.actions import Publish
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import AgentState, serialize
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.work_items import WorkItems
from cutlayer.server_worker.federated_averaging import federated_averaging_bytes
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.simulation.plan import Conditions, RunPlan, plan_run
from cutlayer.simulation.plan_alternatives import federated_full, federated_last_blocks, federated_lora
from cutlayer.simulation.plan_comparison import FederatedChoice, compare, verdicts
from cutlayer.simulation.plan_compute import feature_flops, forward_flops, projection_flops, raw_sample_bytes
from cutlayer.simulation.plan_evaluations import evaluation_batches
from cutlayer.simulation.plan_model import PlannedModel, plan_model
from cutlayer.simulation.plan_schedule import Stage, schedule
from cutlayer.simulation.plan_sites import CountChoice, sites_from_counts
from cutlayer.simulation.plan_wire import Link
from support.processes import DIGITS_FILE
from support.small_run import AUDIO, IMAGE, small_settings

BOTH = ("audio", "image")


def counted(settings: RunSettings, num_train: int, up_rate: float | None = None) -> tuple[PlannedModel, RunPlan]:
    model = plan_model(settings)
    sites = list(sites_from_counts(model, CountChoice(num_train, None, 2), worker="w0"))
    conditions = Conditions(Link(), 2, 30.0, duration_s=60.0, up_rate=up_rate, down_rate=up_rate and 1e9)
    return model, plan_run(model.manifest, model.tokenizer_file, sites, conditions)


def test_schedule_has_the_steps_and_evaluations_that_an_agent_does() -> None:
    manifest = plan_model(small_settings(run={"epochs": 5}, evaluation={"every_epochs": 2, "samples": 9})).manifest
    plan = EpochPlan(0, "site/0", 5, 18, 22, 4)
    items = WorkItems(plan, BOTH, every_epochs=2, evaluation_samples=9)
    done: Counter[tuple[str, tuple[str, ...], int]] = Counter()
    while (item := items.next(may_train=True)) is not None:
        done[item.mode, item.given, len(item.indices)] += 1
    items.start_final_evaluations()
    while (item := items.next(may_train=True)) is not None:
        done[item.mode, item.given, len(item.indices)] += 1
    planned: Counter[tuple[str, tuple[str, ...], int]] = Counter()
    for alike in schedule(manifest, plan, mode="once", num_credits=2):
        planned[alike.mode, alike.given, alike.num_samples] += alike.count
        assert all(len(example.indices_B) == alike.num_samples for example in alike.examples)
    assert planned == done


def test_only_first_visits_go_as_tensors_where_samples_are_kept() -> None:
    manifest = plan_model(small_settings(run={"epochs": 3})).manifest
    plan = EpochPlan(0, "site/0", 3, 16, 40, 4)
    kinds = schedule(manifest, plan, mode="once", num_credits=2)
    fresh = {stage: sum(a.count * a.num_fresh for a in kinds if a.stage is stage) for stage in Stage}
    assert fresh == {Stage.FIRST_EPOCH: 16, Stage.LATER_EPOCHS: 0, Stage.EVALUATION: 40}


def test_a_batch_that_is_not_answered_yet_goes_as_tensors_again() -> None:
    """All test samples in one batch: the evaluation with audio alone follows while that with both is out."""
    manifest = plan_model(small_settings(run={"epochs": 1}, evaluation={"every_epochs": 0})).manifest
    plan = EpochPlan(0, "site/0", 1, 16, 4, 4)
    known = {
        batch.evaluation.given: batch.num_known
        for batch in evaluation_batches(manifest, plan, BOTH, is_kept=True, num_credits=2)
    }
    assert known == {BOTH: 0, ("audio",): 0, ("image",): 4}


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_forward_operations_are_those_that_torch_counts(fusion: str) -> None:
    model = plan_model(small_settings(model={"fusion": fusion}))
    batch = 3
    tokens = {name: torch.zeros(batch, 4, model.manifest.width) for name in BOTH}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encoder(tokens)
    assert forward_flops(model.sizes) * batch == counter.get_total_flops()


def test_projection_operations_are_two_for_each_weight_and_token() -> None:
    model = plan_model(small_settings())
    assert projection_flops(model.manifest) == 2 * 4 * 4 * 16 + 2 * 4 * 4 * 16


def test_features_cost_by_the_formula() -> None:
    assert feature_flops({"image": IMAGE}) == 3 * 16
    frame = 16 + 2.5 * 16 * 4 + 3 * 9 + 2 * 9 * 4 + 3 * 4
    assert feature_flops({"audio": AUDIO}) == round(4 * frame)


def test_raw_samples_are_bytes_and_pairs_of_bytes() -> None:
    assert raw_sample_bytes({"audio": AUDIO, "image": IMAGE}) == 16 + 2 * (3 * 8 + 16)


def test_federated_averaging_of_everything_is_what_a_run_record_says() -> None:
    model = plan_model(load_run_settings(DIGITS_FILE))
    kind = federated_full(model.sizes, 10, 0)
    assert model.sizes.num_parameters == 808_202
    assert 4 * kind.total_bytes == federated_averaging_bytes(808_202, 10, 4)


def test_last_blocks_and_lora_count_the_parameters_of_the_modules() -> None:
    model = plan_model(load_run_settings(DIGITS_FILE))
    encoder, width = model.encoder, 128
    head = sum(parameter.numel() for parameter in encoder.head.parameters())
    norms = sum(parameter.numel() for parameter in encoder.vit.norm.parameters())
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in encoder.vit.blocks]
    assert federated_last_blocks(model.sizes, 1, 1, 0).num_trained == blocks[-1] + norms + head
    assert federated_last_blocks(model.sizes, 2, 1, 0).num_trained == sum(blocks[-2:]) + norms + head
    lora = federated_lora(model.sizes, 8, 1, 0)
    assert lora.num_trained == 4 * (8 * (width + 3 * width) + 8 * (width + width)) + head
    for kind in (federated_last_blocks(model.sizes, 2, 3, 0), lora):
        assert kind.num_trained + kind.num_frozen >= model.sizes.num_parameters
        assert kind.down_bytes - kind.up_bytes == 4 * kind.num_frozen


def test_more_blocks_than_there_are_is_an_error_with_a_fix() -> None:
    with pytest.raises(SettingsError, match=r"(?s)--fed-blocks 3 of a model that has 2.*1 to 2"):
        federated_last_blocks(plan_model(small_settings()).sizes, 3, 1, 0)


def test_verdicts_name_the_cheaper_one_whichever_it_is() -> None:
    model, few = counted(small_settings(), 100)
    sentences = verdicts(compare(few, model.sizes, FederatedChoice(rounds=10_000)))
    assert all(text.startswith("This run is cheaper than federated averaging of") for text in sentences[:-1])
    _, many = counted(small_settings(), 50_000)
    comparison = compare(many, model.sizes, FederatedChoice(rounds=1))
    sentences = verdicts(comparison)
    assert sentences[0].startswith("Federated averaging of all parameters is cheaper than this run:")
    assert many.whole.both > comparison.raw_bytes
    assert sentences[-1].startswith("Sending the raw data once is cheaper than this run:")


def test_without_data_a_plan_is_an_upper_bound_and_grows_with_the_samples() -> None:
    _, small = counted(small_settings(codecs={"activations": "int8+zstd"}), 100)
    _, large = counted(small_settings(codecs={"activations": "int8+zstd"}), 1_000)
    grown = large.of_stage(Stage.FIRST_EPOCH).up / small.of_stage(Stage.FIRST_EPOCH).up
    assert grown == pytest.approx(10, rel=0.02)


def test_agents_without_data_are_each_in_the_plan() -> None:
    model = plan_model(small_settings())
    sites = list(sites_from_counts(model, CountChoice(1_003, 50, 100), worker="w0"))
    plan = plan_run(model.manifest, model.tokenizer_file, sites, Conditions(Link(), 2, 30.0, duration_s=60.0))
    assert [site.agent for site in plan.sites] == [f"clinic/{index:02d}" for index in range(100)]
    assert (plan.num_train, plan.num_test) == (1_003, 50)
    alone = plan_run(model.manifest, model.tokenizer_file, sites[:1], Conditions(Link(), 2, 30.0, duration_s=60.0))
    assert plan.sites[0].whole.both == pytest.approx(alone.sites[0].whole.both, rel=0.01)


def test_time_on_a_link_is_that_of_its_slower_direction() -> None:
    _, plan = counted(small_settings(), 1_000, up_rate=1_000.0)
    assert plan.transfer_s == pytest.approx(max(site.whole.up for site in plan.sites) / 1_000)


@pytest.mark.parametrize("payload_bytes", [10, 5_000])
def test_a_message_costs_what_the_memory_transport_counts(payload_bytes: int) -> None:
    ticks = itertools.count()
    transport = MemoryTransport(MemoryBroker(lambda: float(next(ticks)), max_packet_bytes=1_000_000), "a")
    transport.connect(None)
    transport.poll()
    before = transport.wire
    state = AgentState(True, payload_bytes)
    transport.publish("site/0/state", serialize(state))
    transport.poll()
    after = transport.wire
    ways = Link("3.1.1").up(Publish("site/0/state", state))
    assert (ways.up, ways.down) == (
        after.sent_bytes - before.sent_bytes,
        after.received_bytes - before.received_bytes,
    )


def test_counts_and_agents_that_do_not_fit_are_refused() -> None:
    model = plan_model(small_settings())
    with pytest.raises(SettingsError, match=r"--samples 3 for 4 agents"):
        list(sites_from_counts(model, CountChoice(3, None, 4), worker="w0"))
    with pytest.raises(SettingsError, match=r"--agents 0"):
        list(sites_from_counts(model, CountChoice(3, None, 0), worker="w0"))
