from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.messages import serialize
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.mqtt_packets import publish_size
from cutlayer.broker.topics import model_chunk
from cutlayer.simulation.doctor_client import DoctorClient
from cutlayer.simulation.doctor_mqtt import NEEDED_PACKET_BYTES, check_credentials, check_features, check_packets
from cutlayer.simulation.doctor_report import Finding, Verdict
from support.brokers import BROKER_KINDS, mosquitto_test, running_broker
from support.doctor_visits import visit
from support.scripted_broker import CONNECT, PUBLISH, accept_5, scripted_broker

pytestmark = pytest.mark.judges_by_silence

QUIET = "clinic/07/up/nobody/activations"


@pytest.fixture(scope="module", params=BROKER_KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text("clinic-07:right\n")
    with running_broker(request.param, password_file=users) as broker:
        yield broker


def credentials(url: str, **settings: Any) -> tuple[Finding, str | None]:
    return check_credentials(BrokerSettings(url=url, **settings), 2.0)


# Credentials ---------------------------------------------------------------------------------------------------


def test_each_mqtt_version_that_lets_the_user_in_is_named(guarded: BrokerProcess) -> None:
    finding, protocol = credentials(guarded.url, username="clinic-07", password="right")
    versions = ["3.1.1"] if guarded.kind == "amqtt" else ["5", "3.1.1"]
    assert finding.verdict is Verdict.OK
    assert finding.values["accepted"] == versions
    assert protocol == versions[0]
    assert "user 'clinic-07'" in finding.fact


def test_a_wrong_password_is_told_with_the_brokers_reason_and_not_shown(guarded: BrokerProcess) -> None:
    finding, protocol = credentials(guarded.url, username="clinic-07", password="wr0ng")
    assert (finding.verdict, finding.exit_code, protocol) == (Verdict.PROBLEM, 3, None)
    assert "not authorized" in finding.fact or "bad user name or password" in finding.fact
    assert "--password-file" in finding.fix
    assert "wr0ng" not in repr(finding)


def test_no_user_name_where_one_is_needed_names_the_options(guarded: BrokerProcess) -> None:
    finding, _ = credentials(guarded.url)
    assert finding.verdict is Verdict.PROBLEM
    assert "give --username and --password-file" in finding.fix


def test_after_a_refusal_the_rest_is_skipped(guarded: BrokerProcess) -> None:
    seen = visit(guarded.url, username="clinic-07", password="wrong")
    assert seen.checks(Verdict.PROBLEM) == ["credentials"]
    assert seen.one("rights").fact == "the check `credentials` has failed"


@mosquitto_test
def test_only_the_version_that_is_asked_for_is_tried() -> None:
    with running_broker("mosquitto") as broker:
        finding, protocol = credentials(broker.url, protocol="3.1.1")
    assert finding.values["accepted"] == ["3.1.1"]
    assert protocol == "3.1.1"


def test_a_version_that_the_broker_lacks_names_the_option() -> None:
    refused = (CONNECT, bytes.fromhex("20 02 00 01") + b"!")  # unacceptable protocol version
    with scripted_broker([refused]) as port:
        finding, _ = credentials(f"mqtt://127.0.0.1:{port}", protocol="3.1.1")
    assert finding.verdict is Verdict.PROBLEM
    assert "--mqtt auto" in finding.fix


def test_a_port_that_ends_every_connection_is_told() -> None:
    with scripted_broker([(CONNECT, b"!")]) as port:
        finding, _ = credentials(f"mqtt://127.0.0.1:{port}")
    assert finding.verdict is Verdict.PROBLEM
    assert "no CONNACK" in finding.fact
    assert "is this its MQTT port" in finding.fix


# What the broker offers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "lacking"),
    [
        ("25 00", "retained messages"),
        ("24 00", "QoS 1"),
        ("28 00", "wildcard subscriptions"),
        ("21 00 05", "10 unacknowledged packets a client (it says 5)"),
    ],
)
def test_what_the_broker_says_it_lacks_is_a_problem(properties: str, lacking: str) -> None:
    said = bytes.fromhex(properties)
    connack = bytes([0x20, 3 + len(said), 0, 0, len(said)]) + said
    with scripted_broker([(CONNECT, connack)]) as port, client_of(f"mqtt://127.0.0.1:{port}") as client:
        finding = check_features(client)
    assert finding is not None
    assert finding.verdict is Verdict.PROBLEM
    assert lacking in finding.fact


