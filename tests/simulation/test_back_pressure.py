"""A slow worker slows its agents down, and nothing grows: not in hundreds of windows, not in real processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from cutlayer.broker.budget import budget_of
from cutlayer.edge_agent.runtime import AgentRuntime
from support.brokers import mosquitto_test, running_broker
from support.paced import PacedNetwork
from support.processes import DIGITS_FILE, Process, script
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker

NUM_AGENTS = 4
NUM_STEPS = 200
MICROBATCH = 4
WORKER = "w0"


def sizes(network: PacedNetwork, worker: Worker, agents: list[AgentRuntime]) -> dict[str, int]:
    """Return how much of everything that could grow there is now."""
    couriers = [worker.runtime._courier, *(agent._courier for agent in agents)]
    scheduler = worker.session._run.scheduler
    return {
        "broker bytes": network.num_broker_bytes,
        "queued bytes": network.queued_bytes,
        "packets on their way": sum(transport.num_on_their_way for transport in network.transports.values()),
        "live graphs": worker.counter.num_live_graphs,
        "live samples": worker.counter.live_samples,
        "groups": len(scheduler._groups),
        "exchanges": worker.session.num_live,
        "former leases": len(worker.session.leases._former),
        "ledger bytes": len(worker.session.ledger.to_bytes()),
        "reassembler bytes": sum(courier._reassembler.reserved_bytes for courier in couriers),
        "sent chunks bytes": sum(courier._sent._num_bytes for courier in couriers),
        "unfinished topics": sum(len(courier._unfinished) for courier in couriers),
        "watched messages": sum(len(courier._watch._rooms) for courier in couriers)
        if hasattr(couriers[0]._watch, "_rooms")
        else 0,
        "outstanding": sum(agent._session.num_outstanding for agent in agents),
        "run book entries": len(worker.book.latest()),
    }


def peaks(rows: list[Mapping[str, int]]) -> dict[str, int]:
    return {what: max(row[what] for row in rows) for what in rows[0]}


@pytest.mark.parametrize("max_packet_bytes", [700, 1_000_000])
@pytest.mark.parametrize("worker_s", [0.05, 2.0], ids=["answers in time", "answers after the first deadline"])
def test_slow_worker_slows_agents_down_and_nothing_grows(worker_s: float, max_packet_bytes: int) -> None:
    """With 2 s a message, each of eight microbatches waits 16 s for its outputs, and agents repeat after 5 s."""
    topics = [f"site/{index}" for index in range(NUM_AGENTS)]
    network = PacedNetwork({**dict.fromkeys(topics, 0.001), WORKER: worker_s}, max_packet_bytes=max_packet_bytes)
    settings = small_settings(
        run={"min_agents": NUM_AGENTS, "epochs": 1, "microbatch_samples": MICROBATCH},
        window={"mode": "asynchronous", "samples": 2 * MICROBATCH, "max_staleness": 16},
        evaluation={"every_epochs": 0},
        worker={"lease_s": 300.0},
    )
    worker = Worker(network, settings)
    agents = [
        network.add_agent(topic, small_dataset(index, NUM_STEPS * MICROBATCH)) for index, topic in enumerate(topics)
    ]
    num_windows = NUM_AGENTS * NUM_STEPS // 2
    network.run(lambda: worker.session.window >= 20)
    start_s = network.clock()
    rows: list[tuple[int, Mapping[str, int]]] = []
    while worker.session.window < num_windows - 20:
        assert network.step()
        rows.append((worker.session.window, sizes(network, worker, agents)))
    first = peaks([row for window, row in rows if window < num_windows // 2])
    second = peaks([row for window, row in rows if window >= num_windows // 2])
    print(first, second)
    assert {what: size for what, size in second.items() if size > first[what]} == {}
    # Outputs and commit of each microbatch: the worker has no idle moment, and the agents keep its pace.
    busy_s = worker_s * 2 * 2 * (num_windows - 40)
    assert network.clock() - start_s == pytest.approx(busy_s, rel=0.1)
    budget = budget_of(
        worker.manifest,
        credits=settings.worker.credits,
        num_agents=NUM_AGENTS,
        max_packet_bytes=max_packet_bytes,
    )
    assert second["outstanding"] <= NUM_AGENTS * settings.worker.credits
    if worker_s < 1.0:
        assert second["queued bytes"] <= budget.total_bytes
