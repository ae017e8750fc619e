"""One agent that is a hundred times slower than the others hardly costs them anything, in asynchronous windows.

Time is virtual, so the share that it costs is exact and no matter of the machine.
"""

from __future__ import annotations

import pytest

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import LinkFaults
from support.paced import PacedNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker

SLOWER = 100.0
WORK_S = 0.010
"""For activations and for gradients, each: 20 ms a step."""
WORKER_S = 0.001
LINK = LinkFaults(delay_s=0.002, bytes_per_s=1e6)
SLOW_LINK = LinkFaults(delay_s=0.002 * SLOWER, bytes_per_s=1e6 / SLOWER)
SLOW = "site/slow"
NUM_STEPS = 250
NUM_WARM_UP = 50
"""Steps of each fast agent before the measurement: until the slow one has been seen once, windows wait for it."""
MICROBATCH = 4


def fast_steps_per_s(num_fast: int, window_samples: int, slowness: str = "") -> float:
    """Return the steps a virtual second of the fast agents, beside one that is slow in this or that, or in nothing."""
    fast = [f"site/{index}" for index in range(num_fast)]
    topics = [*fast, *([SLOW] if slowness else [])]
    network = PacedNetwork(
        {**dict.fromkeys(fast, WORK_S), "w0": WORKER_S, SLOW: WORK_S * (SLOWER if slowness == "compute" else 1.0)},
        {**dict.fromkeys(fast, (LINK, LINK)), SLOW: (SLOW_LINK, SLOW_LINK) if slowness == "link" else (LINK, LINK)},
        deadlines=Deadlines(),
    )
    settings = small_settings(
        run={"min_agents": len(topics), "epochs": 1, "microbatch_samples": MICROBATCH},
        # As many versions as windows go by while a fast agent's microbatches are on their way.
        window={"mode": "asynchronous", "samples": window_samples, "max_staleness": 16},
        evaluation={"every_epochs": 0},
    )
    worker = Worker(network, settings)
    for index, topic in enumerate(topics):
        network.add_agent(topic, small_dataset(index, NUM_STEPS * MICROBATCH))

    def steps(first: int, stop: int) -> set[tuple[str, str, int]]:
        return {(topic, "train", step) for topic in fast for step in range(first, stop)}

    network.run(lambda: steps(0, NUM_WARM_UP) <= worker.counter.committed.keys())
    start_s = network.clock()
    network.run(lambda: steps(0, NUM_STEPS) <= worker.counter.committed.keys())
    return len(steps(NUM_WARM_UP, NUM_STEPS)) / (network.clock() - start_s)


@pytest.mark.parametrize("slowness", ["compute", "link"])
@pytest.mark.parametrize(
    ("num_fast", "window_samples"),
    [
        pytest.param(4, 16, id="windows of half the credits"),
        pytest.param(4, 4, id="windows of one microbatch"),
        pytest.param(2, 128, id="windows larger than all credits"),
        pytest.param(1, 4, id="one fast agent"),
    ],
)
def test_slow_agent_costs_the_others_less_than_a_tenth(num_fast: int, window_samples: int, slowness: str) -> None:
    alone = fast_steps_per_s(num_fast, window_samples)
    beside = fast_steps_per_s(num_fast, window_samples, slowness)
    assert beside > 0.9 * alone


def test_agent_on_a_slow_link_trains_with_the_others_and_sends_its_activations_once() -> None:
    """Its gradients wait in its link behind its next activations, for more windows than weights may age."""
    fast = [f"site/{index}" for index in range(4)]
    slow_link = LinkFaults(delay_s=0.02, bytes_per_s=1e3)  # 2 s a microbatch, while the others fill five windows
    network = PacedNetwork(
        {**dict.fromkeys([*fast, SLOW], 0.2), "w0": WORKER_S},
        {**dict.fromkeys(fast, (LINK, LINK)), SLOW: (slow_link, slow_link)},
        deadlines=Deadlines(),
    )
    settings = small_settings(
        20.0,  # reports would fill such a link
        run={"min_agents": len(fast) + 1, "epochs": 1, "microbatch_samples": MICROBATCH},
        window={"mode": "asynchronous", "samples": 16, "max_staleness": 4},
        evaluation={"every_epochs": 0},
    )
    worker = Worker(network, settings)
    for index, topic in enumerate(fast):
        network.add_agent(topic, small_dataset(index, NUM_STEPS * MICROBATCH))
    agent = network.add_agent(SLOW, small_dataset(9, NUM_STEPS * MICROBATCH))
    steps = {(topic, "train", step) for topic in fast for step in range(NUM_STEPS)}
    network.run(lambda: steps <= worker.counter.committed.keys())
    num_committed = len({(SLOW, "train", step) for step in range(NUM_STEPS)} & worker.counter.committed.keys())
    traffic = agent._courier.traffic.snapshot()
    num_sent = sum(row.messages for row in traffic if row.kind == "Activations")
    assert num_committed > 0.5 * network.clock() / 2, "more than half of what its link can carry"
    assert num_sent <= num_committed + settings.worker.credits, "none was sent twice"
