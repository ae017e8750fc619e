"""A worker's process is stopped or killed in the middle of a run and started again, while its agents stay."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cutlayer.broker.launcher import BrokerProcess
from support.brokers import running_broker
from support.processes import DIGITS_FILE, Process, script, windows_of
from support.waiting import LIMIT_S, until

pytestmark = pytest.mark.slow

SMALL = {
    "run.epochs": "4",
    "run.microbatch_samples": "16",
    "model.options.embed_dim": "16",
    "model.options.depth": "1",
    "model.options.num_heads": "2",
    "window.samples": "32",
    "worker.checkpoint_every_windows": "5",
    "telemetry_s": "0.2",
}


class Run:
    """A broker, two agents, and workers one after the other."""

    def __init__(self, stack: ExitStack, broker: BrokerProcess, folder: Path) -> None:
        self._stack = stack
        self._broker = broker
        self.folder = folder
        self.agents: list[Process] = []

    def agent(self, index: int) -> Process:
        flags = ["--topic", f"clinic/{index:02d}", "--data", "demo:digits", "--shard", f"{index}/4"]
        options = ["--data-option", "views=1", "--data-option", "test_views=1"]
        arguments = [script("edge-agent"), "start", *flags, *options, "--broker", self._broker.url]
        self.agents.append(self._stack.enter_context(Process(arguments, self.folder / f"agent-{index}.log")))
        return self.agents[-1]

    @contextmanager
    def in_the_middle(self, num_windows: int) -> Iterator[Process]:
        """Train for so many windows; one agent stands still until the body has ended, so that the run cannot end."""
        worker = self.worker("first")
        waiting = self.agent(1)
        waiting.wait_for("worker w0 serves this agent")
        waiting.send(signal.SIGSTOP)
        self.agent(0)
        until(lambda: windows_of(worker) >= num_windows, f"{num_windows} windows")
        yield worker
        waiting.send(signal.SIGCONT)

    def worker(self, name: str, *flags: str) -> Process:
        settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
        arguments = [script("server-worker"), "start", "--run", str(DIGITS_FILE), *settings, "--min-agents", "2"]
        arguments += ["--name", "w0", "--broker", self._broker.url, "--output", str(self.folder / "run")]
        arguments += ["--http-port", "0", *flags]
        return self._stack.enter_context(Process(arguments, self.folder / f"{name}.log"))

    @property
    def result(self) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.folder / "run" / "run.json").read_text())
        return content

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "run" / "checkpoints").glob("checkpoint-*"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with ExitStack() as stack:
        yield Run(stack, stack.enter_context(running_broker("amqtt")), tmp_path)


def finish(run: Run, worker: Process) -> None:
    assert worker.exit_code(2 * LIMIT_S) == 0, worker.text()
    for agent in run.agents:
        assert agent.exit_code() == 0, agent.text()
        assert "Traceback" not in agent.text()
        assert "cost of this run here: " in agent.text().splitlines()[-1]
    assert "on the wire for each training sample, evaluation included; " in worker.text()
    assert worker.text().splitlines()[-1] == str(run.folder / "run" / "run.json")
    result = run.result
    # 2 of 4 shards of 1,437 scans, 4 epochs, microbatches of 16: 359 or 360 samples make 23 steps each.
    assert result["steps"] == 2 * 4 * 23
    assert result["samples"] in (4 * (359 + 360), 4 * 2 * 359)
    assert result["reason"] == "all agents have done their epochs"
    assert set(result["accuracy"]) == {"joint", "audio", "image"}  # type: ignore[call-overload]
    stages = ["tokenize", "encode", "network", "queue", "decode", "forward", "publish", "loss", "backward", "wait"]
    assert list(result["stages"]) == [*stages, "commit"]  # type: ignore[call-overload]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_worker_that_is_stopped_saves_all_and_goes_on_with_its_agents(
    run: Run, number: signal.Signals, code: int
) -> None:
    with run.in_the_middle(7) as worker:
        worker.send(number)
        assert worker.exit_code() == code
    assert "Traceback" not in worker.text()
    assert "stopped; checkpoint-" in worker.text()
    stopped = run.result
    assert stopped["reason"] == "the worker was stopped"
    assert run.checkpoints()
    assert all(agent.is_running() for agent in run.agents)
    resumed = run.worker("second", "--resume")
    resumed.wait_for(f"at window {stopped['windows']} from checkpoint-")
    finish(run, resumed)
    assert run.result["run_id"] == stopped["run_id"]


def test_worker_that_is_killed_goes_on_from_its_last_checkpoint(run: Run) -> None:
    with run.in_the_middle(12) as worker:
        worker.send(signal.SIGKILL)
        worker.exit_code()
    for agent in run.agents:
        agent.wait_for("lost the lease with worker w0")
    finish(run, run.worker("second", "--resume"))


def test_second_worker_of_the_same_name_is_refused_and_the_run_goes_on(run: Run) -> None:
    with run.in_the_middle(3) as worker:
        second = run.worker("second", "--output", str(run.folder / "other"))
        assert second.exit_code() == 4
        assert "worker w0 already serves a run on this broker, in another process\n  fix: " in second.text()
        assert "Traceback" not in second.text()
        assert all(agent.is_running() for agent in run.agents)
    finish(run, worker)
    assert "lost the lease" not in run.agents[1].text()
