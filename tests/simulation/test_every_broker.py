"""One suite of behaviours over every pair of broker and protocol, with messages larger than each packet limit.

Sessions, drivers, codecs and brokers are the real ones; only the arithmetic is left out. Microbatches are a little
larger than the largest of the limits, so that each goes in 2 to 17 pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.brokers import needs_mosquitto
from support.live_brokers import BROKERS, PERSISTENT_BROKERS, LiveBroker, live_broker
from support.live_network import LiveNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, committed_once

pytestmark = pytest.mark.slow

LIMITS = {"128 KB": 131_072, "1 MB": 1_000_000, "2 MB": 2_000_000}
"""AWS IoT's, the default of many, and the largest of which every microbatch here is larger."""
MICROBATCH_SAMPLES = 64
WIDTH = 1_024
NUM_EPOCHS = 6
STEPS_PER_EPOCH = 2
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH


def cells(brokers: tuple[str, ...]) -> list[object]:
    """Return a parameter for each pair of broker and limit."""
    return [
        pytest.param((name, limit), id=f"{name}, {text}", marks=needs_mosquitto if "mosquitto" in name else ())
        for name in brokers
        for text, limit in LIMITS.items()
    ]


EVERY_BROKER = pytest.mark.parametrize("cell", cells(BROKERS), indirect=True)
EVERY_PERSISTENT_BROKER = pytest.mark.parametrize("cell", cells(PERSISTENT_BROKERS), indirect=True)


@dataclass
class Cell:
    """A broker with a packet limit, and the network of its clients."""

    broker: LiveBroker
    limit_bytes: int
    network: LiveNetwork

    def worker(
        self,
        *,
        min_agents: int = 2,
        store: CheckpointStore | None = None,
        resumes: bool = False,
        epochs: int = NUM_EPOCHS,
    ) -> Worker:
        """Start a worker."""
        # It asks of its network what a LiveNetwork has, too: a clock, connections, and somebody to drive it.
        network = cast("VirtualNetwork", self.network)
        settings = settings_of(min_agents, epochs)
        return Worker(network, settings, store=store, resumes=resumes, every_windows=2)

    def agent(self, index: int, *, num_holes: int = 0) -> AgentRuntime:
        """Start an agent, of whose first messages a piece each may be lost."""
        dataset = small_dataset(index, STEPS_PER_EPOCH * MICROBATCH_SAMPLES, num_test=MICROBATCH_SAMPLES)
        return self.network.add_agent(f"site/{index}", dataset, num_holes=num_holes)

    def finish(self, worker: Worker, *agents: AgentRuntime) -> None:
        """Let everybody work until the run has ended, then look at what has travelled."""
        self.network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
        for _, telemetry in worker.book.latest():
            (sent,) = [row for row in telemetry.traffic if row.kind == "Activations"]
            # But for the two evaluations that are given one modality alone, no microbatch fits a packet. Any of them
            # may have gone again.
            assert sent.raw_bytes > (sent.messages - 2 - telemetry.resends) * self.limit_bytes


@pytest.fixture
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cell]:
    name, limit_bytes = request.param
    folder = tmp_path / "broker"
    folder.mkdir()
    with live_broker(name, limit_bytes, folder) as broker, LiveNetwork(broker) as network:
        yield Cell(broker, limit_bytes, network)


def settings_of(min_agents: int, epochs: int) -> RunSettings:
    """Microbatches of 64 samples of 8 tokens of 1,024 float32: 2,097,152 bytes and what they are wrapped in."""
    options = {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": WIDTH, "depth": 1, "num_heads": 2}
    return small_settings(
        run={"min_agents": min_agents, "epochs": epochs, "microbatch_samples": MICROBATCH_SAMPLES},
        window={"mode": "asynchronous", "samples": MICROBATCH_SAMPLES},
        model={"options": options},
        evaluation={"every_epochs": epochs, "samples": MICROBATCH_SAMPLES},
    )


def all_steps(num_agents: int, epochs: int = NUM_EPOCHS) -> dict[tuple[str, str, int], int]:
    return committed_once({f"site/{index}": STEPS_PER_EPOCH * epochs for index in range(num_agents)})


@EVERY_BROKER
def test_run_in_chunks_ends_with_every_step_committed_once(cell: Cell) -> None:
    worker = cell.worker(epochs=2)
    agents = [cell.agent(index) for index in range(2)]
    cell.finish(worker, *agents)
    assert worker.counter.committed == all_steps(2, epochs=2)
    for _, telemetry in worker.book.latest():
        assert telemetry.rejects == 0
        assert [evaluation.final for evaluation in telemetry.evaluations].count(True) == 3


@EVERY_BROKER
def test_pieces_that_are_lost_are_asked_for_and_sent_again(cell: Cell) -> None:
    worker = cell.worker(min_agents=1, epochs=1)
    cell.finish(worker, cell.agent(0, num_holes=3))
    assert worker.counter.committed == all_steps(1, epochs=1)
    ((_, telemetry),) = worker.book.latest()
    counts = {row.kind: row.messages for row in telemetry.traffic}
    # Two training steps and three evaluations: none of those with a hole went up twice.
    assert counts["Activations"] == 5
    assert counts["Chunk"] >= 3  # a piece that is long in coming is asked for twice


@EVERY_BROKER
def test_agent_that_joins_late_takes_part(cell: Cell) -> None:
    worker = cell.worker(min_agents=1)
    first = cell.agent(0)
    cell.network.run(lambda: worker.session.window >= 3)
    late = cell.agent(1)
    # Else how long it takes to connect would decide whether there is still a run to join.
    cell.network.run(lambda: late.is_leased, resting={"site/0"})
    cell.finish(worker, first, late)
    assert worker.counter.committed == all_steps(2)


@EVERY_BROKER
def test_agent_that_is_killed_and_comes_back_goes_on_where_it_was(cell: Cell) -> None:
    worker = cell.worker()
    first, _ = cell.agent(0), cell.agent(1)
    cell.network.run(lambda: worker.session.window >= 6)
    cell.network.kill("site/1")
    again = cell.agent(1)
    cell.finish(worker, first, again)
    assert worker.counter.committed == all_steps(2)


@EVERY_BROKER
def test_worker_that_is_killed_and_resumed_goes_on_with_the_agents_that_stayed(cell: Cell, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    worker = cell.worker(store=store)
    agents = [cell.agent(index) for index in range(2)]
    cell.network.run(lambda: worker.session.window >= 7)
    cell.network.kill("w0")
    resumed = cell.worker(store=store, resumes=True)
    known = {key for key in all_steps(2) if key[2] in resumed.session.ledger.of(key[0])}
    assert 0 < len(known) < len(all_steps(2))
    cell.finish(resumed, *agents)
    assert resumed.counter.committed == {key: 1 for key in all_steps(2) if key not in known}


@EVERY_BROKER
def test_run_survives_a_broker_that_forgets_everything(cell: Cell) -> None:
    run_over_a_restart(cell, keeps=False)


@EVERY_PERSISTENT_BROKER
def test_run_survives_a_broker_that_comes_back_with_what_it_had_kept(cell: Cell) -> None:
    run_over_a_restart(cell, keeps=True)


def run_over_a_restart(cell: Cell, *, keeps: bool) -> None:
    worker = cell.worker()
    agents = [cell.agent(index) for index in range(2)]
    cell.network.run(lambda: worker.session.window >= 6)
    cell.broker.restart(keeps=keeps)
    cell.finish(worker, *agents)
    assert worker.counter.committed == all_steps(2)
