"""What a broker may have to hold: computed before the run, and held to by real ones whose worker does not listen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.budget import SHIPPED_MOSQUITTO, BrokerBudget, budget_of
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.launcher_mosquitto import write_configuration
from cutlayer.broker.messages import RunPhase
from support.paced import PacedNetwork
from support.small_run import small_dataset, small_settings
from support.synthetic_run import synthetic_manifest
from support.virtual_run import Worker

NUM_AGENTS = 4
FOLDER = Path(__file__).parents[2] / "broker"


def budget(**changes: int | bool) -> BrokerBudget:
    given: dict[str, int | bool] = {"credits": 2, "num_agents": 4, "max_packet_bytes": 1_000_000, **changes}
    return budget_of(synthetic_manifest(), **given)  # type: ignore[arg-type]  # numbers and flags by their names


def test_budget_is_agents_times_credits_times_the_largest_message() -> None:
    one, four = budget(num_agents=1), budget()
    assert four.total_bytes == 4 * one.total_bytes == 4 * 2 * four.message_bytes
    assert budget(credits=6).agent_bytes == 3 * four.agent_bytes
    # Two modalities of 16 tokens, 32 samples, width 128, a byte an element and 8 a token: 139 kB, and little beside.
    tensor_bytes = 32 * (16 + 16) * (128 + 8)
    assert tensor_bytes < four.message_bytes < 1.02 * tensor_bytes


def test_outputs_count_where_they_are_larger_than_the_activations() -> None:
    manifest = synthetic_manifest()
    many = manifest.model_copy(update={"task": manifest.task.model_copy(update={"classes": ("a", "b") * 5_000})})
    assert budget_of(many, credits=2, num_agents=4, max_packet_bytes=1_000_000).message_bytes > 32 * 10_000 * 2


def test_chunks_cost_their_headers() -> None:
    whole, pieces = budget(), budget(max_packet_bytes=4_000)
    assert whole.message_packets == 1
    assert 140_000 / 4_000 < pieces.message_packets < 140_000 / 3_500
    assert whole.message_bytes < pieces.message_bytes < 1.1 * whole.message_bytes


def test_microbatch_that_no_message_carries_is_refused_with_the_fix() -> None:
    manifest = synthetic_manifest().model_copy(update={"microbatch_samples": 65_536})
    with pytest.raises(SettingsError, match=r"lower run\.microbatch_samples"):
        budget_of(manifest, credits=1, num_agents=1, max_packet_bytes=1_000_000)


def test_line_says_the_sum_and_what_another_agent_adds() -> None:
    assert str(BrokerBudget(4, 2, 98_000, 1)) == (
        "broker budget: 4 agents x 2 credits x 98 kB = 784 kB of messages in flight "
        "(196 kB for each further agent, and as much in each agent's memory)"
    )
    assert "1 agent x 1 credit x 512 B = 512 B for each worker of the pool" in str(BrokerBudget(1, 1, 512, 1, True))


def test_usual_run_has_no_problem() -> None:
    assert list(budget().problems(BrokerSettings())) == []


@pytest.mark.parametrize(
    ("large", "names"),
    [
        (BrokerBudget(1_000, 4, 98_000, 1), ["received packets", "let 1,000 packets wait", "max_queued_messages"]),
        (BrokerBudget(100, 4, 98_000, 3), ["max_queued_messages"]),
        (BrokerBudget(4, 16, 60_000_000, 70), ["received packets", "1,120", "max_queued_messages", "memory_limit"]),
    ],
)
def test_what_is_known_to_allow_less_is_named_with_its_fix(large: BrokerBudget, names: list[str]) -> None:
    problems = list(large.problems(BrokerSettings()))
    assert len(problems) == len(names)
    for problem, name in zip(problems, names, strict=True):
        assert name in problem
        assert re.search(r": (lower|raise) ", problem)


@pytest.mark.parametrize("source", ["shipped", "launched"])
def test_limits_are_those_of_the_mosquitto_that_we_ship_and_start(source: str, tmp_path: Path) -> None:
    path = FOLDER / "mosquitto.conf"
    if source == "launched":
        path = write_configuration(BrokerOptions(), 1883, tmp_path, None)
    for key in ("max_queued_messages", "max_inflight_messages", "memory_limit"):
        assert re.findall(rf"(?m)^{key} (\d+)$", path.read_text()) == [str(getattr(SHIPPED_MOSQUITTO, key))]


def peak_bytes_of_a_stall(codec: str, max_packet_bytes: int, after_windows: int) -> tuple[int, int]:
    """Let the worker's link slow down to a byte a second for a minute; return the broker's peak and the budget."""
    options = {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 1, "num_heads": 2}
    settings = small_settings(
        run={"min_agents": NUM_AGENTS, "epochs": 4, "microbatch_samples": 32},
        model={"options": options},
        window={"mode": "asynchronous", "samples": 64},
        codecs={"activations": codec},
    )
    # Repetitions come beside the budget; nobody repeats here.
    network = PacedNetwork(deadlines=Deadlines(step_s=600.0), max_packet_bytes=max_packet_bytes)
    worker = Worker(network, settings)
    for index in range(NUM_AGENTS):
        network.add_agent(f"site/{index}", small_dataset(index, 256))
    network.run(lambda: worker.session.phase is RunPhase.TRAINING and worker.session.window >= after_windows)
    network.transports["w0"]._down.faults = LinkFaults(bytes_per_s=1.0)
    peak, until = 0, network.clock() + 60.0
    while network.clock() < until:
        network.step()
        peak = max(peak, network.num_broker_bytes)
    assert worker.session.window <= after_windows + 4, "the worker is stalled"
    budget = budget_of(worker.manifest, credits=2, num_agents=NUM_AGENTS, max_packet_bytes=max_packet_bytes)
    return peak, budget.total_bytes


@pytest.mark.parametrize("max_packet_bytes", [4_000, 1_000_000])
@pytest.mark.parametrize("codec", ["identity", "int8", "fp16", "int8+zstd"])
def test_broker_of_a_worker_that_stalls_fills_the_budget_and_no_more(codec: str, max_packet_bytes: int) -> None:
    peak, allowed = peak_bytes_of_a_stall(codec, max_packet_bytes, 0)
    # The longest names and numbers, and for zstd data that do not compress, are what is left.
    assert (0.85 if "zstd" in codec else 0.9) * allowed < peak <= allowed


@pytest.mark.parametrize("after_windows", [1, 2, 7])
def test_broker_of_a_worker_that_stalls_in_the_middle_stays_within_the_budget(after_windows: int) -> None:
    peak, allowed = peak_bytes_of_a_stall("identity", 1_000_000, after_windows)
    assert 0 < peak <= allowed