@mosquitto_test
def test_mosquitto_lacks_nothing() -> None:
    with running_broker("mosquitto") as broker, client_of(broker.url) as client:
        assert check_features(client) is None


# Packets -------------------------------------------------------------------------------------------------------


def client_of(url: str, protocol: Any = "5") -> DoctorClient:
    client = DoctorClient(BrokerSettings(url=url), protocol, 2.0)
    assert client.open().is_accepted
    return client


def packets(limit_bytes: int, protocol: Any, **settings: Any) -> Finding:
    with running_broker("mosquitto", max_packet_bytes=limit_bytes) as broker, client_of(broker.url, protocol) as client:
        return check_packets(client, BrokerSettings(url=broker.url, **settings), QUIET)


def test_the_needed_packet_is_as_large_as_the_largest_piece_of_a_model_and_no_limit_of_aws() -> None:
    (first, *_) = cut_model(bytes(200_000))
    piece = publish_size(model_chunk("f" * 64, 0), len(serialize(first)), qos=1, protocol="5")
    assert piece <= NEEDED_PACKET_BYTES <= piece + 100
    assert NEEDED_PACKET_BYTES < 131_072


@mosquitto_test
def test_a_limit_that_is_announced_is_taken_at_its_word() -> None:
    finding = packets(200_000, "5")
    assert finding.verdict is Verdict.OK
    assert finding.values["limit_bytes"] == 200_000
    assert "chunks" in finding.fact


@mosquitto_test
def test_without_an_announcement_sizes_are_tried_and_the_option_is_named() -> None:
    finding = packets(200_000, "3.1.1")
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 2)
    assert finding.values == {"limit_bytes": 131_072, "is_announced": False}
    assert "--max-packet-bytes 131072" in finding.fix
    assert packets(200_000, "3.1.1", max_packet_bytes=131_072).verdict is Verdict.OK


@mosquitto_test
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_limit_below_what_a_model_needs_is_to_be_raised_at_the_broker(protocol: str) -> None:
    finding = packets(50_000, protocol)
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 3)
    assert finding.values["needed_bytes"] == NEEDED_PACKET_BYTES
    assert "max_packet_size" in finding.fix


def test_a_packet_as_large_as_the_setting_is_tried_and_no_larger_one() -> None:
    with running_broker("amqtt") as broker, client_of(broker.url, "3.1.1") as client:
        finding = check_packets(client, BrokerSettings(url=broker.url, max_packet_bytes=20_000), QUIET)
    assert finding.values == {"limit_bytes": 20_000, "is_announced": False}
    assert finding.verdict is Verdict.OK


def test_without_a_topic_nothing_is_tried() -> None:
    with running_broker("amqtt") as broker, client_of(broker.url, "3.1.1") as client:
        assert check_packets(client, BrokerSettings(url=broker.url), None).verdict is Verdict.SKIPPED


def test_a_broker_that_ends_the_connection_over_every_packet_is_told() -> None:
    with scripted_broker([(CONNECT, accept_5()), (PUBLISH, b"!")]) as port, client_of(f"mqtt://127.0.0.1:{port}") as it:
        finding = check_packets(it, BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), QUIET)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.values["limit_bytes"] == 0


# The client ----------------------------------------------------------------------------------------------------


@mosquitto_test
def test_the_client_tells_what_it_is_told_and_comes_back_with_its_subscriptions(tmp_path: Path) -> None:
    access = tmp_path / "acl"
    access.write_text("topic readwrite a/#\n")
    with running_broker("mosquitto", acl_file=access) as broker, client_of(broker.url) as client:
        assert client.subscribe("a/b")["a/b"].is_accepted
        assert client.publish("elsewhere").text == "not authorized"
        client.publish("a/b", bytes(9_000_000))
        assert not client.is_open
        assert client.end
        assert client.ensure_open()
        assert client.publish("a/b", b"x").is_accepted
        assert client.pump(lambda: bool(client.heard))
        assert [(one.topic, one.payload, one.retain) for one in client.take("a/b")] == [("a/b", b"x", False)]
