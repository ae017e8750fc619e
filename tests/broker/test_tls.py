from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.broker.errors import NotAuthorized, SettingsError
from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.transport import Connected, Disconnected, Received, Will
from support.brokers import BROKER_KINDS, mosquitto_test, mqtt_client, running_broker, unique
from support.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=BROKER_KINDS)
def broker(request: pytest.FixtureRequest, files: Certificates) -> Iterator[BrokerProcess]:
    with running_broker(request.param, certificate=files.server_certificate, key=files.server_key) as running:
        yield running


def test_an_encrypted_connection_carries_packets(broker: BrokerProcess, files: Certificates) -> None:
    assert broker.url.startswith("mqtts://")
    with mqtt_client(broker.url, unique("tls"), ca_file=files.ca) as client:
        client.connect(Will("tls/state", b"offline"), "tls/#")
        for size in (10, 900_000):
            client.transport.publish("tls/up", bytes(size))
            assert len(client.next(Received).payload) == size
        client.delivered()


def test_a_client_that_vanishes_leaves_its_will_over_tls_too(broker: BrokerProcess, files: Certificates) -> None:
    with mqtt_client(broker.url, unique("tls"), ca_file=files.ca) as watcher:
        watcher.connect(None, "tls/gone")
        mortal = mqtt_client(broker.url, unique("tls"), ca_file=files.ca)
        mortal.connect(Will("tls/gone", b"offline"))
        mortal.transport.close(graceful=False)
        assert watcher.next(Received).payload == b"offline"


def test_a_broker_whose_certificate_another_ca_signed_is_not_trusted(
    broker: BrokerProcess, files: Certificates
) -> None:
    for ca_file in (files.other_ca, None):
        with mqtt_client(broker.url, unique("tls"), ca_file=ca_file) as client:
            client.transport.connect(None)
            error = client.fatal()
            assert isinstance(error, SettingsError)
            assert "--ca-file" in error.fix


def test_a_certificate_for_another_host_name_is_not_trusted(broker: BrokerProcess, files: Certificates) -> None:
    with mqtt_client(f"mqtts://localhost:{broker.port}", unique("tls"), ca_file=files.ca) as client:
        client.transport.connect(None)
        error = client.fatal()
        assert isinstance(error, SettingsError)
        assert "localhost" in str(error)


def test_speaking_in_the_clear_to_a_tls_port_is_reported_with_a_question(broker: BrokerProcess) -> None:
    with mqtt_client(f"mqtt://127.0.0.1:{broker.port}", unique("plain")) as client:
        client.transport.connect(None)
        assert "TLS" in client.next(Disconnected).reason


def test_speaking_tls_to_an_unencrypted_port_is_reported(broker: BrokerProcess, files: Certificates) -> None:
    with (
        running_broker(broker.kind) as plain,
        mqtt_client(f"mqtts://127.0.0.1:{plain.port}", unique("tls"), ca_file=files.ca) as client,
    ):
        client.transport.connect(None)
        if broker.kind == "amqtt":  # it waits for the rest of what it takes for a packet, and says nothing
            client.expect_nothing(Connected)
        else:
            assert client.next(Disconnected).reason


@pytest.fixture(scope="module")
def strict(files: Certificates) -> Iterator[BrokerProcess]:
    with running_broker(
        "mosquitto", certificate=files.server_certificate, key=files.server_key, client_ca=files.ca
    ) as running:
        yield running


@mosquitto_test
def test_a_certificate_that_the_ca_signed_is_let_in(strict: BrokerProcess, files: Certificates) -> None:
    with mqtt_client(
        strict.url,
        unique("mutual"),
        ca_file=files.ca,
        client_cert=files.client_certificate,
        client_key=files.client_key,
    ) as client:
        client.connect(None, "mutual")
        client.transport.publish("mutual", b"x")
        client.next(Received)


@mosquitto_test
def test_no_certificate_is_refused(strict: BrokerProcess, files: Certificates) -> None:
    with mqtt_client(strict.url, unique("mutual"), ca_file=files.ca) as client:
        client.transport.connect(None)
        event = client.next(Disconnected)
        # In TLS 1.3 the refusal may be overtaken by the end of the connection, and then is only a question.
        assert isinstance(event.fatal, NotAuthorized) or "TLS" in event.reason


@mosquitto_test
def test_a_certificate_of_another_ca_is_refused(strict: BrokerProcess, files: Certificates, tmp_path: Path) -> None:
    foreign = make_certificates(tmp_path)
    with mqtt_client(
        strict.url,
        unique("mutual"),
        ca_file=files.ca,
        client_cert=foreign.client_certificate,
        client_key=foreign.client_key,
    ) as client:
        client.transport.connect(None)
        event = client.next(Disconnected)
        assert isinstance(event.fatal, NotAuthorized) or "TLS" in event.reason
