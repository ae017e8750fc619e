"""Runs on a budget, in virtual time: a limit of the uplink, a slow link, bytes a sample, and the guard between them."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import Activations, Mode, Telemetry
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.tapped import TappedBroker
from support.virtual_run import Worker, committed_once

SITE = "site/0"
NUM_TRAIN, NUM_TEST, SIZE = 640, 64, 32
LADDER = ("int8", "int4", "int2")
"""512 B a sample as float32; 192, 96 and 64 B with these, at errors of 0.004, 0.08 and 0.35."""
RATE = 8_000.0
"""64 kbit/s."""


def settings_of(epochs: int, mode: str = "every-step", **budget: object) -> RunSettings:
    settings = small_settings(
        run={"epochs": epochs, "microbatch_samples": SIZE},
        budget={"ladder": LADDER, "max_relative_error": 0.9, **budget},
        activations={"mode": mode},
        evaluation={"every_epochs": 2},
    )
    return settings.model_copy(update={"telemetry_share": 0.01})


@dataclass
class Run:
    """A run that has ended.

    Attributes:
        agent: Its agent.
        worker: Its worker.
        broker: What has passed.
        sent: (seconds, bytes that the agent had sent) after each step of the simulation.
    """

    agent: AgentRuntime
    worker: Worker
    broker: TappedBroker
    sent: list[tuple[float, int]] = field(default_factory=list)

    @property
    def last(self) -> Telemetry:
        assert self.agent.reporter.last is not None
        return self.agent.reporter.last

    @property
    def sample_bytes(self) -> float:
        """Bytes for each sample of each step."""
        return self.last.wire_sent_bytes / (self.worker.manifest.epochs * NUM_TRAIN)

    def codecs(self) -> list[str]:
        """Return the codecs of training steps with tensors, in the order of steps."""
        found = {
            message.step: message.tensors[0][1].codec
            for message in self.broker.messages(Activations)
            if message.mode is Mode.TRAIN and message.tensors
        }
        return [found[step] for step in sorted(found)]


def run(
    settings: RunSettings,
    *,
    limit: float | None = None,
    up: LinkFaults | None = None,
    link_at: Callable[[float], float] | None = None,
) -> Run:
    """Let one agent train to the end.

    Args:
        settings: The run.
        limit: Of the agent's uplink, in bytes a second.
        up: Its link.
        link_at: What the link carries at a time, in bytes a second.
    """
    network = VirtualNetwork()
    broker = network.broker = TappedBroker(network)
    store = MemoryActivationStore() if settings.activations.mode == "once" else None
    worker = Worker(network, settings, kept_in=store)
    dataset = small_dataset(0, NUM_TRAIN, NUM_TEST)
    agent = network.add_agent(SITE, dataset, up=up, max_uplink_bytes_per_s=limit)
    done = Run(agent, worker, broker)
    while not (worker.runtime.is_finished and agent.is_finished):
        assert network.step(), "somebody has something to do"
        assert network.clock() < 3_600.0
        done.sent.append((network.clock(), agent._transport.wire.sent_bytes))
        if link_at is not None and up is not None:
            agent._transport._up.faults = LinkFaults(bytes_per_s=link_at(network.clock()), delay_s=up.delay_s)  # type: ignore[attr-defined]
    last = done.last
    assert last.steps == last.total_steps == settings.run.epochs * NUM_TRAIN // SIZE
    assert worker.counter.committed == committed_once({SITE: last.total_steps})
    return done


def most_within(sent: list[tuple[float, int]], seconds: float) -> int:
    """Return the most bytes that were sent within any time of so many seconds."""
    times = [time for time, _ in sent]
    totals = [0, *(total for _, total in sent)]
    return max(
        totals[index + 1] - totals[bisect.bisect_left(times, time - seconds)] for index, (time, _) in enumerate(sent)
    )


@pytest.mark.parametrize("ladder", [(), LADDER], ids=["one codec", "a ladder"])
def test_a_limit_of_64_kbit_holds_over_any_ten_seconds_and_everything_is_committed(ladder: tuple[str, ...]) -> None:
    done = run(settings_of(2, ladder=ladder), limit=RATE)
    largest = SIZE * 512 + 200
    assert most_within(done.sent, 10.0) <= RATE * 10 + RATE + largest
    whole_s = done.sent[-1][0]
    assert done.last.wire_sent_bytes >= 0.9 * RATE * (whole_s - 5), "and the rate is used"
    assert 0.8 * whole_s < done.last.paced_s < whole_s
    if not ladder:
        assert set(done.codecs()) == {"identity"}
        assert done.last.codec_changes == 0


def test_a_limit_leads_down_the_ladder_and_the_run_is_over_sooner() -> None:
    fixed, stepping = (run(settings_of(2, ladder=ladder), limit=RATE) for ladder in ((), LADDER))
    assert list(dict.fromkeys(stepping.codecs())) == ["identity", *LADDER]
    assert stepping.last.codec_changes == 3
    assert stepping.sent[-1][0] < fixed.sent[-1][0] / 2


def test_codec_changes_and_waiting_are_metrics_of_the_worker() -> None:
    done = run(settings_of(2), limit=RATE)
    assert done.worker.metric("cutlayer_codec_changes_total") == 3
    assert done.worker.metric("cutlayer_paced_seconds_total") == pytest.approx(done.last.paced_s)
    (row,) = [row for row in done.last.traffic if row.codec == "int4"]
    labels = {"direction": "up", "kind": "Activations", "codec": "int4"}
    assert done.worker.metric("cutlayer_wire_bytes_total", **labels) == row.wire_bytes > 0


def test_without_a_limit_on_a_fast_link_nothing_changes() -> None:
    done = run(settings_of(2), up=LinkFaults(bytes_per_s=10e6, delay_s=0.5))
    assert set(done.codecs()) == {"identity"}
    assert done.last.codec_changes == 0
    assert done.last.paced_s == 0.0


def test_a_slow_link_leads_down_the_ladder_without_any_limit() -> None:
    done = run(settings_of(4), up=LinkFaults(bytes_per_s=RATE, delay_s=0.05))
    assert list(dict.fromkeys(done.codecs())) == ["identity", *LADDER]
    assert done.last.codec_changes == 3


@pytest.mark.parametrize("half_s", [5.0, 20.0])
def test_a_link_that_comes_and_goes_is_followed_without_flapping(half_s: float) -> None:
    def link_at(now: float) -> float:
        return RATE if int(now / half_s) % 2 else 4e6

    done = run(settings_of(32), up=LinkFaults(delay_s=0.05), link_at=link_at)
    num_halves = done.sent[-1][0] / half_s
    assert "identity" in done.codecs()
    assert "int2" in done.codecs() or "int4" in done.codecs()
    rungs = [("identity", *LADDER).index(codec) for codec in done.codecs()]
    assert any(after < before for before, after in itertools.pairwise(rungs)), "and finer again"
    assert done.last.codec_changes <= min(len(LADDER) * num_halves + 1, 16)


@pytest.mark.parametrize("bytes_per_s", [100_000.0, 200_000.0, 400_000.0, 800_000.0])
def test_a_link_between_two_rungs_does_not_make_them_take_turns(bytes_per_s: float) -> None:
    done = run(settings_of(16), up=LinkFaults(bytes_per_s=bytes_per_s, delay_s=0.05))
    # Once down the ladder, and then a few tries: with waits that double, 320 steps have room for no more.
    assert done.last.codec_changes <= len(LADDER) + 8, "of 320 steps"


@pytest.mark.parametrize(("mode", "epochs", "limit"), [("every-step", 6, 150.0), ("once", 10, 60.0)])
def test_bytes_a_sample_are_met(mode: str, epochs: int, limit: float) -> None:
    without = run(settings_of(epochs, mode))
    done = run(settings_of(epochs, mode, bytes_per_sample=limit))
    assert without.sample_bytes > 1.05 * limit
    assert 0.5 * limit < done.sample_bytes <= 1.05 * limit
    assert done.last.codec_changes >= 1


def test_room_under_the_limit_is_used() -> None:
    done = run(settings_of(8, bytes_per_sample=180.0))
    assert done.sample_bytes == pytest.approx(180.0, rel=0.05)


def test_activations_that_go_once_are_not_coarser_for_a_first_epoch_above_the_limit() -> None:
    limit = 90.0  # the first epoch takes more than 500 B a sample, all ten some 76 B
    done = run(settings_of(10, "once", bytes_per_sample=limit))
    assert set(done.codecs()) == {"identity"}
    assert done.last.codec_changes == 0
    assert done.sample_bytes <= limit


def test_the_guard_stops_the_ladder_and_the_limit_holds_nevertheless(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        done = run(settings_of(2, max_relative_error=0.05, bytes_per_sample=100.0), limit=RATE)
    assert set(done.codecs()) == {"int8"}
    largest = SIZE * 192 + 400
    assert most_within(done.sent, 10.0) <= RATE * 10 + RATE + largest
    assert done.last.paced_s > 10.0
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("codec_ladder")]
    assert len(lines) == 3, "one change, and each thing that cannot be met once"
    assert lines[0].startswith("bytes_per_sample = 100 cannot be met: int8")
    assert lines[1].startswith("activations go as int8 instead of identity")
    assert "int8 is the smallest codec of the ladder" in lines[2]


def test_one_seed_sends_the_same_bytes() -> None:
    settings = settings_of(2, bytes_per_sample=160.0)
    link = LinkFaults(seed=3, bytes_per_s=20_000.0, delay_s=0.02, jitter_s=0.05, loss=0.02)
    first, second = (run(settings, limit=RATE, up=link) for _ in range(2))
    assert first.sent[-1][0] == second.sent[-1][0]
    assert first.broker.messages(Activations) == second.broker.messages(Activations)
    assert first.last.codec_changes == second.last.codec_changes > 0


def test_agents_of_a_synchronous_run_wait_for_a_slow_one_and_none_is_lost() -> None:
    network = VirtualNetwork()
    settings = small_settings(
        run={"epochs": 2, "microbatch_samples": SIZE, "min_agents": 2},
        budget={"ladder": LADDER, "max_relative_error": 0.1},
    )
    worker = Worker(network, settings)
    limits = {"site/0": 4_000.0, "site/1": None}
    agents = [
        network.add_agent(topic, small_dataset(index, 320, NUM_TEST), max_uplink_bytes_per_s=limit)
        for index, (topic, limit) in enumerate(limits.items())
    ]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    slow, fast = (agent.reporter.last for agent in agents)
    assert slow is not None
    assert fast is not None
    assert slow.steps == slow.total_steps
    assert fast.steps == fast.total_steps
    assert slow.codec_changes == 2
    assert fast.codec_changes == 0
    assert worker.counter.committed == committed_once(dict.fromkeys(limits, 20))


@pytest.mark.parametrize("bytes_per_s", [1_000.0, 2_000.0])
def test_the_lowest_limits_do_not_stop_a_run(bytes_per_s: float) -> None:
    settings = settings_of(1).model_copy(update={"telemetry_share": 1.0})  # a report each second takes most of it
    done = run(settings, limit=bytes_per_s)
    assert done.last.paced_s > 30.0
