"""Links that are slow, lossy, or gone for half an hour, with the deadlines and leases that users have by default.

Nobody helps: each run ends by itself, and each step is committed once.
"""

from __future__ import annotations

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import Traffic
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, committed_once, run_until_over

MODES = pytest.mark.parametrize("mode", ["asynchronous", "synchronous"])
SLOW_BYTES_PER_S = 8_000
"""64 kbit/s."""
HALF_AN_HOUR_S = 1_800.0
SAMPLES = {"site/0": 64, "site/1": 128, "site/2": 192}


def slow_link(seed: int, loss: float = 0.05) -> LinkFaults:
    return LinkFaults(seed=seed, loss=loss, delay_s=0.3, jitter_s=0.1, bytes_per_s=SLOW_BYTES_PER_S)


def settings_of(mode: str, *, width: int = 64, microbatch_samples: int = 16, epochs: int = 4) -> RunSettings:
    """Microbatches of 8 tokens a sample and so wide, as float32: 32 KiB where nothing is given, 4 s of such a link."""
    options = {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": width, "depth": 1, "num_heads": 2}
    return small_settings(
        run={"min_agents": 3, "epochs": epochs, "microbatch_samples": microbatch_samples},
        window={"mode": mode, "samples": 2 * microbatch_samples},
        model={"options": options},
    )


def start(network: VirtualNetwork, link: LinkFaults, samples: dict[str, int] = SAMPLES) -> list[AgentRuntime]:
    return [
        network.add_agent(topic, small_dataset(int(topic[-1]), num_train, num_test=64), up=link, down=link)
        for topic, num_train in samples.items()
    ]


def steps_of(settings: RunSettings, samples: dict[str, int] = SAMPLES) -> dict[tuple[str, str, int], int]:
    run = settings.run
    return committed_once({topic: run.epochs * num // run.microbatch_samples for topic, num in samples.items()})


def traffic_of(worker: Worker, kind: str) -> list[Traffic]:
    """Return what the agents have counted of one kind of message."""
    return [row for _, entry in worker.book.latest() for row in entry.traffic if row.kind == kind]


@MODES
@pytest.mark.parametrize("seed", range(3))
def test_run_over_64_kbit_a_second_that_lose_a_twentieth_ends_by_itself(mode: str, seed: int) -> None:
    network = VirtualNetwork(max_packet_bytes=4_000)
    settings = settings_of(mode)
    worker = Worker(network, settings)
    agents = start(network, slow_link(seed))
    run_until_over(network, worker, agents)
    assert worker.counter.committed == steps_of(settings)
    # Nine pieces a message: more than a third of the messages come without one. Pieces mend that, not whole messages:
    # those that were sent again for other reasons are a few.
    num_microbatches = sum(row.messages for row in traffic_of(worker, "Activations"))
    num_needed = len(steps_of(settings)) + sum(3 * (settings.run.epochs + 3) * 64 // 64 for _ in SAMPLES)
    assert sum(row.messages for row in traffic_of(worker, "Chunk")) > 20
    assert num_microbatches < 1.5 * num_needed


@MODES
@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.parametrize("max_packet_bytes", [20_000, 131_072])
def test_message_that_takes_longer_than_a_lease_lasts_gets_through(
    mode: str, loss: float, max_packet_bytes: int
) -> None:
    """Each piece that comes is a sign of life, or a lease would run out while its agent sends."""
    network = VirtualNetwork(max_packet_bytes=max_packet_bytes)
    settings = settings_of(mode, width=384, microbatch_samples=32, epochs=1)
    assert settings.worker.lease_s < 32 * 8 * 384 * 4 / SLOW_BYTES_PER_S
    samples = {"site/0": 128, "site/1": 128, "site/2": 128}
    worker = Worker(network, settings)
    agents = start(network, slow_link(1, loss), samples)
    run_until_over(network, worker, agents)
    assert worker.counter.committed == steps_of(settings, samples)


@pytest.mark.slow
@MODES
def test_agent_whose_link_is_gone_for_half_an_hour_goes_on_where_it_was(mode: str) -> None:
    network = VirtualNetwork(max_packet_bytes=20_000)
    settings = settings_of(mode, width=192, microbatch_samples=32, epochs=14)
    samples = dict.fromkeys(SAMPLES, 192)
    worker = Worker(network, settings)
    agents = start(network, slow_link(3, loss=0.0), samples)
    network.run(lambda: network.clock() > 300.0)
    cut_off(network, "site/1")
    network.run(lambda: len(worker.session.leases) == 2)
    network.run(lambda: len(worker.session.leases) == 3)
    run_until_over(network, worker, agents)
    assert worker.counter.committed == steps_of(settings, samples)


def cut_off(network: VirtualNetwork, client_id: str) -> None:
    """Break a client's connection; its next attempt is half an hour later."""
    usual_s, network.broker.reconnect_delay_s = network.broker.reconnect_delay_s, HALF_AN_HOUR_S
    network.broker.cut(client_id)
    network.broker.reconnect_delay_s = usual_s


@MODES
@pytest.mark.parametrize("at_s", [100.0, 250.0])
def test_run_goes_on_after_its_broker_was_away_for_half_an_hour_and_has_forgotten_all(mode: str, at_s: float) -> None:
    network = VirtualNetwork(max_packet_bytes=4_000)
    settings = settings_of(mode)
    worker = Worker(network, settings)
    agents = start(network, slow_link(3))
    network.run(lambda: network.clock() > at_s)
    assert 0 < len(worker.counter.committed) < len(steps_of(settings))
    network.broker.stop()
    network.run(lambda: network.clock() > at_s + HALF_AN_HOUR_S)
    network.broker.start()
    run_until_over(network, worker, agents)
    assert worker.counter.committed == steps_of(settings)
