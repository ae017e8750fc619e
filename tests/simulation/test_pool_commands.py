"""The commands as users run them: two workers with `--pool`, agents, and a lighthouse; one worker leaves, one comes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cutlayer.broker.ledger import Ledger
from cutlayer.server_worker.checkpoint import CheckpointStore
from support.brokers import mosquitto_test, running_broker
from support.pool_processes import Lighthouse
from support.processes import DIGITS_FILE, Process, script
from support.waiting import LIMIT_S

pytestmark = pytest.mark.slow

SMALL = {
    "run.epochs": "90",
    "run.microbatch_samples": "16",
    "model.options.embed_dim": "16",
    "model.options.depth": "1",
    "model.options.num_heads": "2",
    "window.samples": "64",
    "worker.threads": "1",
    "worker.round_timeout_s": "5.0",
    "telemetry_s": "0.2",
}
NUM_AGENTS = 2


class Commands:
    """A broker, a lighthouse, agents, and workers that come and go."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._broker = stack.enter_context(running_broker("mosquitto"))
        self.lighthouse = Lighthouse(folder / "lighthouse.log")
        stack.callback(self.lighthouse.kill)
        self.folder = folder

    def agents(self) -> list[Process]:
        return [self._agent(index) for index in range(NUM_AGENTS)]

    def _agent(self, index: int) -> Process:
        command = [script("edge-agent"), "start", "--topic", f"clinic/{index:02d}", "--data", "demo:digits"]
        command += ["--shard", f"{index}/4", "--data-option", "views=1", "--data-option", "test_views=1"]
        log = self.folder / f"agent-{index}.log"
        return self._stack.enter_context(Process([*command, "--broker", self._broker.url], log))

    def worker(self, name: str, *flags: str) -> Process:
        settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
        command = [script("server-worker"), "start", "--run", str(DIGITS_FILE), *settings, "--name", name]
        command += ["--min-agents", str(NUM_AGENTS), "--broker", self._broker.url, "--http-port", "0"]
        command += ["--output", str(self.folder / name), *flags]
        return self._stack.enter_context(Process(command, self.folder / f"{name}.log"))

    def pooled(self, name: str) -> Process:
        return self.worker(name, "--pool", self.lighthouse.url)

    def result(self, name: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.folder / name / "run.json").read_text())
        return content

    def ledger(self, name: str) -> Ledger:
        store = CheckpointStore(self.folder / name / "checkpoints")
        return Ledger.from_bytes(store.load_latest().checkpoint.ledger)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    with ExitStack() as stack:
        yield Commands(stack, tmp_path)


@mosquitto_test
def test_a_worker_leaves_another_comes_and_the_run_ends_with_one_model(commands: Commands) -> None:
    first, second = commands.pooled("w0"), commands.pooled("w1")
    first.wait_for("serving run")
    second.wait_for("serving run")
    agents = commands.agents()
    for worker in (first, second):
        worker.wait_for("the run is training")
    time.sleep(1.0)
    second.send(signal.SIGTERM)
    assert second.exit_code() == 0, second.text()
    assert "Traceback" not in second.text()
    third = commands.pooled("w2")
    third.wait_for("took over the pool's weights")
    for worker in (first, third):
        assert worker.exit_code(2 * LIMIT_S) == 0, worker.text()
    for agent in agents:
        assert agent.exit_code() == 0, agent.text()
    results = [commands.result(name) for name in ("w0", "w2")]
    assert len({result["run_id"] for result in results}) == 1
    assert {result["reason"] for result in results} == {"all agents have done their epochs"}
    ledgers = [commands.ledger(name) for name in ("w0", "w2")]
    assert ledgers[0].to_bytes() == ledgers[1].to_bytes()
    assert all(len(tuple(ledgers[0].of(agent))) == 1 for agent in ledgers[0].agents())
    assert len(ledgers[0].agents()) == NUM_AGENTS


@mosquitto_test
def test_a_worker_without_a_pool_does_not_start_beside_one(commands: Commands) -> None:
    commands.pooled("w0").wait_for("serving run")
    alone = commands.worker("w9")
    assert alone.exit_code() == 4
    assert "start all workers of the run with --pool" in alone.text()


@mosquitto_test
def test_a_lighthouse_that_is_not_there_is_named_with_the_fix(commands: Commands) -> None:
    commands.lighthouse.kill()
    lost = commands.worker("w0", "--pool", commands.lighthouse.url, "--set", "worker.round_timeout_s=1.0")
    assert lost.exit_code() == 3
    assert "torchft_lighthouse" in lost.text()
    commands.lighthouse.start()
