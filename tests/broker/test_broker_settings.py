from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cutlayer.broker.broker_settings import BrokerSettings, is_loopback
from cutlayer.broker.errors import SettingsError
from support.certificates import make_certificates


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://hub", "hub", 1883, False),
        ("mqtts://hub.example", "hub.example", 8883, True),
        ("mqtt://10.0.0.1:1884", "10.0.0.1", 1884, False),
        ("mqtts://[::1]:9000/", "::1", 9000, True),
    ],
)
def test_a_url_gives_host_port_and_encryption(url: str, host: str, port: int, tls: bool) -> None:
    settings = BrokerSettings(url=url)
    assert (settings.host, settings.port, settings.tls) == (host, port, tls)


@pytest.mark.parametrize(
    "url",
    [
        "hub:1883",
        "tcp://hub",
        "http://hub",
        "mqtt://",
        "mqtt://hub:0",
        "mqtt://hub:99999",
        "mqtt://hub:port",
        "mqtt://hub/topic",
        "mqtt://hub?x=1",
        "",
        "mqtt://" + "a" * 64,
    ],
)
def test_any_other_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        BrokerSettings(url=url)
    assert "mqtt://HOST:PORT" in refused.value.fix


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as refused:
        BrokerSettings(url="mqtt://alice:hunter2@hub")
    assert "hunter2" not in str(refused.value)


def test_the_password_does_not_show() -> None:
    assert "hunter2" not in repr(BrokerSettings(username="alice", password="hunter2"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"password": "x"}, "username"),
        ({"username": "a", "password": "x", "password_file": Path("p")}, "both"),
        ({"username": "a", "password_file": Path("/nowhere/p")}, "/nowhere/p"),
        ({"ca_file": Path("/nowhere/ca.pem"), "url": "mqtts://hub"}, "/nowhere/ca.pem"),
        ({"ca_file": Path("ca.pem")}, "not encrypted"),
        ({"keep_alive_s": 5}, "keep_alive_s"),
        ({"max_packet_bytes": 10}, "max_packet_bytes"),
        ({"max_packet_bytes": 2**40}, "max_packet_bytes"),
        ({"max_queued_messages": 0}, "max_queued_messages"),
        ({"max_queued_bytes": 1000}, "max_queued_bytes"),
        ({"protocol": "4"}, "protocol"),
    ],
)
def test_what_cannot_work_is_named_with_a_fix(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        BrokerSettings(**values)
    assert named in refused.value.problem
    assert refused.value.fix


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    with pytest.raises(SettingsError, match="client_cert is given without client_key"):
        BrokerSettings(url="mqtts://hub", client_cert=files.client_certificate)
    with pytest.raises(SettingsError, match="client_key is given without client_cert"):
        BrokerSettings(url="mqtts://hub", client_key=files.client_key)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    settings = BrokerSettings(url="mqtts://hub", client_cert=files.client_certificate, client_key=files.server_key)
    with pytest.raises(SettingsError, match="client_key"):
        settings.tls_context()


def test_a_ca_file_without_a_certificate_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    with pytest.raises(SettingsError, match=r"ca\.pem holds no certificates"):
        BrokerSettings(url="mqtts://hub", ca_file=empty).tls_context()


def test_an_unencrypted_broker_has_no_tls_context() -> None:
    assert BrokerSettings().tls_context() is None


def test_the_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\nsecond line\n")
    assert BrokerSettings(username="alice", password_file=path).read_password() == "hunter2"


def test_an_empty_password_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        BrokerSettings(username="alice", password_file=path).read_password()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("hub", False), ("", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
