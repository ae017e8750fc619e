"""A slow worker slows its agents down, and nothing grows: not in hundreds of windows, not in real processes."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from cutlayer.broker.budget import budget_of
from cutlayer.broker.sent_chunks import SentChunks
from cutlayer.edge_agent.runtime import AgentRuntime
from support.brokers import mosquitto_test, running_broker
from support.paced import PacedNetwork
from support.processes import DIGITS_FILE, Process, script, windows_of
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker
from support.waiting import until

NUM_AGENTS = 4
NUM_STEPS = 200
MICROBATCH = 8
"""Of 8 tokens of 16 float32 a sample: 4 kB, four chunks in the smaller packets."""
SLACK = 1.1
"""The second half may have a tenth more than the first: who waits where is no two times the same."""
WORKER = "w0"
SLOW_WORKER = Path(__file__).parents[1] / "support" / "slow_worker.py"
WARM_UP_WINDOWS = 60
EVERY_WINDOWS = 3
NUM_SAMPLES = 20
"""In each third."""


def sizes(network: PacedNetwork, worker: Worker, agents: list[AgentRuntime]) -> dict[str, int]:
    """Return how much of everything that could grow there is now."""
    couriers = [worker.runtime._courier, *(agent._courier for agent in agents)]
    in_hand = worker.session._run.in_hand
    return {
        "broker bytes": network.num_broker_bytes,
        "queued bytes": network.queued_bytes,
        "packets on their way": sum(transport.num_on_their_way for transport in network.transports.values()),
        "live graphs": worker.counter.num_live_graphs,
        "live samples": worker.counter.live_samples,
        "groups": len(in_hand.groups),
        "exchanges": worker.session.num_live,
        "former leases": len(worker.session.leases._former),
        "ledger bytes": len(worker.session.ledger.to_bytes()),
        "reassembler bytes": sum(courier._reassembler.reserved_bytes for courier in couriers),
        "sent chunks bytes": sum(courier._sent._num_bytes for courier in couriers),
        "unfinished topics": sum(len(courier._unfinished) for courier in couriers),
        "watched messages": sum(len(courier._watch._watched) for courier in couriers),
        "paces": len(in_hand.pace),
        "outstanding": sum(agent._session.num_outstanding for agent in agents),
        "run book entries": len(worker.book.latest()),
    }


def peaks(rows: list[Mapping[str, int]]) -> dict[str, int]:
    return {what: max(row[what] for row in rows) for what in rows[0]}


@pytest.mark.parametrize("max_packet_bytes", [1_400, 1_000_000])
@pytest.mark.parametrize("worker_s", [0.05, 2.0], ids=["answers in time", "answers after the first deadline"])
def test_slow_worker_slows_agents_down_and_nothing_grows(worker_s: float, max_packet_bytes: int) -> None:
    """With 2 s a message, eight microbatches wait longer for their outputs than agents wait at first."""
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
    for agent in agents:  # what is kept for single chunks has a bound of its own, which is to be reached here
        agent._courier._sent = SentChunks(kept_bytes=10 * MICROBATCH * 512)
    network.run(lambda: worker.session.window >= 20)
    start_s = network.clock()
    rows: list[tuple[int, Mapping[str, int]]] = []
    while worker.session.window < num_windows - 20:
        assert network.step()
        rows.append((worker.session.window, sizes(network, worker, agents)))
    first = peaks([row for window, row in rows if window < num_windows // 2])
    second = peaks([row for window, row in rows if window >= num_windows // 2])
    assert {what: size for what, size in second.items() if size > SLACK * first[what]} == {}
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
    assert second["queued bytes"] <= budget.total_bytes


@mosquitto_test
@pytest.mark.slow
def test_no_process_of_a_run_with_a_slow_worker_grows(tmp_path: Path) -> None:
    """Resident memory over windows: the last third's median is not above the middle third's by more than 3 %."""
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker("mosquitto"))
        command = [sys.executable, str(SLOW_WORKER), "--run", str(DIGITS_FILE), "--broker", broker.url]
        command += ["--min-agents", "2", "--epochs", "1000", "--http-port", "0", "--output", str(tmp_path / "run")]
        processes = {"broker": broker.pid}
        worker = stack.enter_context(Process(command, tmp_path / "worker.log"))
        processes["worker"] = worker.pid
        for index in range(2):
            command = [script("edge-agent"), "start", "--topic", f"site/{index}", "--data", "demo:digits"]
            command += ["--shard", f"{index}/2", "--broker", broker.url, "--quiet"]
            agent = stack.enter_context(Process(command, tmp_path / f"agent-{index}.log"))
            processes[f"agent {index}"] = agent.pid
        rows = []
        for number in range(3 * NUM_SAMPLES):
            # By what they have done, not by the clock: else a slow machine would be measured while it warms up.
            wait_for_windows(worker, WARM_UP_WINDOWS + EVERY_WINDOWS * number)
            rows.append({name: rss_bytes(pid) for name, pid in processes.items()})
        assert worker.is_running(), worker.text()
    for name in processes:
        middle = statistics.median(row[name] for row in rows[NUM_SAMPLES : 2 * NUM_SAMPLES])
        last = statistics.median(row[name] for row in rows[2 * NUM_SAMPLES :])
        print(f"{name}: {middle / 1e6:.1f} MB -> {last / 1e6:.1f} MB")
        assert last <= 1.03 * middle, name


def wait_for_windows(worker: Process, count: int) -> None:
    until(lambda: windows_of(worker) >= count, f"{count} windows", every_s=0.2)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1_024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
