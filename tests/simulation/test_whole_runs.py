"""Whole runs in virtual time: every step of every agent is committed once, whatever the links do."""

from __future__ import annotations

import pytest

from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import SmallWorker, small_dataset, small_settings

EVIL = LinkFaults(loss=0.1, duplication=0.2, reordering=0.3, delay_s=0.01, jitter_s=0.05)


@pytest.mark.parametrize("mode", ["asynchronous", "synchronous"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("faults", [NO_FAULTS, EVIL], ids=["perfect", "evil"])
def test_every_step_is_committed_exactly_once(mode: str, seed: int, faults: LinkFaults) -> None:
    links = LinkFaults(**{**{name: getattr(faults, name) for name in LinkFaults.__slots__}, "seed": seed})
    network = VirtualNetwork(links)
    settings = small_settings(run={"min_agents": 3, "seed": seed}, window={"mode": mode, "samples": 8})
    worker = SmallWorker(network, settings, counting=True)
    agents = [network.add_agent(f"site/{index}", small_dataset(index, 8 + 6 * index)) for index in range(3)]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    expected = {(f"site/{index}", "train", step) for index, steps in enumerate((4, 8, 10)) for step in range(steps)}
    assert dict(worker.counter.committed) == dict.fromkeys(expected, 1)
    assert worker.counter.num_live_graphs == 0
    assert worker.session.num_live == 0
