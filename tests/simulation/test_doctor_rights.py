"""Each right of an agent, proven or missed, at a real broker with a real ACL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from paho.mqtt.client import topic_matches_sub

from cutlayer.broker.courier import Courier
from cutlayer.broker.messages import AgentState, Direction, Probe, parse, serialize
from cutlayer.broker.topics import AgentTopics, WorkerTopics
from cutlayer.broker.transport import Received
from cutlayer.simulation.doctor_report import Verdict
from support.brokers import BROKER_KINDS, Client, mosquitto_test, mqtt_client, running_broker, unique
from support.doctor_visits import AGENT, Visit, visit, worker_online
from support.processes import CountingWorker

pytestmark = pytest.mark.judges_by_silence

UP, DOWN, STATE = f"write {AGENT}/up/#", f"read {AGENT}/down/#", f"readwrite {AGENT}/state"
RUN, MODEL, WORKERS = "read cutlayer/run", "read cutlayer/model/#", "read cutlayer/workers/+/state"
INBOX = f"write cutlayer/workers/+/inbox/{AGENT}"
RIGHTS = [UP, INBOX, STATE, DOWN, RUN, MODEL, WORKERS]

# Each user lacks one line, and has another in its place or none.
LACKING = {
    "up": (UP, None),
    "up-gradients": (UP, f"write {AGENT}/up/+/activations"),
    "inbox": (INBOX, None),
    "shared-inbox": (INBOX, "write cutlayer/workers/+/inbox"),
    "state": (STATE, None),
    "state-read": (STATE, f"write {AGENT}/state"),
    "state-write": (STATE, f"read {AGENT}/state"),
    "down": (DOWN, None),
    "run": (RUN, None),
    "model": (MODEL, None),
    "workers": (WORKERS, None),
}


def write_access(folder: Path) -> dict[str, Path]:
    """Write passwords and an ACL for a worker, a user with every right and those of `LACKING`."""
    users = {"worker": ["readwrite #"], "entitled": list(RIGHTS)}
    for name, (missing, instead) in LACKING.items():
        users[name] = [right for right in RIGHTS if right != missing] + ([instead] if instead else [])
    passwords, access = folder / "users", folder / "acl"
    passwords.write_text("".join(f"{name}:secret\n" for name in users))
    access.write_text(
        "".join(f"user {name}\n" + "".join(f"topic {line}\n" for line in lines) for name, lines in users.items())
    )
    return {"password_file": passwords, "acl_file": access}


@pytest.fixture(scope="module")
def without_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker("mosquitto", **write_access(tmp_path_factory.mktemp("access"))) as broker:
        yield broker.url


@pytest.fixture(scope="module")
def with_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        running_broker("mosquitto", **write_access(tmp_path_factory.mktemp("access"))) as broker,
        worker_online(broker.url, username="worker", password="secret"),
    ):
        yield broker.url


@mosquitto_test
def test_with_a_worker_online_every_right_is_proven(with_worker: str) -> None:
    seen = visit(with_worker, username="entitled", password="secret")
    assert {seen.right(line).verdict for line in RIGHTS} == {Verdict.OK}
    assert not seen.checks(Verdict.PROBLEM)
    assert not seen.checks(Verdict.WARNING)
    assert not seen.checks(Verdict.SKIPPED)


@mosquitto_test
@pytest.mark.parametrize("user", LACKING)
def test_a_line_that_is_missing_from_the_acl_is_named(with_worker: str, user: str) -> None:
    seen = visit(with_worker, username=user, password="secret")
    missing, _ = LACKING[user]
    finding = seen.right(missing)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.exit_code == 3
    assert f"user {user} the line `topic {missing}`" in finding.fix
    assert {line for line in RIGHTS if seen.right(line).verdict is Verdict.PROBLEM} == {missing}


@mosquitto_test
def test_without_a_worker_what_cannot_be_proven_is_said_to_be_so(without_worker: str) -> None:
    seen = visit(without_worker, username="entitled", password="secret")
    proven = [line for line in RIGHTS if seen.right(line).values["is_proven"]]
    assert proven == [UP, INBOX, STATE]
    for line in (DOWN, RUN, MODEL, WORKERS):
        assert seen.right(line).verdict is Verdict.WARNING
        assert "not proven" in seen.right(line).fact
        assert "server-worker start" in seen.right(line).fix
    assert not seen.checks(Verdict.PROBLEM)


@mosquitto_test
@pytest.mark.parametrize("user", ["up", "up-gradients", "inbox", "shared-inbox", "state", "state-read", "state-write"])
def test_a_right_to_publish_is_missed_without_a_worker_too(without_worker: str, user: str) -> None:
    seen = visit(without_worker, username=user, password="secret")
    assert [line for line in RIGHTS if seen.right(line).verdict is Verdict.PROBLEM] == [LACKING[user][0]]


@mosquitto_test
def test_mqtt_3_1_1_proves_no_right_to_publish_up(with_worker: str) -> None:
    for user in ("entitled", "up"):
        seen = visit(with_worker, username=user, password="secret", protocol="3.1.1")
        assert seen.right(UP).verdict is Verdict.WARNING
        assert "--mqtt 5" in seen.right(UP).fix
        assert seen.right(INBOX).verdict is seen.right(STATE).verdict is seen.right(DOWN).verdict is Verdict.OK


@mosquitto_test
@pytest.mark.parametrize("user", ["inbox", "down"])
def test_a_worker_that_does_not_answer_over_mqtt_3_1_1_names_both_lines_that_may_be_missing(
    with_worker: str, user: str
) -> None:
    finding = visit(with_worker, username=user, password="secret", protocol="3.1.1").right(DOWN)
    assert finding.verdict is Verdict.PROBLEM
    assert f"`topic {DOWN}`" in finding.fix
    assert f"`topic {INBOX}`" in finding.fix


def test_a_broker_without_an_acl_proves_rights_by_what_comes_back() -> None:
    with running_broker("amqtt") as broker:
        seen = visit(broker.url)
    assert [line for line in RIGHTS if seen.right(line).verdict is Verdict.WARNING] == [RUN]
    assert [line for line in RIGHTS if seen.right(line).values["is_proven"]] == [line for line in RIGHTS if line != RUN]


# A visit disturbs nobody ---------------------------------------------------------------------------------------

STATE_OF_RUNNING_AGENT = serialize(AgentState(True, 1_700_000_000_000))


@contextmanager
def recorded_visit(kind: Literal["amqtt", "mosquitto"]) -> Iterator[tuple[str, Client, CountingWorker, Visit]]:
    """Send the doctor where a worker is online and an agent has announced itself; a recorder hears everything."""
    with (
        running_broker(kind) as broker,
        worker_online(broker.url) as worker,
        mqtt_client(broker.url, unique("recorder")) as recorder,
    ):
        recorder.connect(None, "#")
        recorder.transport.publish(AgentTopics(AGENT).state, STATE_OF_RUNNING_AGENT, retain=True)
        recorder.delivered()
        yield broker.url, recorder, worker, visit(broker.url)


def heard(client: Client) -> list[Received]:
    """Return all that a client of `#` has heard until now."""
    client.transport.publish("the/end", b"now")
    client.until(
        lambda: any(isinstance(event, Received) and event.topic == "the/end" for event in client.events), "end"
    )
    return [event for event in client.events if isinstance(event, Received) and event.topic != "the/end"]


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_a_visit_leaves_nothing_at_the_broker(kind: Literal["amqtt", "mosquitto"]) -> None:
    with recorded_visit(kind) as (url, recorder, _, _), mqtt_client(url, unique("newcomer")) as newcomer:
        newcomer.connect(None, "#")
        kept = {packet.topic for packet in heard(newcomer)}
        assert kept == {packet.topic for packet in heard(recorder) if packet.retain} | {AgentTopics(AGENT).state}


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_a_visit_says_nothing_that_a_running_agent_or_worker_acts_on(kind: Literal["amqtt", "mosquitto"]) -> None:
    topics = AgentTopics(AGENT)
    listens = (topics.down_all, topics.state, topics.up_to("w0"), topics.telemetry, "cutlayer/run", "cutlayer/model/#")
    passed_over = 0
    with recorded_visit(kind) as (_, recorder, worker, seen):
        courier = Courier(recorder.transport, Direction.UP)
        for packet in heard(recorder):
            if packet.retain or packet.payload == STATE_OF_RUNNING_AGENT:
                continue
            if packet.topic == WorkerTopics("w0").inbox_of(AGENT):
                assert isinstance(parse(packet.payload), Probe)
            elif any(topic_matches_sub(name, packet.topic) for name in listens):
                assert courier.receive(packet) is None
                passed_over += 1
        assert passed_over >= 2  # the echo on the agent's state, and its telemetry
        assert not courier.rejects
        assert "left in peace" in seen.one("agent").fact
        assert not worker.runtime.is_finished
