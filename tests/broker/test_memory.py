"""The in-memory broker on a clock that the test sets: but for one test, nothing here sleeps."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

from cutlayer.broker.errors import IdentityTaken
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.mqtt_packets import PUBACK_BYTES, connect_size, subscribe_size
from cutlayer.broker.transport import Connected, Disconnected, Received, TransportEvent, Will
from support.manual_clock import ManualClock
from support.waiting import ends

SLOW = LinkFaults(delay_s=0.5)


class World:
    """A broker, its clock, and the transports on it."""

    def __init__(self, **options: object) -> None:
        self.clock = ManualClock(100.0)
        self.broker = MemoryBroker(self.clock, **options)  # type: ignore[arg-type]

    def transport(self, name: str, *filters: str, will: Will | None = None, **links: LinkFaults) -> MemoryTransport:
        """Make a transport and start connecting it."""
        transport = MemoryTransport(self.broker, name, **links)  # type: ignore[arg-type]
        for topic_filter in filters:
            transport.subscribe(topic_filter)
        transport.connect(will)
        return transport

    def jump(self) -> bool:
        """Set the clock to what happens next; return whether there is anything."""
        next_s = self.broker.next_delivery_time()
        if next_s is None:
            return False
        self.clock.now_s = max(self.clock.now_s, next_s)
        self.broker.advance()
        return True

    def settle(self) -> None:
        """Act everything out."""
        while self.jump():
            pass


def payloads(events: list[TransportEvent]) -> list[bytes]:
    return [event.payload for event in events if isinstance(event, Received)]


def test_without_faults_everything_happens_at_once() -> None:
    world = World()
    receiver = world.transport("receiver", "a/#")
    sender = world.transport("sender")
    assert sender.poll() == [Connected(1_000_000)]
    sender.publish("a/b", b"x")
    assert sender.pending_bytes() == 0
    assert payloads(receiver.poll()) == [b"x"]
    assert world.broker.next_delivery_time() is None


def test_connecting_takes_a_round_trip_and_subscribing_another() -> None:
    world = World(up=SLOW, down=SLOW)
    plain, subscribed = world.transport("plain"), world.transport("subscribed", "a/#")
    came: dict[str, float] = {}
    while world.jump():
        for name, transport in (("plain", plain), ("subscribed", subscribed)):
            if transport.poll():
                came[name] = world.clock.now_s
    assert came == {"plain": 101.0, "subscribed": 102.0}


def test_a_delivery_waits_for_its_time() -> None:
    world = World()
    receiver, sender = world.transport("receiver", "a"), world.transport("sender", up=SLOW)
    world.settle()
    receiver.poll()
    sender.publish("a", b"x")
    assert receiver.poll() == []
    assert sender.pending_bytes() > 0
    assert world.broker.next_delivery_time() == pytest.approx(world.clock.now_s + 0.5)
    world.clock.now_s += 0.49
    assert receiver.poll() == []
    world.clock.now_s += 0.02
    assert payloads(receiver.poll()) == [b"x"]
    assert sender.pending_bytes() == 0


def test_a_rate_makes_packets_queue() -> None:
    world = World()
    receiver, sender = world.transport("receiver", "a"), world.transport("sender", up=LinkFaults(bytes_per_s=1000.0))
    world.settle()
    start_s = world.clock.now_s
    for _ in range(3):
        sender.publish("a", bytes(993), qos=1)
    arrivals = []
    receiver.poll()
    while world.jump():
        arrivals += [world.clock.now_s - start_s for _ in payloads(receiver.poll())]
    assert arrivals == pytest.approx([1.0, 2.0, 3.0], abs=0.01)


def test_the_same_seed_gives_the_same_history() -> None:
    def history(seed: int) -> list[tuple[float, bytes]]:
        faults = LinkFaults(seed=seed, loss=0.2, duplication=0.2, reordering=0.2, delay_s=0.1, jitter_s=0.1)
        world = World(up=faults, down=faults)
        receiver, sender = world.transport("receiver", "a"), world.transport("sender")
        world.settle()
        receiver.poll(), sender.poll()
        for number in range(100):
            sender.publish("a", number.to_bytes(1, "big"))
        came = []
        while world.jump():
            came += [(world.clock.now_s, payload) for payload in payloads(receiver.poll())]
        return came

    assert history(1) == history(1)
    assert history(1) != history(2)
    packets = [payload for _, payload in history(1)]
    assert 40 < len(packets) < 110
    assert len(set(packets)) < len(packets)
    assert packets != sorted(packets)


def test_exempt_topics_are_late_but_whole() -> None:
    faults = LinkFaults(loss=0.5, duplication=0.5, reordering=0.5, delay_s=0.1)
    world = World(up=faults, down=faults, exempt=lambda topic: topic.endswith("/state"))
    receiver, sender = world.transport("receiver", "#"), world.transport("sender")
    world.settle()
    receiver.poll()
    expected = [number.to_bytes(1, "big") for number in range(50)]
    for payload in expected:
        sender.publish("x/state", payload)
    world.settle()
    assert payloads(receiver.poll()) == expected


def test_a_packet_that_the_link_loses_is_acknowledged_all_the_same() -> None:
    world = World()
    sender = world.transport("sender", up=LinkFaults(loss=1.0))
    world.settle()
    assert sender.poll() == [Connected(1_000_000)]  # control packets are not lost
    sender.publish("a", b"x")
    world.settle()
    assert sender.pending_bytes() == 0


def test_a_cut_fires_the_will_and_the_client_comes_back_with_its_filters() -> None:
    world = World()
    watcher = world.transport("watcher", "agent/state")
    agent = world.transport("agent", "agent/down", will=Will("agent/state", b"offline"))
    agent.poll(), watcher.poll()
    world.broker.cut("agent")
    assert payloads(watcher.poll()) == [b"offline"]
    assert agent.poll() == [Disconnected("the connection was cut")]
    agent.publish("elsewhere", b"waits")
    assert agent.publish("elsewhere", b"dropped", qos=0) == 0
    assert world.broker.next_delivery_time() == pytest.approx(world.clock.now_s + 1.0)
    world.settle()
    assert agent.poll() == [Connected(1_000_000)]
    assert agent.pending_bytes() == 0
    watcher.publish("agent/down", b"back")
    assert payloads(agent.poll()) == [b"back"]
    assert world.broker.retained["agent/state"].payload == b"offline"


def test_packets_on_a_link_that_is_cut_are_lost_at_qos_0_and_sent_again_at_qos_1() -> None:
    world = World()
    receiver, sender = world.transport("receiver", "a"), world.transport("sender", up=SLOW)
    world.settle()
    receiver.poll()
    sender.publish("a", b"lost", qos=0)
    sender.publish("a", b"again", qos=1)
    world.clock.now_s += 0.1
    world.broker.cut("sender")
    world.settle()
    assert payloads(receiver.poll()) == [b"again"]
    assert sender.wire.dropped_packets == 1
    assert sender.pending_bytes() == 0


def test_a_stopped_broker_forgets_and_fires_no_will() -> None:
    world = World()
    watcher = world.transport("watcher", "#", will=Will("watcher/state", b"offline"))
    watcher.publish("kept", b"x", retain=True)
    watcher.poll()
    world.broker.stop()
    assert [type(event) for event in watcher.poll()] == [Disconnected]
    assert dict(world.broker.retained) == {}
    for _ in range(4):  # CONNECT and refusal, twice
        world.jump()
    refusals = [event for event in watcher.poll() if isinstance(event, Disconnected)]
    assert refusals
    assert all(event.fatal is None for event in refusals)
    world.broker.start()
    world.settle()
    assert watcher.poll()[-1] == Connected(1_000_000)


def test_taking_a_session_over_is_fatal_to_the_older_client() -> None:
    world = World()
    watcher = world.transport("watcher", "state")
    old = world.transport("agent", will=Will("state", b"offline"))
    new = world.transport("agent")
    error = old.poll()[-1]
    assert isinstance(error, Disconnected)
    assert isinstance(error.fatal, IdentityTaken)
    assert payloads(watcher.poll()) == [b"offline"]
    world.settle()
    assert [type(event) for event in new.poll()] == [Connected]
    assert old.publish("x", b"x") == 0


def test_a_broker_that_does_not_tell_lets_two_clients_chase_each_other() -> None:
    world = World(tells_takeover=False)
    old, new = world.transport("agent"), world.transport("agent")
    for _ in range(10):
        world.jump()
    losses = [sum(isinstance(event, Disconnected) for event in each.poll()) for each in (old, new)]
    assert min(losses) > 0


def test_a_process_that_dies_leaves_what_was_on_the_link_and_then_its_will() -> None:
    world = World()
    watcher = world.transport("watcher", "#")
    agent = world.transport("agent", up=SLOW, will=Will("state", b"offline"))
    world.settle()
    watcher.poll()
    agent.publish("up", b"last words")
    agent.close(graceful=False)
    world.settle()
    assert payloads(watcher.poll()) == [b"last words", b"offline"]


def test_overlapping_filters_bring_one_copy() -> None:
    world = World()
    client = world.transport("client", "a/#", "a/+", "a/b")
    client.poll()
    client.publish("a/b", b"x")
    assert payloads(client.poll()) == [b"x"]


def test_the_queue_is_bounded() -> None:
    world = World()
    client = MemoryTransport(world.broker, "client", max_queued_messages=2)
    assert [client.publish("a", b"x") > 0 for _ in range(4)] == [True, True, False, False]
    assert client.wire.dropped_packets == 2


def test_client_says_when_it_has_news_once_until_they_are_taken() -> None:
    world = World()
    receiver, sender = world.transport("receiver", "a"), world.transport("sender")
    receiver.poll()
    told: list[int] = []
    receiver.on_news = lambda: told.append(receiver.num_events)
    for payload in (b"1", b"2"):
        sender.publish("a", payload)
    assert (told, receiver.num_events) == ([1], 2)
    assert payloads(receiver.poll()) == [b"1", b"2"]
    assert receiver.num_events == 0
    sender.publish("a", b"3")
    assert told == [1, 1]


def test_packets_on_their_way_are_counted() -> None:
    world = World()
    sender = world.transport("sender", up=SLOW)
    world.settle()
    assert (sender.num_on_their_way, world.broker.num_scheduled) == (0, 0)
    sender.publish("a", b"x")
    assert sender.num_on_their_way == 1
    assert world.broker.num_scheduled > 0
    world.settle()
    assert (sender.num_on_their_way, world.broker.num_scheduled) == (0, 0)


def test_broker_shows_each_packet_that_reaches_it_wills_included() -> None:
    world = World()
    seen: list[tuple[str, bytes]] = []
    world.broker.on_publish = lambda packet: seen.append((packet.topic, packet.payload))
    agent = world.transport("agent", will=Will("state", b"offline"))
    agent.publish("a", b"x", qos=0)
    world.broker.cut("agent")
    assert seen == [("a", b"x"), ("state", b"offline")]


def test_retained_packets_come_once_and_at_the_best_of_the_qos_asked_for() -> None:
    world = World()
    sender = world.transport("sender")
    sender.publish("a/b", b"x", retain=True)
    receiver = MemoryTransport(world.broker, "receiver")
    receiver.subscribe("a/+", qos=0)
    receiver.subscribe("#", qos=1)
    receiver.connect(None)
    events = [event for event in receiver.poll() if isinstance(event, Received)]
    assert [(event.topic, event.payload, event.retain) for event in events] == [("a/b", b"x", True)]
    assert (
        receiver.wire.sent_bytes
        == connect_size("receiver", protocol="3.1.1") + subscribe_size(["a/+", "#"], protocol="3.1.1") + PUBACK_BYTES
    )


def test_threads_with_a_real_clock_wake_each_other_across_a_slow_link() -> None:
    broker = MemoryBroker(time.monotonic, up=LinkFaults(delay_s=0.05))
    server, client = MemoryTransport(broker, "server"), MemoryTransport(broker, "client")
    server.subscribe("request")
    client.subscribe("reply")
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            server.wait(3_600.0)
            for payload in payloads(server.poll()):
                server.publish("reply", payload)

    def ask() -> None:
        client.publish("request", b"x")
        while not answers:
            client.wait(3_600.0)
            answers.extend(payloads(client.poll()))

    server.connect(None)
    client.connect(None)
    for transport in (server, client):
        while not transport.poll():
            transport.wait(1.0)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    answers: list[bytes] = []
    asked_at = time.monotonic()
    assert ends(ask)
    assert answers == [b"x"]
    assert time.monotonic() - asked_at >= 0.1, "each way takes its time"
    done.set()
    client.publish("request", b"stop")
    assert ends(thread.join)


def test_many_clients_cost_their_packets_not_their_number() -> None:
    few, many = lines_for_a_packet_of_each(20), lines_for_a_packet_of_each(2_000)
    assert many / 2_000 < 1.5 * few / 20


def lines_for_a_packet_of_each(num_agents: int) -> int:
    """Return the lines of Python that run while each of so many agents sends the worker one packet."""
    world = World()
    worker = world.transport("worker", "+/up")
    agents = [world.transport(f"agent-{number}", f"{number}/down") for number in range(num_agents)]
    worker.poll()
    num_lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        del frame, argument
        nonlocal num_lines
        num_lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        for number, agent in enumerate(agents):
            agent.publish(f"{number}/up", b"x")
    finally:
        sys.settrace(before)
    assert len(worker.poll()) == num_agents
    return num_lines
