"""`cutlayer top` as it waits and ends: over the in-memory broker in real time, and as a process."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import BrokerUnreachable
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import Message, RunManifest, RunPhase, serialize
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.topics import RUN, WorkerTopics
from cutlayer.broker.transport import Transport
from cutlayer.simulation.top import NothingToShow, look_once
from support.brokers import mosquitto_test, running_broker
from support.processes import DIGITS_FILE, Process, script
from support.reported_run import grown_store, report_of, worker_state
from support.synthetic_run import synthetic_manifest
from support.waiting import LIMIT_S

NO_BROKER = "mqtt://127.0.0.1:9"
"""Port 9 (discard) is reserved and has no listener: refused at once."""


class Hub:
    """A broker in memory, and a client that speaks for a worker, there or elsewhere."""

    def __init__(self, speaker: Transport | None = None) -> None:
        self._broker = MemoryBroker(time.monotonic)
        self._speaker = speaker or self.transport("speaker")
        self._speaker.connect(None)

    def transport(self, client_id: str) -> MemoryTransport:
        return MemoryTransport(self._broker, client_id)

    def say(self, topic: str, message: Message, *, retain: bool = False) -> None:
        self._speaker.publish(topic, serialize(message), retain=retain)
        self._speaker.poll()

    def announce(self, phase: RunPhase = RunPhase.TRAINING, *, online: bool = True) -> None:
        self.say(RUN, RunManifest(synthetic_manifest().to_bytes()), retain=True)
        self.say(WorkerTopics("worker-0").state, worker_state(phase=phase, online=online), retain=True)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report five times a second in a thread, as a worker that is far along."""
        stop = threading.Event()

        def report() -> None:
            sequence = 0
            while not stop.wait(0.2):
                sequence += 1
                self.say(WorkerTopics("worker-0").report, report_of(grown_store(sequence * 2.0), sequence))

        thread = threading.Thread(target=report)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def test_one_look_waits_for_two_reports_so_that_there_are_rates() -> None:
    hub = Hub()
    hub.announce()
    with hub.reporting():
        state = look_once(hub.transport("top"), "mqtt://hub", timeout_s=LIMIT_S)
    assert len(state.times) >= 2
    assert all(row.wire_bytes_per_s is not None and row.wire_bytes_per_s.up > 0 for row in state.agents)


@pytest.mark.judges_by_silence
@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda _: None, "no run is announced, as far as"),
        (lambda hub: hub.announce(online=False), "has no worker online"),
        (lambda hub: hub.announce(RunPhase.ENDED, online=False), "has ended"),
        (lambda hub: hub.announce(), "no worker of run digits-4f1c22aa has reported within"),
    ],
    ids=["no run", "no worker", "ended", "no report"],
)
def test_nothing_to_show_says_how_far_it_came(prepare: Callable[[Hub], None], said: str) -> None:
    hub = Hub()
    prepare(hub)
    with pytest.raises(NothingToShow, match=said) as caught:
        look_once(hub.transport("top"), "mqtt://hub", timeout_s=1.0)
    assert "fix: " in str(caught.value)
    assert caught.value.exit_code == 4


def test_broker_that_never_answers_is_unreachable() -> None:
    silent = MemoryBroker(time.monotonic)
    silent.stop()
    with pytest.raises(BrokerUnreachable):
        look_once(MemoryTransport(silent, "top"), "mqtt://hub", timeout_s=0.5)


def top(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script("cutlayer"), "top", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_teaches() -> None:
    words = " ".join(top("--help").stdout.split())
    for text in ("cutlayer top --broker mqtt://hub --once --json", "--ca-file", "docs/top.md", "Exit codes"):
        assert text in words


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["--json"], 2, "--json is for one screen"),
        ([], 2, "the output is no terminal"),
        (["--broker", "hub"], 2, "'hub' is not mqtt://"),
        (["--once", "--broker", NO_BROKER, "--timeout", "1"], 3, f"no broker at {NO_BROKER}"),
    ],
)
def test_wrong_use_says_what_is_wrong_and_how_to_mend_it(arguments: list[str], exit_code: int, said: str) -> None:
    done = top(*arguments)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert said in done.stderr
    assert "fix: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.judges_by_silence
def test_broker_without_a_run_exits_with_4() -> None:
    with running_broker("amqtt") as broker:
        done = top("--once", "--json", "--timeout", "2", CUTLAYER_BROKER=broker.url)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"nothing to show from {broker.url}: no run is announced" in done.stderr


