"""What real connections count, and what they refuse to carry."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.errors import PacketTooLarge
from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Connected, Disconnected, Received, Will
from support.brokers import BROKER_KINDS, Client, mosquitto_test, mqtt_client, running_broker, unique
from support.relay import relay
from support.scripted_broker import CONNECT, accept_3_1_1, scripted_broker
from support.waiting import until


@pytest.fixture(scope="module", params=BROKER_KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    with running_broker(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def mosquitto() -> Iterator[BrokerProcess]:
    with running_broker("mosquitto", max_packet_bytes=50_000) as running:
        yield running


def url(port: int) -> str:
    return f"mqtt://127.0.0.1:{port}"


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [10, 70_000, 900_000])
def test_the_wire_count_is_what_a_relay_sees(
    broker: BrokerProcess, protocol: ProtocolChoice, qos: int, size: int
) -> None:
    with relay(broker.port) as between, mqtt_client(url(between.port), unique("count"), protocol=protocol) as client:
        client.transport.subscribe("counted/#", qos=qos)
        client.connect(Will("counted/state", b"offline"))
        for _ in range(5):
            client.transport.publish("counted/up", bytes(size), qos=qos)
        received = client.receive(5)
        client.delivered()
        before = client.transport.wire.received_bytes
        client.transport.unsubscribe("counted/#")
        client.until(lambda: client.transport.wire.received_bytes > before, "UNSUBACK")
        client.transport.close()
        between.settle()
        wire = client.transport.wire
    assert (wire.sent_bytes, wire.received_bytes) == (between.up_bytes, between.down_bytes)
    assert (wire.sent_packets, wire.received_packets, wire.dropped_packets) == (5, 5, 0)
    assert wire.sent_publish_bytes == wire.received_publish_bytes == sum(packet.wire_bytes for packet in received)
    assert 5 * size < wire.sent_publish_bytes < wire.sent_bytes


@mosquitto_test
def test_the_twin_counts_what_mqtt_3_1_1_sends() -> None:
    memory = MemoryBroker(time.monotonic)
    counts = []
    with running_broker("mosquitto") as running:
        mqtt = BrokerSettings(url=running.url, protocol="3.1.1")
        for transport in (MqttTransport(mqtt, "same-name"), MemoryTransport(memory, "same-name")):
            with Client(transport) as client:
                client.connect(Will("clinic/07/state", b"offline"), "clinic/07/#", "cutlayer/run")
                for number, size in enumerate((0, 100, 130, 20_000, 900_000)):
                    client.transport.publish("clinic/07/up/worker/activations", bytes(size), qos=number % 2)
                client.receive(5)
                client.delivered()
                client.transport.close()
                counts.append(client.transport.wire)
    assert counts[0] == counts[1]


def test_the_size_of_a_packet_is_the_same_at_both_ends(broker: BrokerProcess) -> None:
    with mqtt_client(broker.url, unique("ends")) as client:
        client.connect(None, "ends")
        for size in (0, 100, 20_000):
            assert client.transport.publish("ends", bytes(size)) == client.next(Received).wire_bytes


@mosquitto_test
def test_an_announced_packet_limit_is_heeded(mosquitto: BrokerProcess) -> None:
    with mqtt_client(mosquitto.url, unique("limit")) as client:
        assert client.connect(None, "limit") == Connected(50_000)
        limit = client.transport.payload_limit("limit")
        client.transport.publish("limit", bytes(limit))
        assert len(client.next(Received).payload) == limit
        with pytest.raises(PacketTooLarge) as refused:
            client.transport.publish("limit", bytes(limit + 1))
        assert refused.value.limit_bytes == 50_000


@mosquitto_test
def test_a_limit_that_mqtt_3_1_1_cannot_announce_is_guessed_at_after_a_while(mosquitto: BrokerProcess) -> None:
    with mqtt_client(mosquitto.url, unique("limit"), protocol="3.1.1") as client:
        client.connect()
        client.transport.publish("limit", bytes(60_000))
        assert "packet limit" not in client.next(Disconnected).reason
        # After the third short connection in a row (test_mqtt_reasons.py); how long one lasts is the machine's choice.
        while "packet limit may be below 60" not in (reason := client.next(Disconnected).reason):
            assert "packet limit" not in reason


def test_the_number_of_waiting_packets_is_bounded() -> None:
    with mqtt_client("mqtt://127.0.0.1:1", "full", max_queued_messages=3) as client:
        sizes = [client.transport.publish("x", bytes(100)) for _ in range(5)]
        assert sizes[2] > 0
        assert sizes[3:] == [0, 0]
        assert client.transport.wire.dropped_packets == 2
        assert client.transport.pending_bytes() == sum(sizes)


def test_a_stalled_broker_cannot_fill_this_process() -> None:
    with scripted_broker([(CONNECT, accept_3_1_1())]) as port:
        client = mqtt_client(
            url(port), "stalled", protocol="3.1.1", max_packet_bytes=100_000, max_queued_bytes=1_000_000
        )
        client.connect()
        sizes = [client.transport.publish("x", bytes(90_000), qos=1) for _ in range(50)]
        assert sum(sizes) <= 1_000_000
        assert client.transport.wire.dropped_packets == sum(size == 0 for size in sizes) > 0
        client.transport.close(graceful=False)


def test_a_flood_from_a_peer_is_bounded(broker: BrokerProcess) -> None:
    with (
        mqtt_client(broker.url, unique("flooded"), max_packet_bytes=100_000, max_queued_bytes=100_000) as flooded,
        mqtt_client(broker.url, unique("flooder")) as flooder,
    ):
        flooded.connect(None, "flood")
        flooder.connect()
        for _ in range(20):
            flooder.transport.publish("flood", bytes(30_000))
        flooder.delivered()
        until(lambda: flooded.transport.wire.dropped_packets >= 17, "flood")
        flooded.pump()
        assert len(flooded.events) == 3
        assert flooded.transport.wire.dropped_packets == 17
        assert flooded.transport.wire.received_packets == 20
