"""Whole runs, and what the metrics say of them: every metric is counted, and no byte counts twice or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.dashboards.catalogue import METRICS
from cutlayer.dashboards.metric_labels import Stage
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker import metrics, self_observer
from cutlayer.server_worker.broker_figures import FIGURES
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.simulation.virtual import VirtualNetwork
from support.brokers import mosquitto_test, running_broker
from support.live_network import LiveNetwork
from support.small_run import small_dataset, small_settings
from support.standing_broker import StandingBroker
from support.virtual_run import Worker, run_until_over

NOT_IN_A_HEALTHY_RUN = {
    "cutlayer_resends_total": "nothing is lost",
    "cutlayer_duplicates_total": "nothing is lost",
    "cutlayer_rejects_total": "nobody sends what may not be sent",
    "cutlayer_reconnects_total": "no connection is lost",
    "cutlayer_broker_publish_dropped_total": "no queue is full",
    "cutlayer_codec_changes_total": "no limit of bytes (test_uplink_budget.py)",
    "cutlayer_paced_seconds_total": "no limit of the uplink (test_uplink_budget.py)",
    "cutlayer_task_metric": "the task has an accuracy (test_run_of_each_task.py)",
    "cutlayer_pool_workers": "no pool",
    "cutlayer_pool_rounds_total": "no pool",
    "cutlayer_pool_round_seconds": "no pool",
    "cutlayer_pool_takeovers_total": "no pool",
    "cutlayer_broker_budget_bytes": "told by the program, before the run (test_program.py)",
    "cutlayer_agent_budget_bytes": "told by the program, before the run (test_program.py)",
}
WIRE = "cutlayer_wire_bytes_total"


class Noting(MetricStore):
    """A store that remembers which metrics have been given anything but 0."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[str] = set()

    def add(self, name: str, amount: float = 1.0, *labels: str) -> None:
        super().add(name, amount, *labels)
        if amount:
            self.touched.add(name)

    def set(self, name: str, value: float, *labels: str) -> None:
        super().set(name, value, *labels)
        if value:
            self.touched.add(name)


def wire(*workers: Worker) -> float:
    """Return the agents' wire bytes as workers count them, all kinds and directions."""
    return sum(
        value for worker in workers for (name, _), value in worker.metrics.store.numbers().items() if name == WIRE
    )


def moved(worker: Worker) -> int:
    """Return the agents' wire bytes as they say themselves."""
    return sum(sums["wire"] for sums in worker.book.bytes_moved().values())


@mosquitto_test
def test_every_metric_of_the_catalogue_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MetricStore", Noting)
    monkeypatch.setattr(self_observer, "SAMPLE_EVERY_S", 0.0)  # the run is over in a few seconds
    settings = small_settings(
        0.1,
        run={"min_agents": 2, "epochs": 3, "microbatch_samples": 32},
        window={"mode": "asynchronous", "samples": 64},
        optimizer={"warmup_ratio": 0.1},
    )
    store = CheckpointStore(tmp_path)
    with running_broker("mosquitto", figures_s=1) as broker, LiveNetwork(StandingBroker(broker.url)) as network:
        live = cast("VirtualNetwork", network)
        worker = Worker(live, settings, computes=True, store=store, every_windows=4, watches=True)
        noted = worker.metrics.store
        assert isinstance(noted, Noting)
        # Mosquitto tells of itself once a second; what it tells of is there before the agents are.
        network.run(lambda: noted.touched >= set(FIGURES.values()) - NOT_IN_A_HEALTHY_RUN.keys())
        agents = [network.add_agent(f"site/{index}", small_dataset(index, 96)) for index in range(2)]
        network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    touched = noted.touched | {name for (name, _), values in noted.distributions().items() if values.count}
    missing = {entry.name for entry in METRICS} - touched
    assert missing <= NOT_IN_A_HEALTHY_RUN.keys()
    for stage in Stage:
        assert noted.distributions()["cutlayer_stage_seconds", (stage.value,)].count, stage


@pytest.mark.parametrize("faults", [LinkFaults(delay_s=0.02), LinkFaults(delay_s=0.02, loss=0.1, duplication=0.1)])
def test_kinds_of_messages_add_up_to_all_that_has_crossed_the_connections(faults: LinkFaults) -> None:
    network = VirtualNetwork(faults)
    worker = Worker(network, small_settings(run={"min_agents": 3, "epochs": 6}))
    agents = [network.add_agent(f"site/{index}", small_dataset(index, 16)) for index in range(3)]
    run_until_over(network, worker, agents)
    assert wire(worker) == moved(worker)
    assert worker.metric("cutlayer_samples_total") == 3 * 6 * 16


def pool_of(network: VirtualNetwork, lighthouse: MemoryLighthouse, *names: str) -> list[Worker]:
    settings = small_settings(0.2, run={"epochs": 20}, window={"mode": "asynchronous", "samples": 16})
    return [Worker(network, settings, name=name, lighthouse=lighthouse) for name in names]


def finish(network: VirtualNetwork, workers: Sequence[Worker], num_agents: int = 3) -> None:
    agents = [network.add_agent(f"site/{index}", small_dataset(index, 16)) for index in range(num_agents)]
    network.run(lambda: all(agent.is_finished for agent in agents) and all(w.runtime.is_finished for w in workers))


def test_one_worker_of_a_pool_counts_what_all_hear() -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.02))
    workers = pool_of(network, MemoryLighthouse(network.clock, join_timeout_s=5.0), "w0", "w1")
    finish(network, workers)
    assert wire(workers[1]) == 0
    assert wire(workers[0]) == moved(workers[0]) > 0
    for worker in workers:  # the run's own figures stand at each of them
        assert worker.metric("cutlayer_run_bytes", direction="up", measure="wire") > 0
        assert worker.metric("cutlayer_run_progress_ratio") == 1.0


def test_after_the_first_worker_of_a_pool_has_died_the_next_counts_what_comes_then() -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.02))
    workers = pool_of(network, MemoryLighthouse(network.clock, join_timeout_s=5.0), "w0", "w1")
    agents = [network.add_agent(f"site/{index}", small_dataset(index, 16)) for index in range(3)]
    network.run(lambda: workers[0].session.window >= 5 and wire(workers[0]) > 0)
    assert wire(workers[1]) == 0
    workers[0].kill()
    network.run(lambda: all(agent.is_finished for agent in agents) and workers[1].runtime.is_finished)
    counted, whole = wire(*workers), moved(workers[1])
    # What was under way while nobody knew who is first is in no counter; nothing is in two.
    assert wire(workers[1]) > 0
    assert 0.5 * whole < counted <= whole


def test_a_worker_that_is_started_again_counts_no_byte_of_its_agents_twice(tmp_path: Path) -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.02))
    store = CheckpointStore(tmp_path)
    settings = small_settings(0.2, run={"epochs": 20})
    first = Worker(network, settings, store=store, every_windows=2)
    agent = network.add_agent("site/0", small_dataset(0, 16))
    network.run(lambda: first.session.window >= 20)
    first.kill()
    second = Worker(network, settings, store=store, resumes=True)
    run_until_over(network, second, [agent])
    assert wire(second) > 0
    assert wire(first, second) <= moved(second)
    assert second.metric("cutlayer_run_bytes", direction="up", measure="wire") > wire(second) / 2
