from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.launcher import BrokerProcess
from cutlayer.simulation.doctor_network import check_name, check_port, check_tls
from cutlayer.simulation.doctor_report import Finding, Verdict
from support.brokers import BROKER_KINDS, mosquitto_test, running_broker
from support.certificates import Certificates, make_certificates
from support.doctor_visits import visit
from support.ports import free_port

pytestmark = pytest.mark.judges_by_silence

AFTER_THE_NETWORK = ["rights", "packets", "round-trip", "up", "down", "clock", "manifest", "weights", "workers"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=BROKER_KINDS)
def encrypted(request: pytest.FixtureRequest, files: Certificates) -> Iterator[BrokerProcess]:
    with running_broker(request.param, certificate=files.server_certificate, key=files.server_key) as broker:
        yield broker


@contextmanager
def silent_port() -> Iterator[int]:
    """Accept connections and say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def tls(url: str, timeout_s: float = 2.0, **settings: Any) -> Finding:
    return check_tls(BrokerSettings(url=url, **settings), timeout_s)


# Name and port -------------------------------------------------------------------------------------------------


def test_an_unknown_host_ends_the_visit_and_all_else_says_why_it_was_skipped() -> None:
    seen = visit("mqtt://no-such-host.invalid")
    name = seen.one("name")
    assert (name.verdict, name.exit_code) == (Verdict.PROBLEM, 3)
    assert "no-such-host.invalid has no address" in name.fact
    assert "--broker" in name.fix
    assert seen.checks(Verdict.SKIPPED) == ["port", "tls", "credentials", *AFTER_THE_NETWORK]
    assert {finding.fact for finding in seen.findings[1:]} == {"the check `name` has failed"}


def test_a_name_is_shown_with_its_addresses() -> None:
    finding = check_name(BrokerSettings(url="mqtt://localhost"), 2.0)
    assert finding.verdict is Verdict.OK
    assert {"127.0.0.1", "::1"} & set(finding.values["addresses"])  # type: ignore[arg-type]


def test_a_closed_port_is_told_from_a_missing_host() -> None:
    port = free_port()
    seen = visit(f"mqtt://127.0.0.1:{port}")
    assert seen.one("name").verdict is Verdict.OK
    finding = seen.one("port")
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 3)
    assert finding.fact == f"nothing listens on 127.0.0.1 port {port}"
    assert "cutlayer broker start" in finding.fix
    assert seen.checks(Verdict.SKIPPED) == ["tls", "credentials", *AFTER_THE_NETWORK]


def test_a_port_that_answers_is_timed() -> None:
    with silent_port() as port:
        finding = check_port(BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), 2.0)
    assert finding.verdict is Verdict.OK
    assert finding.values["address"] == "127.0.0.1"
    assert finding.values["connect_s"] > 0.0  # type: ignore[operator]


# TLS -----------------------------------------------------------------------------------------------------------


def test_a_trusted_certificate_is_shown_with_its_names_issuer_and_days(
    encrypted: BrokerProcess, files: Certificates
) -> None:
    finding = tls(encrypted.url, ca_file=files.ca)
    assert finding.verdict is Verdict.OK
    assert finding.values["names"] == ["127.0.0.1"]
    assert "trustme" in str(finding.values["issuer"])
    assert str(finding.values["version"]).startswith("TLSv1.")
    assert "more days" in finding.fact


def test_without_a_ca_file_the_option_and_the_issuer_are_named(encrypted: BrokerProcess) -> None:
    finding = tls(encrypted.url)
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 2)
    assert "give --ca-file with the certificate (PEM) of trustme" in finding.fix
    assert "trustme" in finding.fact


def test_a_ca_file_that_holds_another_ca_is_named(encrypted: BrokerProcess, files: Certificates) -> None:
    finding = tls(encrypted.url, ca_file=files.other_ca)
    assert finding.verdict is Verdict.PROBLEM
    assert f"--ca-file {files.other_ca} does not hold the CA that signed it" in finding.fix


def test_a_certificate_for_another_host_is_shown_with_the_names_it_is_for(
    encrypted: BrokerProcess, files: Certificates
) -> None:
    finding = tls(f"mqtts://localhost:{encrypted.port}", ca_file=files.ca)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.fact == "the certificate is not for localhost but for 127.0.0.1"


@mosquitto_test
@pytest.mark.parametrize(
    ("days", "verdict", "says"), [(-1, Verdict.PROBLEM, "out of date"), (5, Verdict.WARNING, "4 more days")]
)
def test_an_expiry_that_is_near_or_past_is_told(tmp_path: Path, days: int, verdict: Verdict, says: str) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + timedelta(days=days))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    with running_broker("mosquitto", certificate=tmp_path / "both.pem", key=tmp_path / "both.pem") as broker:
        finding = tls(broker.url, ca_file=tmp_path / "ca.pem")
    assert finding.verdict is verdict
    assert says in finding.fact
    assert "renewed" in finding.fix


@mosquitto_test
def test_a_broker_that_asks_for_a_certificate_names_the_options(files: Certificates) -> None:
    with running_broker(
        "mosquitto", certificate=files.server_certificate, key=files.server_key, client_ca=files.ca
    ) as strict:
        finding = tls(strict.url, ca_file=files.ca)
        assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 3)
        assert "--client-cert" in finding.fix
        let_in = tls(strict.url, ca_file=files.ca, client_cert=files.client_certificate, client_key=files.client_key)
        assert let_in.verdict is Verdict.OK


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_tls_asked_of_a_port_without_it_is_told(kind: Any, files: Certificates) -> None:
    with running_broker(kind) as plain:
        finding = tls(f"mqtts://127.0.0.1:{plain.port}", ca_file=files.ca)
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 2)
    assert finding.fact == "the port speaks MQTT without TLS"
    assert f"mqtt://127.0.0.1:{plain.port}" in finding.fix


def test_mqtt_in_the_clear_to_a_tls_port_is_told(encrypted: BrokerProcess) -> None:
    seen = visit(f"mqtt://127.0.0.1:{encrypted.port}")
    finding = seen.one("credentials")
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 2)
    assert "mqtts://" in finding.fix
    assert seen.checks(Verdict.SKIPPED) == AFTER_THE_NETWORK


def test_a_port_that_never_answers_the_handshake_is_told() -> None:
    with silent_port() as port:
        finding = tls(f"mqtts://127.0.0.1:{port}", timeout_s=0.5)
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 3)
    assert "0.5 s" in finding.fact


def test_an_unencrypted_broker_is_warned_of_unless_it_is_on_this_machine() -> None:
    assert tls("mqtt://127.0.0.1").verdict is Verdict.OK
    elsewhere = tls("mqtt://hub.example")
    assert elsewhere.verdict is Verdict.WARNING
    assert "mqtts://" in elsewhere.fix


def test_a_whole_visit_goes_over_tls(encrypted: BrokerProcess, files: Certificates) -> None:
    seen = visit(encrypted.url, ca_file=files.ca)
    assert not seen.checks(Verdict.PROBLEM)
    assert {seen.one(check).verdict for check in ("tls", "credentials", "round-trip", "up", "down")} == {Verdict.OK}