class Terminal:
    """`cutlayer top` on a terminal of a given size."""

    def __init__(self, url: str, width: int, height: int) -> None:
        self.master, slave = pty.openpty()
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        environment |= {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)}
        self.process = subprocess.Popen(
            [script("cutlayer"), "top", "--broker", url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def read_until(self, wanted: str, timeout_s: float = LIMIT_S) -> None:
        end_at = time.monotonic() + timeout_s
        while wanted not in self.text:
            left_s = end_at - time.monotonic()
            assert left_s > 0, f"no {wanted!r} in {self.text[-3_000:]}"
            if select.select([self.master], [], [], left_s)[0]:
                self.text += self._read()

    def end(self) -> str:
        """Press Ctrl-C, and return what is printed from then on."""
        start = len(self.text)
        self.process.send_signal(signal.SIGINT)
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            if select.select([self.master], [], [], 0.1)[0]:
                piece = self._read()
                if not piece:
                    break
                self.text += piece
        return self.text[start:]

    def _read(self) -> str:
        try:
            return os.read(self.master, 65_536).decode(errors="replace")
        except OSError:  # Linux says so when the other end is closed
            return ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


LEAVES_SCREEN = "\x1b[?1049l"


def test_terminal_waits_for_a_run_and_ctrl_c_puts_everything_back() -> None:
    with running_broker("amqtt") as broker, Terminal(broker.url, 80, 24) as terminal:
        terminal.read_until("No run is announced here")
        rest = terminal.end()
        assert terminal.process.wait() == 130
    assert LEAVES_SCREEN in rest
    assert "No run is announced here" in rest.split(LEAVES_SCREEN)[1]  # the last screen stays
    assert "Traceback" not in rest


@mosquitto_test
@pytest.mark.judges_by_silence
def test_watcher_needs_the_right_to_read_three_topics_and_no_more(tmp_path: Path) -> None:
    rights = tmp_path / "acl"
    watcher = "".join(
        f"topic read {topic}\n" for topic in ("cutlayer/run", "cutlayer/workers/+/state", "cutlayer/workers/+/report")
    )
    rights.write_text(
        f"user worker\ntopic readwrite cutlayer/#\nuser watcher\n{watcher}user nobody\ntopic read other\n",
        encoding="utf-8",
    )
    with running_broker("mosquitto", acl_file=rights) as broker:
        speaker = MqttTransport(BrokerSettings(url=broker.url, username="worker"), "worker")
        hub = Hub(speaker)
        hub.announce()
        with hub.reporting():
            done = top("--once", "--broker", broker.url, "--timeout", "60", CUTLAYER_USERNAME="watcher")
            blind = top("--once", "--broker", broker.url, "--timeout", "2", CUTLAYER_USERNAME="nobody")
        speaker.close()
    assert done.returncode == 0, done.stderr
    assert "clinic/02" in done.stdout
    # Mosquitto grants the subscription and then sends nothing.
    assert blind.returncode == 4
    assert "no run is announced, as far as this user can read" in blind.stderr


@pytest.mark.slow
@mosquitto_test
def test_real_run_over_mosquitto_is_shown_as_text_as_json_and_in_a_terminal(tmp_path: Path) -> None:
    with running_broker("mosquitto") as broker:
        worker = [script("server-worker"), "start", "--run", str(DIGITS_FILE), "--broker", broker.url]
        worker += ["--name", "w0", "--output", str(tmp_path / "run"), "--http-port", "0", "--epochs", "50"]
        worker += ["--min-agents", "2", "--set", "telemetry_s=1"]
        agents = [
            f"{script('edge-agent')} start --broker {broker.url} --topic clinic/{index} --data demo:digits "
            f"--shard {index}/2".split()
            for index in range(2)
        ]
        with (
            Process(worker, tmp_path / "w0.log"),
            Process(agents[0], tmp_path / "a0.log"),
            Process(agents[1], tmp_path / "a1.log"),
        ):
            with Terminal(broker.url, 120, 50) as terminal:
                terminal.read_until("Slowest sites")
                terminal.read_until("clinic/1")
                terminal.end()
                assert terminal.process.wait() == 130
            as_json = top("--once", "--json", "--broker", broker.url, "--timeout", "100")
            as_text = top("--once", "--broker", broker.url, "--timeout", "100", COLUMNS="80", NO_COLOR="1")
    document = json.loads(as_json.stdout)
    values = {
        (panel["title"], target["legend"]): {value["name"]: value["value"] for value in target["values"]}
        for panel in document["panels"]
        for target in panel["targets"]
    }
    assert document["workers"][0]["name"] == "w0"
    assert values["Agents", "agents"] == {"agents": 2}
    assert values["Wire up", "up"]["up"] > values["Wire down", "down"]["down"] > 0
    assert values["Smaller by", "raw / wire"]["raw / wire"] > 5
    assert {agent["agent"] for agent in document["agents"]} == {"clinic/0", "clinic/1"}
    assert all(agent["wire_bytes_per_s"]["up"] > 0 for agent in document["agents"])
    stages = values["Where the time of a step goes", "{{stage}}"]
    assert {"tokenize", "encode", "network", "forward", "backward"} <= set(stages)
    # Mosquitto tells of itself every ten seconds only: two pictures may have the same figures.
    assert values["Broker", "received"]["received"] >= 0
    assert as_text.returncode == 0
    assert "\x1b" not in as_text.stdout
    assert max(map(len, as_text.stdout.splitlines())) <= 80
    assert "clinic/0" in as_text.stdout
