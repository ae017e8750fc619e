from __future__ import annotations

from collections import Counter

import pytest

from cutlayer.broker.errors import PacketTooLarge, SettingsError
from cutlayer.broker.faults import NO_FAULTS, FaultyTransport, Link, LinkFaults, Passage
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.transport import Connected, Received, Transport, TransportEvent
from support.manual_clock import ManualClock


def test_a_perfect_link_delivers_everything_once_and_at_once() -> None:
    link = Link(NO_FAULTS, "x")
    assert [link.plan(1000, float(now_s)) for now_s in range(3)] == [Passage(float(s), (float(s),)) for s in range(3)]


@pytest.mark.parametrize("name", ["loss", "duplication", "reordering"])
def test_faults_are_as_frequent_as_asked(name: str) -> None:
    link = Link(LinkFaults(seed=3, **{name: 0.3}, delay_s=0.1), "x")
    passages = [link.plan(100, number * 0.001) for number in range(10_000)]
    if name == "loss":
        affected = sum(not passage.deliveries_s for passage in passages)
    elif name == "duplication":
        affected = sum(len(passage.deliveries_s) == 2 for passage in passages)
    else:
        affected = sum(passage.deliveries_s[0] > passage.through_s for passage in passages)
    assert 2_800 < affected < 3_200


def test_the_same_seed_and_name_plan_the_same_and_others_do_not() -> None:
    faults = LinkFaults(seed=1, loss=0.5, jitter_s=1.0)

    def plans(link: Link) -> list[Passage]:
        return [link.plan(10, 0.0) for _ in range(50)]

    assert plans(Link(faults, "a/up")) == plans(Link(faults, "a/up"))
    assert plans(Link(faults, "a/up")) != plans(Link(faults, "b/up"))


def test_jitter_does_not_reorder() -> None:
    link = Link(LinkFaults(delay_s=0.1, jitter_s=1.0), "x")
    times_s = [link.plan(10, number * 0.01).deliveries_s[0] for number in range(500)]
    assert times_s == sorted(times_s)
    assert all(when_s - number * 0.01 >= 0.1 for number, when_s in enumerate(times_s))


def test_reordering_lets_later_packets_overtake() -> None:
    link = Link(LinkFaults(reordering=0.3), "x")
    times_s = [link.plan(10, number * 0.001).deliveries_s[0] for number in range(500)]
    assert times_s != sorted(times_s)


def test_a_rate_spaces_packets_by_their_size() -> None:
    link = Link(LinkFaults(bytes_per_s=100.0), "x")
    assert [link.plan(size, 0.0).deliveries_s for size in (100, 50, 50)] == [(1.0,), (1.5,), (2.0,)]
    assert link.plan(100, 10.0).deliveries_s == (11.0,)
    link.restart()
    assert link.plan(100, 0.0).deliveries_s == (1.0,)


def test_qos_0_is_never_doubled_and_an_exempt_packet_only_late() -> None:
    link = Link(LinkFaults(loss=0.9, duplication=0.9, reordering=0.9, delay_s=0.1), "x")
    assert all(len(link.plan(10, 0.0, qos=0).deliveries_s) <= 1 for _ in range(100))
    link.restart()
    assert all(link.plan(10, 0.0, exempt=True).deliveries_s == (0.1,) for _ in range(100))


@pytest.mark.parametrize(
    "values", [{"loss": -0.1}, {"loss": 1.1}, {"duplication": 2}, {"delay_s": -1}, {"jitter_s": -1}, {"bytes_per_s": 0}]
)
def test_impossible_faults_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SettingsError) as refused:
        LinkFaults(**values)  # type: ignore[arg-type]
    assert next(iter(values)) in refused.value.problem


