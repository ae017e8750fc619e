"""`edge-agent` as a person meets it: help, wrong flags, no broker, Ctrl-C, two of a kind."""

from __future__ import annotations

import logging
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import AgentState, RunManifest, parse, serialize
from cutlayer.broker.topics import RUN, AgentTopics
from cutlayer.broker.transport import Received
from cutlayer.edge_agent import cli
from cutlayer.edge_agent.cli import client_identifier
from support.brokers import mqtt_client, running_broker
from support.ports import free_port
from support.processes import Process, digits_settings, script
from support.small_side import served, small_manifest
from support.waiting import LIMIT_S

GOOD = ["start", "--topic", "clinic/07", "--data", "demo:digits", "--shard", "0/4"]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("cutlayer")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with running_broker("amqtt") as running:
        yield running


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["edge-agent", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def changed(**flags: str) -> list[str]:
    words = [*GOOD, "--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.1"]
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    return words


WRONG = {
    "a topic of ours": (changed(topic="cutlayer/run"), "topic 'cutlayer/run'"),
    "a topic filter": (changed(topic="clinic/+"), "topic 'clinic/+'"),
    "an empty topic": (changed(topic=""), "topic ''"),
    "a shard beyond the last": (changed(shard="4/4"), "shard 4/4"),
    "a limit that is no rate": (changed(max_uplink="5mb"), "--max-uplink '5mb' is no rate"),
    "a limit that is too low": (changed(max_uplink="1kbit"), "--max-uplink '1kbit' is below 8kbit"),
    "a shard that is none": (changed(shard="four"), "shard 'four'"),
    "more shards than samples": (changed(shard="0/5000"), "shard"),
    "unknown data": (changed(data="demo:cats"), "no data set 'demo:cats'"),
    "an unknown option": (changed(data_option="noise=3"), "option noise"),
    "an option out of range": (changed(data_option="alpha=-1"), "option alpha"),
    "an option that is no pair": (changed(data_option="alpha"), "--data-option 'alpha'"),
    "no MQTT address": (changed(broker="http://hub"), "http://hub"),
    "a port that is none": (changed(broker="mqtt://hub:99999"), "mqtt://hub:99999"),
    "an unknown MQTT version": (changed(mqtt="4"), "'4'"),
    "too small packets": (changed(max_packet_bytes="10"), "max_packet_bytes is 10"),
    "an unknown log format": (changed(log_format="xml"), "--log-format 'xml'"),
    "a missing certificate": (changed(broker="mqtts://hub", ca_file="/no/such.pem"), "/no/such.pem"),
    "a missing password file": (changed(username="me", password_file="/no/such"), "/no/such"),
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_wrong_flag_is_one_message_that_names_it_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert "\n  fix: " in printed
    assert "Traceback" not in printed
    assert printed.startswith("edge-agent: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["start", "--data", "demo:digits"], "--topic"),
        (["start", "--topic", "clinic/07"], "--data"),
        ([*GOOD, "--colour", "red"], "--colour"),
        (["stop"], "stop"),
        ([*GOOD, "--keep-alive", "soon"], "--keep-alive"),
        ([*GOOD, "--connect-timeout", "-1"], "--connect-timeout"),
    ],
    ids=["no topic", "no data", "unknown flag", "unknown command", "no number", "negative"],
)
def test_flag_that_is_missing_or_unknown_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed


def test_wrong_flag_with_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *changed(shard="4/4"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_no_broker_at_the_port_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    assert run(monkeypatch, *GOOD, "--broker", url, "--connect-timeout", "3") == 3
    printed = capsys.readouterr().err
    assert f"edge-agent: no broker at {url}: no connection within 3 s (Connection refused)\n" in printed
    assert "fix: start one" in printed
    assert "Traceback" not in printed


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "start", "--help") == 0
    printed = capsys.readouterr().out
    for word in ("Examples", "--topic", "--shard", "CUTLAYER_BROKER", "Exit codes", "130"):
        assert word in printed


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("cutlayer 0.")


def test_agents_of_different_topics_and_processes_have_different_client_identifiers() -> None:
    topics = ["clinic/07", "clinic-07", "clinic.07", "clinic_07", "clinic/0/7"]
    identifiers = {client_identifier(topic, incarnation) for topic in topics for incarnation in (1, 2)}
    assert len(identifiers) == 2 * len(topics), "two processes of one topic can be connected at once"
    assert not any("/" in identifier or "#" in identifier for identifier in identifiers)


def start(broker: BrokerProcess, log: Path, topic: str, *flags: str) -> Process:
    arguments = [script("edge-agent"), "start", "--topic", topic, "--data", "demo:digits", "--broker", broker.url]
    return Process([*arguments, *flags], log)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_ends_a_waiting_agent(broker: BrokerProcess, tmp_path: Path, number: signal.Signals, code: int) -> None:
    topic = f"waiting/{number.name}"
    with mqtt_client(broker.url, "observer") as observer:
        observer.connect(None, AgentTopics(topic).state)  # before the agent: else it may hear twice of its coming
        with start(broker, tmp_path / "log", topic) as agent:
            agent.wait_for("connected to")
            agent.send(number)
            assert agent.exit_code() == code
            assert "Traceback" not in agent.text()
        states = [parse(packet.payload) for packet in observer.receive(2)]
        assert [state.online for state in states if isinstance(state, AgentState)] == [True, False]


def test_agent_that_waits_says_what_for(broker: BrokerProcess, tmp_path: Path) -> None:
    with start(broker, tmp_path / "log", "waiting/1") as agent:
        agent.wait_for("no run is announced on this broker; waiting for one")


def announced(manifest: Manifest) -> bytes:
    return serialize(RunManifest(manifest.to_bytes()))


def digits_manifest(**changes: object) -> Manifest:
    settings = digits_settings()
    manifest = small_manifest(run_id="digits-1").model_copy(
        update={"modalities": dict(settings.modalities), "task": settings.task}
    )
    return manifest.model_copy(update=changes)


IMAGE = digits_settings().modalities["image"]
UNFIT = {
    "another modality": (digits_manifest(modalities={"smell": IMAGE}), "its modalities are smell"),
    "another shape": (
        digits_manifest(modalities={"image": IMAGE.model_copy(update={"height": 16})}),
        "it needs image as",
    ),
    "other classes": (digits_manifest(task=small_manifest().task), "its classes are no, perhaps, yes"),
}


@pytest.mark.parametrize(("manifest", "text"), UNFIT.values(), ids=UNFIT)
def test_run_that_the_data_do_not_fit_exits_with_4_and_says_why(tmp_path: Path, manifest: Manifest, text: str) -> None:
    with running_broker("amqtt") as broker, mqtt_client(broker.url, "starter") as starter:
        starter.connect()
        starter.transport.publish(RUN, announced(manifest), retain=True)
        starter.transport.publish(*served(manifest), retain=True)
        starter.delivered()
        with start(broker, tmp_path / "log", "clinic/07") as agent:
            assert agent.exit_code() == 4
            assert f"edge-agent: this agent cannot take part in the run: {text}" in agent.text()
            assert "\n  fix: " in agent.text()
            assert "Traceback" not in agent.text()


def test_second_agent_of_the_same_topic_ends_and_the_first_goes_on(broker: BrokerProcess, tmp_path: Path) -> None:
    topic = "twin/1"
    states: list[AgentState] = []

    def told() -> AgentState:
        while packets := [event for event in observer.events if isinstance(event, Received)]:
            state = parse(observer.next(type(packets[0])).payload)
            assert isinstance(state, AgentState)
            states.append(state)
        return states[-1]

    with start(broker, tmp_path / "first", topic) as first, mqtt_client(broker.url, "observer") as observer:
        first.wait_for("connected to")
        observer.connect(None, AgentTopics(topic).state)
        observer.until(lambda: observer.events, "claim of the first")
        claim = told()
        with start(broker, tmp_path / "second", topic) as second:
            assert second.exit_code() == 5
            assert f"edge-agent: another process now runs as {topic!r}" in second.text()
            assert "Traceback" not in second.text()
        assert first.is_running()
        # A broker that loses the second's DISCONNECT to a TCP reset publishes its will; the first contradicts that.
        observer.until(lambda: told().incarnation == claim.incarnation and told().online, "last word of the first")
        newcomer = max(state.incarnation for state in states)
        assert newcomer > claim.incarnation
        assert any(state.incarnation == claim.incarnation and state.answers == newcomer for state in states)


def test_agent_serves_its_own_metrics_where_it_is_asked_to(broker: BrokerProcess, tmp_path: Path) -> None:
    with start(broker, tmp_path / "log", "shown/1", "--metrics-port", "0") as agent:
        agent.wait_for("metrics at http://127.0.0.1:")
        address = agent.text().split("metrics at ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=LIMIT_S) as answer:  # noqa: S310 - loopback
            assert b"cutlayer_wire_bytes_total" in answer.read()


def test_agent_that_was_killed_can_be_started_again_at_once(broker: BrokerProcess, tmp_path: Path) -> None:
    with start(broker, tmp_path / "first", "twin/2") as first:
        first.wait_for("connected to")
        first.send(signal.SIGKILL)
        first.exit_code()
    with start(broker, tmp_path / "second", "twin/2") as second:
        second.wait_for("waiting for one")
        assert second.is_running()
