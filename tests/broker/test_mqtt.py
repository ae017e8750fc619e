"""What only real connections show: wire counts, versions, refusals, restarts, bounds."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.errors import IdentityTaken, NotAuthorized, PacketTooLarge, SettingsError
from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Connected, Disconnected, Received, Will
from support.brokers import BROKER_KINDS, Client, mosquitto_test, mqtt_client, running_broker, unique
from support.relay import Relay, relay
from support.scripted_broker import CONNECT, PUBLISH, SUBSCRIBE, accept_3_1_1, accept_5, scripted_broker


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


def protocol_of(client: Client) -> str:
    assert isinstance(client.transport, MqttTransport)
    return client.transport.protocol


# Wire counts


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
        client.receive(5)
        client.delivered()
        before = client.transport.wire.received_bytes
        client.transport.unsubscribe("counted/#")
        client.until(lambda: client.transport.wire.received_bytes > before, "UNSUBACK")
        client.transport.close()
        settle(between)
        wire = client.transport.wire
    assert (wire.sent_bytes, wire.received_bytes) == (between.up_bytes, between.down_bytes)
    assert (wire.sent_packets, wire.received_packets, wire.dropped_packets) == (5, 5, 0)
    assert wire.sent_bytes > 5 * size


def settle(between: Relay) -> None:
    seen = (-1, -1)
    while seen != (between.up_bytes, between.down_bytes):
        seen = (between.up_bytes, between.down_bytes)
        time.sleep(0.02)


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


# Versions


def test_auto_settles_on_the_version_that_the_broker_has_at_once(broker: BrokerProcess) -> None:
    started_s = time.monotonic()
    with mqtt_client(broker.url, unique("auto")) as client:
        client.connect(Will("state", b"offline"), "x")
        assert protocol_of(client) == ("5" if broker.kind == "mosquitto" else "3.1.1")
    assert time.monotonic() - started_s < 1.0


def test_packets_that_wait_survive_the_change_of_version() -> None:
    with running_broker("amqtt") as running, mqtt_client(running.url, "early") as client:
        client.transport.publish("early", b"x")
        client.connect(None, "early")
        assert client.next(Received).payload == b"x"


def test_a_version_that_the_broker_lacks_is_said_to_be_missing() -> None:
    refusal = [(CONNECT, bytes.fromhex("20 03 00 84 00") + b"!")]
    with scripted_broker(refusal) as port, mqtt_client(url(port), "forced", protocol="5") as client:
        client.transport.connect(None)
        error = client.fatal()
    assert isinstance(error, SettingsError)
    assert "does not speak MQTT 5" in str(error)


def test_a_broker_that_says_nothing_to_the_question_is_tried_with_mqtt_5() -> None:
    with (
        scripted_broker([(CONNECT, b"!")], [(CONNECT, accept_5())]) as port,
        mqtt_client(url(port), "silent") as client,
    ):
        client.connect()
        assert protocol_of(client) == "5"


# Refusals


def test_no_broker_is_reported_quickly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with mqtt_client(url(port), "lonely") as client:
        started_s = time.monotonic()
        client.transport.connect(None)
        event = client.next(Disconnected)
        assert time.monotonic() - started_s < 1.0
        assert event.fatal is None
        assert "Connection refused" in event.reason


def test_an_unknown_host_is_reported() -> None:
    with mqtt_client("mqtt://no-such-host.invalid", "lost") as client:
        client.transport.connect(None)
        assert "no-such-host.invalid" in client.next(Disconnected).reason


def test_a_broker_that_hangs_up_before_it_accepts_is_reported_with_a_question() -> None:
    with scripted_broker([(CONNECT, b"!")]) as port, mqtt_client(url(port), "x", protocol="3.1.1") as client:
        client.transport.connect(None)
        assert "TLS" in client.next(Disconnected).reason


def test_a_session_taken_over_is_fatal_and_names_the_identity() -> None:
    taken_over = accept_5() + bytes.fromhex("e0 02 8e 00") + b"!"
    with scripted_broker([(CONNECT, taken_over)]) as port:
        transport = MqttTransport(BrokerSettings(url=url(port), protocol="5"), "id-7", identity="clinic/07")
        with Client(transport) as client:
            client.connect()
            error = client.fatal()
            assert isinstance(error, IdentityTaken)
            assert error.identity == "clinic/07"
            client.expect_nothing(Connected, for_s=1.3)  # it does not come back


@pytest.mark.parametrize(
    ("protocol", "suback"), [("3.1.1", "90 04 4944 01 80"), ("5", "90 05 4944 00 01 87")], ids=["3.1.1", "5"]
)
def test_a_denied_subscription_is_fatal_and_names_the_filter(protocol: ProtocolChoice, suback: str) -> None:
    accept = accept_5() if protocol == "5" else accept_3_1_1()
    script = [(CONNECT, accept), (SUBSCRIBE, bytes.fromhex(suback))]
    with scripted_broker(script) as port, mqtt_client(url(port), "x", protocol=protocol) as client:
        client.transport.subscribe("mine/#")
        client.transport.subscribe("clinic/08/#")
        client.transport.connect(None)
        error = client.fatal()
        assert isinstance(error, NotAuthorized)
        assert "clinic/08/#" in str(error)


def test_a_denied_publish_is_fatal_and_names_the_topic() -> None:
    script = [(CONNECT, accept_5()), (PUBLISH, bytes.fromhex("40 03 4944 87"))]
    with scripted_broker(script) as port, mqtt_client(url(port), "x", protocol="5") as client:
        client.connect()
        client.transport.publish("clinic/08/up", b"forged")
        error = client.fatal()
        assert isinstance(error, NotAuthorized)
        assert "clinic/08/up" in str(error)


@mosquitto_test
def test_mosquitto_denies_a_publish_that_its_acl_forbids(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite clinic/07/#\n")
    with running_broker("mosquitto", acl_file=acl) as running, mqtt_client(running.url, "acl") as client:
        client.connect(None, "clinic/07/down")
        client.transport.publish("clinic/07/down", b"allowed")
        client.next(Received)
        client.transport.publish("clinic/08/down", b"forged")
        assert isinstance(client.fatal(), NotAuthorized)


def test_right_and_wrong_passwords(broker: BrokerProcess, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("# who may connect\nclinic-07:hunter2\nworker:with:colon\n")
    with running_broker(broker.kind, password_file=users) as running:
        right: list[tuple[str | None, str | None]] = [("clinic-07", "hunter2"), ("worker", "with:colon")]
        for name, password in right:
            with mqtt_client(running.url, unique("pw"), username=name, password=password) as client:
                client.connect(None, "x")
        wrong: list[tuple[str | None, str | None]] = [("clinic-07", "wrong"), ("nobody", "wrong"), (None, None)]
        for name, password in wrong:
            with mqtt_client(running.url, unique("pw"), username=name, password=password) as client:
                client.transport.connect(None)
                error = client.fatal()
                assert isinstance(error, NotAuthorized)
                assert "wrong" not in str(error)


def test_a_password_over_an_unencrypted_network_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    settings = BrokerSettings(url="mqtt://no-such-host.invalid", username="alice", password="hunter2")
    with caplog.at_level(logging.WARNING), Client(MqttTransport(settings, "x")) as client:
        client.transport.connect(None)
    assert "unencrypted" in caplog.text
    assert "hunter2" not in caplog.text


# Limits


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
        reasons = [client.next(Disconnected).reason for _ in range(3)]
    assert "packet limit" not in reasons[0]
    assert "packet limit may be below 60" in reasons[2]


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
        end_s = time.monotonic() + 5
        while flooded.transport.wire.received_packets < 20 and time.monotonic() < end_s:
            time.sleep(0.02)
        time.sleep(0.05)
        flooded.pump()
        assert len(flooded.events) == 3
        assert flooded.transport.wire.dropped_packets == 17


# Reconnects and ends


def test_a_client_comes_back_with_its_subscriptions_after_a_restart(broker: BrokerProcess) -> None:
    first = running_broker(broker.kind)
    with mqtt_client(first.url, "lasting") as client:
        try:
            client.connect(None, "lasting/#")
        finally:
            first.stop()
        assert client.next(Disconnected).fatal is None
        client.transport.publish("lasting/x", b"while away")
        assert client.transport.publish("lasting/x", b"while away", qos=0) == 0
        with running_broker(broker.kind, port=first.port):
            client.next(Connected)
            assert client.next(Received).payload == b"while away"
            client.delivered()


def test_a_cut_connection_comes_back_and_unacknowledged_packets_are_sent_again(broker: BrokerProcess) -> None:
    with relay(broker.port) as between, mqtt_client(url(between.port), unique("cut")) as client:
        client.connect(None, "cut/#")
        between.cut()
        client.next(Disconnected)
        for number in range(3):
            client.transport.publish("cut/x", bytes([number]))
        client.next(Connected)
        assert [event.payload for event in client.receive(3)] == [b"\0", b"\1", b"\2"]


def test_no_packet_comes_before_connected(broker: BrokerProcess) -> None:
    with mqtt_client(broker.url, unique("first")) as sender:
        sender.connect()
        sender.transport.publish("order/state", b"retained", retain=True)
        sender.delivered()
    for _ in range(5):
        with mqtt_client(broker.url, unique("order")) as client:
            client.connect(None, "order/+")
            client.next(Received)
    with mqtt_client(broker.url, unique("last")) as client:
        client.transport.subscribe("order/+")
        client.transport.connect(None)
        client.until(lambda: len(client.events) == 2, "two events")
        assert [type(event) for event in client.events] == [Connected, Received]


def test_closing_leaves_no_thread_behind(broker: BrokerProcess) -> None:
    before = threading.active_count()
    for graceful in (True, False):
        client = mqtt_client(broker.url, unique("threads"))
        client.connect(None, "x")
        client.transport.close(graceful=graceful)
    assert threading.active_count() == before


def test_closing_while_no_broker_answers_is_prompt() -> None:
    before = threading.active_count()
    client = mqtt_client("mqtt://127.0.0.1:1", "nobody")
    client.transport.connect(None)
    client.next(Disconnected)
    started_s = time.monotonic()
    client.transport.close()
    assert time.monotonic() - started_s < 3.0
    assert threading.active_count() == before


def test_a_graceful_close_does_not_wait_for_a_stalled_broker_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.broker.mqtt.FLUSH_TIMEOUT_S", 0.2)
    with scripted_broker([(CONNECT, accept_3_1_1())]) as port:
        client = mqtt_client(url(port), "stalled", protocol="3.1.1")
        client.connect()
        client.transport.publish("x", bytes(1000))
        started_s = time.monotonic()
        client.transport.close()
        assert 0.15 < time.monotonic() - started_s < 3.0