class TestFaultyTransport:
    """A faulty transport around one on a perfect in-memory broker."""

    def pair(
        self, clock: ManualClock, *, up: LinkFaults = NO_FAULTS, down: LinkFaults = NO_FAULTS
    ) -> tuple[FaultyTransport, MemoryTransport]:
        """Return a faulty transport that hears `down/#`, and a plain one that hears `up/#`; both connected."""
        broker = MemoryBroker(clock)
        faulty = FaultyTransport(
            MemoryTransport(broker, "faulty"),
            up=up,
            down=down,
            clock=clock,
            exempt=lambda topic: topic.endswith("/state"),
        )
        plain = MemoryTransport(broker, "plain")
        checked: Transport = faulty
        checked.subscribe("down/#")
        plain.subscribe("up/#")
        faulty.connect(None)
        plain.connect(None)
        assert faulty.poll() == [Connected(1_000_000)]
        plain.poll()
        return faulty, plain

    def numbers(self, events: list[TransportEvent]) -> list[int]:
        """Return the first bytes of the packets."""
        return [event.payload[0] for event in events if isinstance(event, Received)]

    def test_without_faults_it_changes_nothing(self) -> None:
        faulty, plain = self.pair(ManualClock())
        for number in range(10):
            faulty.publish("up/x", bytes([number]))
            plain.publish("down/x", bytes([number]))
        assert self.numbers(plain.poll()) == self.numbers(faulty.poll()) == list(range(10))
        assert faulty.pending_bytes() == 0

    def test_what_is_published_is_lost_doubled_and_reordered(self) -> None:
        clock = ManualClock()
        faulty, plain = self.pair(clock, up=LinkFaults(seed=5, loss=0.2, duplication=0.2, reordering=0.3, delay_s=0.1))
        for number in range(200):
            faulty.publish("up/x", bytes([number]))
        came = []
        while (due_s := faulty.next_due_time()) is not None:
            clock.now_s = due_s
            faulty.poll()
            came += self.numbers(plain.poll())
        counts = Counter(came)
        assert 130 < len(counts) < 190
        assert 20 < sum(count == 2 for count in counts.values()) < 60
        assert came != sorted(came)

    def test_what_is_received_is_lost_doubled_and_reordered(self) -> None:
        clock = ManualClock()
        faulty, plain = self.pair(
            clock, down=LinkFaults(seed=5, loss=0.2, duplication=0.2, reordering=0.3, delay_s=0.1)
        )
        for number in range(200):
            plain.publish("down/x", bytes([number]))
        came = self.numbers(faulty.poll())
        while (due_s := faulty.next_due_time()) is not None:
            clock.now_s = due_s
            came += self.numbers(faulty.poll())
        assert 130 < len(set(came)) < 190
        assert len(came) > len(set(came))
        assert came != sorted(came)

    def test_late_packets_count_as_pending(self) -> None:
        clock = ManualClock()
        faulty, plain = self.pair(clock, up=LinkFaults(delay_s=1.0))
        size = faulty.publish("up/x", bytes(100))
        assert faulty.pending_bytes() == size
        clock.now_s = 1.0
        faulty.poll()
        assert faulty.pending_bytes() == 0
        assert self.numbers(plain.poll()) == [0]

    def test_publishing_does_not_swallow_what_is_received(self) -> None:
        clock = ManualClock()
        faulty, plain = self.pair(clock, down=LinkFaults(delay_s=1.0))
        plain.publish("down/x", b"\1")
        faulty.poll()
        clock.now_s = 2.0
        faulty.publish("up/x", b"\2")
        assert self.numbers(faulty.poll()) == [1]

    def test_exempt_topics_arrive(self) -> None:
        faulty, plain = self.pair(ManualClock(), up=LinkFaults(loss=1.0), down=LinkFaults(loss=1.0))
        faulty.publish("up/state", b"\1")
        plain.publish("down/state", b"\2")
        assert self.numbers(plain.poll()) == [1]
        assert self.numbers(faulty.poll()) == [2]

    def test_a_graceful_close_sends_what_the_link_holds(self) -> None:
        faulty, plain = self.pair(ManualClock(), up=LinkFaults(delay_s=1.0))
        faulty.publish("up/x", b"\1")
        faulty.close()
        assert self.numbers(plain.poll()) == [1]

    def test_an_abrupt_close_does_not(self) -> None:
        faulty, plain = self.pair(ManualClock(), up=LinkFaults(delay_s=1.0))
        faulty.publish("up/x", b"\1")
        faulty.close(graceful=False)
        assert self.numbers(plain.poll()) == []

    def test_a_packet_over_the_limit_is_refused(self) -> None:
        faulty, _ = self.pair(ManualClock(), up=LinkFaults(delay_s=1.0))
        with pytest.raises(PacketTooLarge):
            faulty.publish("up/x", bytes(1_000_000))
        assert len(bytes(faulty.payload_limit("up/x"))) < faulty.max_packet_bytes

    def test_waiting_ends_when_something_is_due(self) -> None:
        clock = ManualClock()
        faulty, _ = self.pair(clock, up=LinkFaults(delay_s=0.01))
        faulty.publish("up/x", b"\1")
        clock.now_s = 1.0
        faulty.wait(60.0)
