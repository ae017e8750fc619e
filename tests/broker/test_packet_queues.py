from __future__ import annotations

import threading

from cutlayer.broker.packet_queues import EventQueue, OnItsWay, Outbox
from cutlayer.broker.topic_filters import FilterMap
from cutlayer.broker.transport import Disconnected, Received, TransportEvent
from support.waiting import LIMIT_S, ends

PACKET = OnItsWay("clinic/07/up", 1, 100)


def test_events_come_out_in_order_and_once() -> None:
    queue = EventQueue(1000)
    events: list[TransportEvent] = [
        Received("a", b"1", False, 10),
        Disconnected("gone"),
        Received("a", b"2", False, 10),
    ]
    for event in events:
        queue.put(event)
    assert queue.take_all() == events
    assert queue.take_all() == []


def test_a_flood_is_refused_but_not_what_matters() -> None:
    queue = EventQueue(100)
    small = Received("a", b"", False, 60)
    for event in (small, small, Disconnected("gone")):
        queue.put(event)
    assert queue.take_all() == [small, Disconnected("gone")]
    assert queue.num_refused == 1
    queue.put(small)
    assert queue.take_all() == [small]


def test_waiting_ends_when_an_event_comes() -> None:
    queue = EventQueue(100)
    threading.Timer(0.05, queue.put, [Disconnected("gone")]).start()
    assert ends(lambda: queue.wait(3_600.0))
    assert queue.take_all() == [Disconnected("gone")]


def test_the_outbox_is_bounded_by_number_and_by_bytes() -> None:
    by_number, by_bytes = Outbox(2, 1000), Outbox(100, 250)
    for outbox in (by_number, by_bytes):
        assert outbox.reserve(100)
        assert outbox.reserve(100)
        assert not outbox.reserve(100)
        assert outbox.pending_bytes == 200


def test_a_packet_that_is_done_makes_room() -> None:
    outbox = Outbox(1, 1000)
    outbox.reserve(100)
    outbox.sent(7, PACKET)
    assert outbox.done(7) is PACKET
    assert outbox.pending_bytes == 0
    assert outbox.reserve(100)


def test_a_packet_may_be_done_before_it_is_noted_as_sent() -> None:
    outbox = Outbox(1, 1000)
    outbox.reserve(100)
    assert outbox.done(7, "not authorized") is None
    assert outbox.sent(7, PACKET) == "not authorized"
    assert outbox.pending_bytes == 0


def test_a_lost_connection_takes_qos_0_packets_only() -> None:
    outbox = Outbox(10, 1000)
    for identifier, qos in ((1, 0), (2, 1), (3, 0)):
        outbox.reserve(100)
        outbox.sent(identifier, OnItsWay("a", qos, 100))
    assert outbox.forget(qos_1_too=False) == 2
    assert outbox.pending_bytes == 100
    assert outbox.forget(qos_1_too=True) == 1


def test_waiting_for_an_empty_outbox_is_bounded() -> None:
    outbox = Outbox(10, 1000)
    assert outbox.wait_until_empty(0.0)
    outbox.reserve(100)
    assert not outbox.wait_until_empty(0.02)
    threading.Timer(0.02, outbox.release, [100]).start()
    assert outbox.wait_until_empty(LIMIT_S)


def test_a_filter_map_finds_every_matching_value_and_forgets() -> None:
    filters: FilterMap[int] = FilterMap()
    for number, topic_filter in enumerate(["a/b", "a/+", "#", "a/#", "b/+", "$SYS/#"]):
        filters[topic_filter] = number
    assert sorted(filters.matching("a/b")) == [0, 1, 2, 3]
    assert sorted(filters.matching("a")) == [2, 3]
    assert sorted(filters.matching("$SYS/broker")) == [5]
    del filters["a/+"]
    assert sorted(filters.matching("a/b")) == [0, 2, 3]
    assert filters.get("a/+") is None
    assert filters.get("a/b") == 0
