"""What only real connections show: versions, refusals, restarts, ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.errors import IdentityTaken, NotAuthorized, SettingsError
from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Connected, Disconnected, Received, Will
from support.brokers import BROKER_KINDS, Client, mosquitto_test, mqtt_client, running_broker, unique
from support.ports import free_port
from support.relay import relay
from support.scripted_broker import CONNECT, PUBLISH, SUBSCRIBE, accept_3_1_1, accept_5, scripted_broker
from support.waiting import ends


@pytest.fixture(scope="module", params=BROKER_KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    with running_broker(request.param) as running:
        yield running


def url(port: int) -> str:
    return f"mqtt://127.0.0.1:{port}"


def protocol_of(client: Client) -> str:
    assert isinstance(client.transport, MqttTransport)
    return client.transport.protocol


# Versions


def test_auto_settles_on_the_version_that_the_broker_has_at_once(broker: BrokerProcess) -> None:
    with mqtt_client(broker.url, unique("auto")) as client:
        client.connect(Will("state", b"offline"), "x")
        assert protocol_of(client) == ("5" if broker.kind == "mosquitto" else "3.1.1")
        assert client.events == [], "no attempt has failed"


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


def test_no_broker_is_reported_with_the_first_attempt() -> None:
    with mqtt_client(url(free_port()), "lonely") as client:
        client.transport.connect(None)
        event = client.next(Disconnected)
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


@pytest.mark.parametrize(
    ("protocol", "granted", "denied"),
    [("3.1.1", "90 03 4944 01", "90 03 4944 80"), ("5", "90 04 4944 00 01", "90 04 4944 00 87")],
    ids=["3.1.1", "5"],
)
def test_a_denied_subscription_that_is_optional_changes_nothing(
    protocol: ProtocolChoice, granted: str, denied: str
) -> None:
    accept = accept_5() if protocol == "5" else accept_3_1_1()
    body = b"\0\6mine/x" + (b"\0" if protocol == "5" else b"")
    message = bytes([0x30, len(body)]) + body
    script = [(CONNECT, accept), (SUBSCRIBE, bytes.fromhex(granted)), (SUBSCRIBE, bytes.fromhex(denied) + message)]
    with scripted_broker(script) as port, mqtt_client(url(port), "x", protocol=protocol) as client:
        client.transport.subscribe("$SYS/broker/uptime", is_optional=True)
        client.connect(None, "mine/#")
        assert client.next(Received).topic == "mine/x"
        client.expect_nothing(Disconnected)


def test_an_optional_subscription_over_which_a_broker_hangs_up_is_given_up() -> None:
    granted = bytes.fromhex("90 04 4944 00 01")
    hangs_up = [(CONNECT, accept_5()), (SUBSCRIBE, granted), (SUBSCRIBE, b"!")]
    script = [(CONNECT, accept_5()), (SUBSCRIBE, granted)]
    with (
        scripted_broker(hangs_up, hangs_up, script) as port,
        mqtt_client(url(port), "x", protocol="5") as client,
    ):
        client.transport.subscribe("$SYS/broker/uptime", is_optional=True)
        client.connect(None, "mine/#")
        for _ in range(2):
            assert client.next(Disconnected).fatal is None
            client.next(Connected)
        client.expect_nothing(Disconnected, for_s=0.5)
        assert isinstance(client.transport, MqttTransport)
        assert not client.transport._connection._subscriptions._optional


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
    before = set(threading.enumerate())
    for graceful in (True, False):
        client = mqtt_client(broker.url, unique("threads"))
        client.connect(None, "x")
        client.transport.close(graceful=graceful)
    assert set(threading.enumerate()) <= before


def test_closing_does_not_wait_for_the_next_attempt_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECONNECT_MIN_S", "RECONNECT_MAX_S"):
        monkeypatch.setattr(f"cutlayer.broker.mqtt_client.{name}", 3_600)
    before = set(threading.enumerate())
    client = mqtt_client("mqtt://127.0.0.1:1", "nobody")
    client.transport.connect(None)
    client.next(Disconnected)
    assert ends(client.transport.close)
    assert set(threading.enumerate()) <= before


def test_a_graceful_close_does_not_wait_for_a_stalled_broker_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.broker.mqtt.FLUSH_TIMEOUT_S", 0.2)
    with scripted_broker([(CONNECT, accept_3_1_1())]) as port:
        client = mqtt_client(url(port), "stalled", protocol="3.1.1")
        client.connect()
        client.transport.publish("x", bytes(1000))
        assert ends(client.transport.close)
        assert client.transport.pending_bytes() > 0, "what it has waited for never came"
