"""One behaviour suite over every transport: what sessions may rely on, wherever they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cutlayer.broker.errors import IdentityTaken, PacketTooLarge
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, Will
from support.brokers import TRANSPORTS, Backend, transports, unique
from support.waiting import LIMIT_S, ends


@pytest.fixture(scope="module", params=TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> Iterator[Callable[[ExitStack], Backend]]:
    with transports(request.param) as make_backend:
        yield make_backend


@pytest.fixture
def backend(broker: Callable[[ExitStack], Backend], monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    # What a graceful end is worth shall not depend on how soon a loaded machine's broker answers.
    monkeypatch.setattr("cutlayer.broker.mqtt.FLUSH_TIMEOUT_S", LIMIT_S)
    monkeypatch.setattr("cutlayer.broker.mqtt_connection.LEAVE_TIMEOUT_S", LIMIT_S)
    with ExitStack() as stack:
        yield broker(stack)


@pytest.fixture
def root() -> str:
    """A topic that no other test uses."""
    return unique("clinic")


def test_a_transport_satisfies_the_protocol(backend: Backend) -> None:
    transport: Transport = backend.make(unique("client"))
    assert transport.max_packet_bytes == 1_000_000


def test_a_packet_reaches_a_subscriber_unchanged(backend: Backend, root: str) -> None:
    receiver, sender = backend.client(), backend.client()
    receiver.connect(None, f"{root}/up")
    sender.connect()
    payload = bytes(range(256)) * 4
    sender.transport.publish(f"{root}/up", payload)
    received = receiver.next(Received)
    assert (received.topic, received.payload, received.retain) == (f"{root}/up", payload, False)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 300_000, 900_000])
def test_every_size_arrives_whole(backend: Backend, root: str, size: int) -> None:
    client = backend.client()
    client.connect(None, root)
    payload = bytes(size % 251 for size in range(size))
    client.transport.publish(root, payload)
    assert client.next(Received).payload == payload


@pytest.mark.parametrize(
    ("topic_filter", "matches"),
    [
        ("ROOT/07/up", True),
        ("ROOT/+/up", True),
        ("ROOT/07/+", True),
        ("ROOT/#", True),
        ("ROOT/07/up/#", True),
        ("ROOT/+", False),
        ("ROOT/07", False),
        ("ROOT/08/up", False),
        ("ROOT/+/down", False),
    ],
)
def test_topic_filters_match_as_mqtt_says(backend: Backend, root: str, topic_filter: str, matches: bool) -> None:
    client = backend.client()
    client.connect(None, topic_filter.replace("ROOT", root), f"{root}/fence")
    client.transport.publish(f"{root}/07/up", b"wanted")
    client.transport.publish(f"{root}/fence", b"fence")
    got = [client.next(Received).payload]
    while got[-1] != b"fence":
        got.append(client.next(Received).payload)
    assert (b"wanted" in got) is matches


def test_packets_of_one_sender_stay_in_order(backend: Backend, root: str) -> None:
    receiver, sender = backend.client(), backend.client()
    receiver.connect(None, f"{root}/#")
    sender.connect()
    for number in range(200):
        sender.transport.publish(f"{root}/{number % 3}", number.to_bytes(2, "big"))
    assert [event.payload for event in receiver.receive(200)] == [n.to_bytes(2, "big") for n in range(200)]


def test_a_retained_packet_reaches_a_later_subscriber_and_says_so(backend: Backend, root: str) -> None:
    sender = backend.client()
    sender.connect()
    sender.transport.publish(f"{root}/state", b"online", retain=True)
    sender.delivered()
    late = backend.client()
    late.connect(None, f"{root}/+")
    received = late.next(Received)
    assert (received.payload, received.retain) == (b"online", True)


def test_an_empty_retained_packet_clears_the_topic(backend: Backend, root: str) -> None:
    sender = backend.client()
    sender.connect(None, f"{root}/state")
    sender.transport.publish(f"{root}/state", b"online", retain=True)
    sender.transport.publish(f"{root}/state", b"", retain=True)
    sender.receive(2)
    late = backend.client()
    late.connect(None, f"{root}/state")
    late.expect_nothing()


def test_a_client_that_vanishes_leaves_its_will(backend: Backend, root: str) -> None:
    watcher, mortal = backend.client(), backend.client()
    watcher.connect(None, f"{root}/state")
    mortal.connect(Will(f"{root}/state", b"offline"))
    mortal.transport.close(graceful=False)
    assert watcher.next(Received).payload == b"offline"
    late = backend.client()
    late.connect(None, f"{root}/state")
    kept = late.next(Received)
    assert (kept.payload, kept.retain) == (b"offline", True)


def test_a_client_that_leaves_properly_takes_its_will_with_it(backend: Backend, root: str) -> None:
    watcher, mortal = backend.client(), backend.client()
    watcher.connect(None, f"{root}/state")
    mortal.connect(Will(f"{root}/state", b"offline"))
    mortal.transport.close()
    watcher.expect_nothing()


def test_a_graceful_close_delivers_what_was_published_before(backend: Backend, root: str) -> None:
    receiver, sender = backend.client(), backend.client()
    receiver.connect(None, root)
    sender.connect()
    for _ in range(10):
        sender.transport.publish(root, bytes(100_000))
    sender.transport.close()
    receiver.receive(10)


def test_qos_1_packets_published_before_the_connection_wait_for_it(backend: Backend, root: str) -> None:
    receiver, sender = backend.client(), backend.client()
    receiver.connect(None, root)
    sender.transport.publish(root, b"early")
    assert sender.transport.pending_bytes() > 0
    sender.connect()
    assert receiver.next(Received).payload == b"early"
    sender.delivered()


def test_qos_0_packets_published_without_a_connection_are_dropped_and_counted(backend: Backend, root: str) -> None:
    sender = backend.client()
    assert sender.transport.publish(root, b"telemetry", qos=0) == 0
    assert sender.transport.wire.dropped_packets == 1
    assert sender.transport.pending_bytes() == 0


def test_qos_0_packets_arrive(backend: Backend, root: str) -> None:
    client = backend.client()
    client.connect(None, root)
    assert client.transport.publish(root, b"telemetry", qos=0) > 0
    assert client.next(Received).payload == b"telemetry"
    client.delivered()


def test_an_unsubscribed_filter_brings_nothing(backend: Backend, root: str) -> None:
    client = backend.client()
    client.connect(None, f"{root}/a", f"{root}/b")
    client.transport.unsubscribe(f"{root}/a")
    client.transport.publish(f"{root}/a", b"unwanted")
    client.transport.publish(f"{root}/b", b"wanted")
    assert client.next(Received).payload == b"wanted"


def test_a_filter_can_be_added_while_connected(backend: Backend, root: str) -> None:
    client = backend.client()
    client.connect()
    client.transport.subscribe(f"{root}/late")
    client.transport.publish(f"{root}/late", b"x")
    client.next(Received)


def test_the_payload_limit_is_exact_enough_to_pass_and_no_byte_more_than_the_packet_limit(
    backend: Backend, root: str
) -> None:
    client = backend.client()
    client.connect(None, root)
    limit = client.transport.payload_limit(root)
    wire_bytes = client.transport.publish(root, bytes(limit))
    assert client.transport.max_packet_bytes - 1 <= wire_bytes <= client.transport.max_packet_bytes
    assert len(client.next(Received).payload) == limit


def test_a_packet_over_the_limit_is_refused_before_it_is_sent(backend: Backend, root: str) -> None:
    client = backend.client()
    client.connect(None, root)
    with pytest.raises(PacketTooLarge) as refused:
        client.transport.publish(root, bytes(1_000_001))
    assert refused.value.limit_bytes == 1_000_000
    client.transport.publish(root, b"still connected")
    assert client.next(Received).payload == b"still connected"
    assert not [event for event in client.events if isinstance(event, Disconnected)]


def test_a_second_client_with_the_identifier_ends_the_first_one(backend: Backend, root: str) -> None:
    name = unique("agent")
    watcher = backend.client()
    watcher.connect(None, f"{root}/state")
    first = backend.client(name, exact=True)
    first.connect(Will(f"{root}/state", b"offline"))
    second = backend.client(name, exact=True)
    second.connect()
    if not backend.tells_takeover:  # all that the first one can know is that its connection is gone
        assert first.next(Disconnected).fatal is None
        assert watcher.next(Received).payload == b"offline"
        return
    error = first.fatal()
    assert isinstance(error, IdentityTaken)
    assert error.identity == name
    assert first.transport.publish(root, b"x") == 0
    assert watcher.next(Received).payload == b"offline"
    second.expect_nothing(Disconnected)


def test_the_first_client_with_an_identifier_loses_its_connection_to_the_second(backend: Backend) -> None:
    name = unique("agent")
    first, second = backend.client(name, exact=True), backend.client(name, exact=True)
    first.connect()
    second.connect()
    first.next(Disconnected)


def test_wait_ends_as_soon_as_a_packet_comes(backend: Backend, root: str) -> None:
    client = backend.client()
    client.connect(None, root)
    client.transport.publish(root, b"x")
    assert ends(lambda: client.transport.wait(3_600.0))
    client.next(Received)


def test_wait_ends_at_its_timeout(backend: Backend) -> None:
    client = backend.client()
    client.connect()
    assert ends(lambda: client.transport.wait(0.05))
    client.pump()
    assert client.events == [], "nothing has ended it"


def test_connected_carries_the_packet_limit(backend: Backend) -> None:
    assert backend.client().connect() == Connected(1_000_000, session_present=False)


def test_the_wire_count_is_a_copy(backend: Backend, root: str) -> None:
    client = backend.client()
    client.connect(None, root)
    before = client.transport.wire
    client.transport.publish(root, bytes(1000))
    client.next(Received)
    assert client.transport.wire.sent_bytes - before.sent_bytes > 1000
    assert client.transport.wire.received_packets - before.received_packets == 1


def test_closing_twice_is_harmless(backend: Backend) -> None:
    client = backend.client()
    client.connect()
    client.transport.close()
    client.transport.close()


def test_closing_without_connecting_is_harmless(backend: Backend) -> None:
    backend.make(unique("client")).close()
