"""scripts/make_certs.py and broker/mosquitto.tls.conf, in a real Mosquitto: who gets in, and who may say what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cutlayer.broker.errors import NotAuthorized
from cutlayer.broker.launcher_mosquitto import find_mosquitto
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics
from cutlayer.broker.transport import Received
from support.brokers import Client, mosquitto_test, mqtt_client
from support.compose import configuration
from support.podman import PROJECT
from support.ports import free_port, listens
from support.waiting import LIMIT_S, until


def make_certs(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "make_certs.py"), "--output", str(folder), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "secrets"
    result = make_certs(folder, "--host", "hub.example", "--agents", "2")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def url(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with broker(secrets, tmp_path_factory.mktemp("broker")) as url:
        yield url


@contextmanager
def broker(secrets: Path, folder: Path) -> Iterator[str]:
    """Run Mosquitto as docker-compose.tls.yml does, secrets at the paths that it gives them."""
    port = free_port()
    text = (PROJECT / "broker" / "mosquitto.tls.conf").read_text().replace("listener 8883\n", f"listener {port}\n")
    for name, secret in configuration("docker-compose.yml", "docker-compose.tls.yml")["secrets"].items():
        text = text.replace(f"/run/secrets/{name}\n", f"{secrets / Path(secret['file']).name}\n")
    assert "/run/secrets" not in text
    settings = folder / "mosquitto.conf"
    settings.write_text(f"user root\n{text}")
    command = [str(find_mosquitto()), "-c", str(settings)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port), "answer of Mosquitto")
            yield f"mqtts://127.0.0.1:{port}"
        finally:
            process.terminate()


def client(url: str, secrets: Path, user: str, **settings: Any) -> Client:
    password = (secrets / ("worker_password" if user == "worker" else "agent_password")).read_text().strip()
    given: dict[str, Any] = {"username": user, "password": password, "ca_file": secrets / "ca.pem"}
    return mqtt_client(url, f"id-{user}", **(given | settings))


@mosquitto_test
def test_the_users_do_their_work(url: str, secrets: Path) -> None:
    topics, worker_topics = AgentTopics("demo/site-1"), WorkerTopics("w1")
    with client(url, secrets, "worker") as worker, client(url, secrets, "site-1") as agent:
        worker.connect(None, worker_topics.inboxes, "demo/+/up/#", "$SYS/broker/uptime")
        agent.connect(None, RUN, topics.down_all)
        worker.next(Received)  # $SYS: what the worker's metrics of the broker are made from
        agent.transport.publish(worker_topics.inbox_of("demo/site-1"), b"hello")
        assert worker.receive()[0].payload == b"hello"
        worker.transport.publish(RUN, b"manifest", retain=True)
        assert agent.receive()[0].payload == b"manifest"


@mosquitto_test
@pytest.mark.parametrize("settings", [{"username": None, "password": None}, {"password": "guessed"}])
def test_nobody_else_gets_in(url: str, secrets: Path, settings: dict[str, Any]) -> None:
    with client(url, secrets, "site-0", **settings) as stranger:
        stranger.transport.connect(None)
        assert isinstance(stranger.fatal(), NotAuthorized)


@mosquitto_test
def test_a_site_cannot_speak_for_another(url: str, secrets: Path) -> None:
    with client(url, secrets, "site-0") as agent:
        agent.connect()
        agent.transport.publish("demo/site-1/up/w1/activations", b"forged")
        assert isinstance(agent.fatal(), NotAuthorized)


def test_the_certificate_holds_for_the_hosts_it_was_made_for(secrets: Path) -> None:
    def verified(host: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", str(secrets / "ca.pem"), "-verify_hostname", host]
        return subprocess.run([*command, str(secrets / "broker.pem")], capture_output=True, check=False).returncode

    assert [verified(host) for host in ("broker", "localhost", "hub.example")] == [0, 0, 0]
    assert verified("elsewhere.example") != 0


def test_the_folder_is_its_owners_and_is_not_written_over(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o077 == 0
    assert {file.name for file in secrets.iterdir()} == {
        *("ca.pem", "broker.pem", "broker.key", "broker_passwords", "broker_acl"),
        *("worker_password", "agent_password"),
    }
    before = (secrets / "ca.pem").read_bytes()
    again = make_certs(secrets)
    assert again.returncode == 2
    assert "has a CA already" in again.stderr
    assert (secrets / "ca.pem").read_bytes() == before
