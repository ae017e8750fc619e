from __future__ import annotations

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import AgentState, parse
from cutlayer.simulation.virtual import SimulationStuck, VirtualClock, VirtualNetwork, is_retained_topic
from support.small_run import SmallWorker, small_dataset, small_settings


class Sleeper:
    """A driver that notes when it is woken, and asks for another time."""

    def __init__(self, network: VirtualNetwork, every_s: float, name: str = "sleeper") -> None:
        self.woken: list[float] = []
        self.transport = network.transport(name)
        self._every_s = every_s
        network.add(name, self, self.transport, lambda: len(self.woken) >= 5)

    def start(self) -> None:
        """Start connecting."""
        self.transport.connect(None)

    def pump(self, now: float) -> float:
        """Note the time."""
        self.transport.poll()
        self.woken.append(now)
        return now + self._every_s


def test_clock_moves_when_it_is_told_to() -> None:
    clock = VirtualClock()
    clock.now_s = 7.5
    assert clock() == 7.5


def test_time_jumps_from_one_event_to_the_next() -> None:
    network = VirtualNetwork()
    sleeper = Sleeper(network, 1_000.0)
    num_steps = 0
    while network.members():
        network.step()
        num_steps += 1
    assert sleeper.woken[-1] >= 3_000.0
    assert num_steps < 20


def test_driver_that_is_done_is_let_go() -> None:
    network = VirtualNetwork()
    Sleeper(network, 1.0)
    assert network.members() == ("sleeper",)
    network.run(lambda: not network.members())
    assert network.clock() < 10.0


def test_time_that_does_not_suffice_is_an_error() -> None:
    network = VirtualNetwork()
    network.add_agent("site/0", small_dataset(0))
    with pytest.raises(SimulationStuck, match=r"not done after 50\.0 virtual seconds"):
        network.run(lambda: False, max_virtual_s=50.0)


def test_driver_that_wants_to_be_woken_in_the_past_is_an_error() -> None:
    network = VirtualNetwork()
    restless = Sleeper(network, 0.0)
    restless.woken = []
    network._members["sleeper"].is_done = lambda: False
    with pytest.raises(SimulationStuck, match="time stands still"):
        network.run(lambda: False)


def test_caller_may_have_an_appointment() -> None:
    network = VirtualNetwork()
    Sleeper(network, 1_000.0)
    network.wake_at(12.5)
    network.run(lambda: network.clock() >= 12.5)
    assert network.clock() == 12.5


def test_time_that_nobody_can_move_is_an_error() -> None:
    network = VirtualNetwork()
    with pytest.raises(SimulationStuck, match=r"nobody has anything to do at 0\.0 s, or ever again"):
        network.run(lambda: False)


def test_step_wakes_one_driver_and_says_which() -> None:
    network = VirtualNetwork()
    sleepers = {name: Sleeper(network, 10.0, name) for name in ("a", "b")}
    woken: list[str | None] = []
    while len(woken) < 8:
        assert network.step()
        woken.append(network.last_woken)
        assert sum(len(sleeper.woken) for sleeper in sleepers.values()) == len(woken)
    assert set(woken[-4:]) == {"a", "b"}


def test_drivers_that_are_due_at_one_time_are_woken_in_the_order_they_asked() -> None:
    network = VirtualNetwork()
    for name in ("c", "a", "b"):
        Sleeper(network, 10.0, name)
    network.wake_at(5.0)
    network.run(lambda: network.clock() >= 5.0)
    woken: list[str | None] = []
    while len(woken) < 6:
        network.step()
        woken.append(network.last_woken)
    assert woken == ["c", "a", "b"] * 2


def test_driver_sleeps_until_something_comes_for_it() -> None:
    network = VirtualNetwork(LinkFaults(delay_s=1.0))
    receiver, sender = Sleeper(network, 1_000.0, "receiver"), network.transport("sender")
    receiver.transport.subscribe("news")
    sender.connect(None)
    network.wake_at(100.0)
    network.run(lambda: network.clock() >= 100.0)
    receiver.woken.clear()
    sender.publish("news", b"x")
    network.run(lambda: bool(receiver.woken))
    assert receiver.woken == [102.0]


def test_driver_of_the_same_name_takes_over() -> None:
    network = VirtualNetwork()
    first = Sleeper(network, 1.0)
    network.run(lambda: bool(first.woken))
    num_woken = len(first.woken)
    second = Sleeper(network, 1.0)
    network.run(lambda: len(second.woken) == 3)
    assert len(first.woken) == num_woken
    assert network.members() == ("sleeper",)


def test_many_sleepers_cost_nothing() -> None:
    network = VirtualNetwork()
    busy = Sleeper(network, 0.001, "busy")
    sleepers = [Sleeper(network, 1e6, f"sleeper-{number}") for number in range(1_000)]
    network.run(lambda: len(busy.woken) == 4)
    num_woken = [len(sleeper.woken) for sleeper in sleepers]
    steps = 0
    busy.woken.clear()
    while len(busy.woken) < 4:
        network.step()
        steps += 1
    assert steps == 4
    assert [len(sleeper.woken) for sleeper in sleepers] == num_woken


def test_killed_driver_sends_nothing_more_and_its_will_fires() -> None:
    network = VirtualNetwork()
    agent = network.add_agent("site/0", small_dataset(0))
    network.run(lambda: "site/0/state" in network.broker.retained)
    network.kill("site/0")
    network.step()
    state = parse(network.broker.retained["site/0/state"].payload)
    assert isinstance(state, AgentState)
    assert not state.online
    assert not agent.is_finished
    assert network.members() == ()


def test_incarnations_grow() -> None:
    network = VirtualNetwork()
    assert network.next_incarnation() < network.next_incarnation()


def outcome(seed: int) -> tuple[float, int, int]:
    network = VirtualNetwork(LinkFaults(seed=seed, loss=0.1, reordering=0.2, delay_s=0.01, jitter_s=0.05))
    worker = SmallWorker(network, small_settings(run={"min_agents": 2}), counting=True)
    agents = [network.add_agent(f"site/{index}", small_dataset(index, 12)) for index in range(2)]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    moved = worker.book.bytes_moved()
    return network.clock(), moved["up"]["payload"], sum(entry.resends for _, entry in worker.book.latest())


def test_same_seed_gives_the_same_run() -> None:
    first, again, other = outcome(1), outcome(1), outcome(2)
    # Payloads hold processor times, whose digits differ; times and repetitions do not.
    assert (first[0], first[2]) == (again[0], again[2])
    assert first[0] != other[0]


@pytest.mark.parametrize(
    ("topic", "is_retained"),
    [
        ("clinic/07/state", True),
        ("cutlayer/workers/w0/state", True),
        ("cutlayer/run", True),
        ("cutlayer/model/abc/0", True),
        ("clinic/07/up/w0/activations", False),
        ("clinic/07/down/control", False),
        ("cutlayer/workers/w0/inbox", False),
    ],
)
def test_what_a_broker_keeps_is_not_lost_on_the_way(topic: str, is_retained: bool) -> None:
    assert is_retained_topic(topic) is is_retained
