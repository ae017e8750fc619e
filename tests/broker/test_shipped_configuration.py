"""broker/mosquitto.conf and broker/acl.example do what they say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutlayer.broker.errors import NotAuthorized
from cutlayer.broker.launcher_mosquitto import find_mosquitto
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics, WorkerTopics
from cutlayer.broker.transport import Connected, Received
from support.brokers import Client, mosquitto_test, mqtt_client, running_broker
from support.ports import free_port, listens
from support.waiting import until

FOLDER = Path(__file__).parents[2] / "broker"


@contextmanager
def shipped_broker(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    text = (FOLDER / "mosquitto.conf").read_text()
    assert len(re.findall(r"(?m)^listener 1883$", text)) == 1
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(text.replace("listener 1883\n", f"listener {port} 127.0.0.1\nuser root\n"))
    command = [str(find_mosquitto()), "-c", str(configuration)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            until(lambda: listens(port), "answer of Mosquitto")
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            process.terminate()
            out, errors = process.communicate()
        assert b"rror" not in out + errors, out + errors


@mosquitto_test
def test_the_configuration_starts_and_announces_its_packet_limit(tmp_path: Path) -> None:
    with shipped_broker(tmp_path) as url, mqtt_client(url, "x", max_packet_bytes=20_000_000) as client:
        assert client.connect(None, "x") == Connected(8_388_608)
        for _ in range(10):
            client.transport.publish("x", bytes(100))
            client.next(Received)


@mosquitto_test
def test_the_launched_configuration_agrees_with_the_shipped_one(tmp_path: Path) -> None:
    from cutlayer.broker.broker_options import BrokerOptions
    from cutlayer.broker.launcher_mosquitto import write_configuration

    def measured(text: str) -> set[str]:
        keys = ("set_tcp_nodelay", "max_packet_size", "max_inflight", "max_queued", "memory_limit", "persistence")
        return {line for line in text.splitlines() if line.startswith(keys)}

    launched = write_configuration(BrokerOptions(), 1883, tmp_path, None).read_text()
    assert measured(launched) == measured((FOLDER / "mosquitto.conf").read_text())
    assert "set_tcp_nodelay true" in measured(launched)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    users = tmp_path / "users"
    users.write_text("worker:w\nclinic-07:a\nclinic-08:b\n")
    with running_broker("mosquitto", password_file=users, acl_file=FOLDER / "acl.example") as broker:
        yield broker.url


def user(url: str, name: str, password: str) -> Client:
    return mqtt_client(url, f"id-{name}", username=name, password=password)


@mosquitto_test
def test_the_acl_lets_an_agent_and_a_worker_do_their_work(guarded: str) -> None:
    agent_topics, worker_topics = AgentTopics("clinic/07"), WorkerTopics("w1")
    with user(guarded, "clinic-07", "a") as agent, user(guarded, "worker", "w") as worker:
        worker.connect(None, worker_topics.inboxes, agent_topics.state, "clinic/07/up/#")
        agent.connect(None, RUN, WORKER_STATES, "clinic/07/down/#", agent_topics.state)
        for topic in (RUN, worker_topics.state, "clinic/07/down/outputs"):
            worker.transport.publish(topic, b"down")
        assert {event.topic for event in agent.receive(3)} == {RUN, worker_topics.state, "clinic/07/down/outputs"}
        for topic in (worker_topics.inbox_of("clinic/07"), agent_topics.state, "clinic/07/up/w1/activations"):
            agent.transport.publish(topic, b"up")
        assert len(worker.receive(3)) == 3
        agent.delivered()


@mosquitto_test
def test_the_acl_keeps_an_agent_out_of_anothers_topics(guarded: str) -> None:
    with user(guarded, "clinic-07", "a") as agent, user(guarded, "worker", "w") as worker:
        worker.connect()
        agent.connect(None, "clinic/08/down/#", "clinic/08/up/#")
        worker.transport.publish("clinic/08/down/outputs", b"not for 07")
        worker.transport.publish("clinic/08/up/w1/activations", b"not for 07")
        agent.expect_nothing()
        agent.transport.publish("clinic/08/up/w1/activations", b"forged")
        assert isinstance(agent.fatal(), NotAuthorized)


@mosquitto_test
def test_the_acl_keeps_an_agent_from_asking_in_anothers_name(guarded: str) -> None:
    with user(guarded, "clinic-07", "a") as agent:
        agent.connect()
        agent.transport.publish(WorkerTopics("w1").inbox_of("clinic/08"), b"forged")
        assert isinstance(agent.fatal(), NotAuthorized)


@mosquitto_test
def test_the_acl_keeps_an_agent_from_announcing_a_run(guarded: str) -> None:
    with user(guarded, "clinic-07", "a") as agent:
        agent.connect()
        agent.transport.publish(RUN, b"forged", retain=True)
        assert isinstance(agent.fatal(), NotAuthorized)
