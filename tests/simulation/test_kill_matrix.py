"""Everybody is killed at every step of the conversation, in real processes over Mosquitto and torchft: nothing is lost.

Three agents and a pool of two workers train in synchronous mode. In each cell of the matrix one of them, or the
lighthouse, or the broker, is killed with SIGKILL right before or right after one of the four messages of a step, or in
the middle of the round that commits a window; then it is started again. Every run has to end by itself, with every
step of every epoch committed once, and with the weights of an undisturbed run.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.ledger import Ledger
from cutlayer.simulation.virtual import VirtualNetwork
from support.brokers import mosquitto_test, running_broker
from support.pool_processes import (
    AgentSpec,
    Child,
    Lighthouse,
    Trap,
    When,
    WorkerSpec,
    start_agent,
    start_worker,
)
from support.ports import free_port
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker

pytestmark = pytest.mark.slow

TOPICS = ("site/0", "site/1", "site/2")
NUM_STEPS = 40
"""Of each agent: a worker that is killed in the third is up again before the last, on a loaded machine, too."""
SETTINGS = small_settings(
    run={"min_agents": 3, "absence_grace_s": 60.0, "epochs": 10}, worker={"round_timeout_s": 4.0}, telemetry_s=0.5
)
CELL_S = 240.0
"""A cell that takes longer has failed."""

AT_AGENT = {"activations": "/up/w0/activations", "output gradients": "/up/w0/gradients"}
AT_WORKER = {"outputs": "site/0/down/outputs", "activation gradients": "site/0/down/gradients"}
MESSAGES = ("activations", "outputs", "output gradients", "activation gradients")
WHENS: tuple[When, ...] = ("before", "after")
MOMENTS: tuple[tuple[When, str], ...] = (*((when, name) for name in MESSAGES for when in WHENS), ("after", "commit"))
VICTIMS = ("agent", "worker", "lighthouse", "broker")


@dataclass
class Cell:
    """One run, with one victim at one moment."""

    victim: str
    when: When
    event: str
    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)

    def run(self, undisturbed: dict[str, torch.Tensor]) -> str:
        """Return what is wrong at the end; empty when nothing is."""
        self.folder.mkdir()
        with self.stack:
            try:
                self._start()
                return self._kill() or self._finish() or self._check(undisturbed)
            except AssertionError as error:
                return str(error)

    def _start(self) -> None:
        self.port = free_port()
        self.broker = self._start_broker()
        self.lighthouse = Lighthouse(self.folder / "lighthouse.log")
        self.stack.callback(self.lighthouse.kill)
        trap = Trap(self._topic_end(), 2, self.when, only_closing=self.event == "commit")
        is_agents = self.event in AT_AGENT
        self.workers = {
            name: self._worker(name, None if is_agents else trap if name == "w0" else None) for name in ("w0", "w1")
        }
        self.agents = {
            topic: self._agent(index, trap if is_agents and index == 0 else None) for index, topic in enumerate(TOPICS)
        }
        self.trapped = self.agents["site/0"] if is_agents else self.workers["w0"]

    def _topic_end(self) -> str:
        return {**AT_AGENT, **AT_WORKER, "commit": "workers/w0/window"}[self.event]

    def _start_broker(self) -> BrokerProcess:
        return self.stack.enter_context(running_broker("mosquitto", port=self.port))

    def _worker(self, name: str, trap: Trap | None) -> Child:
        number = len(list(self.folder.glob(f"{name}-*.log")))
        store = self.folder / f"{name}-{number}"
        log = self.folder / f"{name}-{number}.log"
        child = start_worker(WorkerSpec(name, SETTINGS, self.broker.url, self.lighthouse.url, store, log), trap)
        self.stack.callback(child.kill)
        return child

    def _agent(self, index: int, trap: Trap | None) -> Child:
        log = self.folder / f"agent-{index}-{len(list(self.folder.glob(f'agent-{index}-*.log')))}.log"
        child = start_agent(AgentSpec(TOPICS[index], index, self.broker.url, log), trap)
        self.stack.callback(child.kill)
        return child

    def _kill(self) -> str:
        if not self.trapped.is_trapped(CELL_S):
            return f"the moment has not come: {self.trapped.log()[-800:]}"
        match self.victim:
            case "agent":
                self.agents["site/0"].kill()
                self.agents["site/0"] = self._agent(0, None)
            case "worker":
                self.workers["w0"].kill()
                self.workers["w0"] = self._worker("w0", None)
            case "lighthouse":
                self.lighthouse.kill()
                self.lighthouse.start()
            case _:
                self.broker.stop(kill=True)
                self.broker = self._start_broker()
        if self.trapped in (*self.agents.values(), *self.workers.values()):
            self.trapped.go_on()
        return ""

    def _finish(self) -> str:
        give_up_at = time.monotonic() + CELL_S
        for name, child in {**self.agents, **self.workers}.items():
            code = child.exit_code(max(give_up_at - time.monotonic(), 0.1))
            if code != 0:
                return f"{name} {'has not ended' if code is None else f'exit {code}'}: {child.log()[-1500:]}"
        return ""

    def _check(self, undisturbed: dict[str, torch.Tensor]) -> str:
        for name, worker in self.workers.items():
            checkpoint = worker.result().checkpoint
            ledger = Ledger.from_bytes(checkpoint.ledger)
            for topic in TOPICS:
                if list(ledger.of(topic)) != [(0, NUM_STEPS)]:
                    return f"{name}: {topic} has committed {list(ledger.of(topic))}"
            if checkpoint.meta["committed_samples"] != len(TOPICS) * NUM_STEPS * 4:
                return f"{name}: {checkpoint.meta['committed_samples']} samples committed"
            for key, value in checkpoint.state.weights.items():
                try:
                    torch.testing.assert_close(value, undisturbed[key], rtol=1e-5, atol=1e-6)
                except AssertionError as error:
                    return f"{name}: {key} differs from the undisturbed run's: {error}"
        return ""


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    """Return the final weights of the same run with one worker, in virtual time, without any fault."""
    network = VirtualNetwork()
    worker = Worker(network, SETTINGS, computes=True)
    agents = [network.add_agent(topic, small_dataset(index)) for index, topic in enumerate(TOPICS)]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    return worker.engine.state_dict().weights


@mosquitto_test
def test_whoever_is_killed_whenever_every_step_is_committed_once_and_the_weights_are_the_same(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        Cell(victim, when, event, tmp_path / f"{victim}-{when}-{event.replace(' ', '-')}")
        for victim in VICTIMS
        for when, event in MOMENTS
    ]
    with ThreadPoolExecutor(2) as executor:
        problems = dict(
            zip(
                ((c.victim, c.when, c.event) for c in cells),
                executor.map(lambda c: c.run(undisturbed), cells),
                strict=True,
            )
        )
    with capsys.disabled():
        print("\n" + table(problems))
    failed = {cell: problem for cell, problem in problems.items() if problem}
    assert not failed, "\n\n".join(f"{' '.join(cell)}: {problem}" for cell, problem in failed.items())


def table(problems: dict[tuple[str, When, str], str]) -> str:
    """Return the matrix as text."""
    lines = [f"{'killed':<32}" + "".join(f"{victim:>12}" for victim in VICTIMS)]
    for when, event in MOMENTS:
        moment = "in the round of a commit" if event == "commit" else f"{when} {event}"
        marks = ["FAILED" if problems[victim, when, event] else "ok" for victim in VICTIMS]
        lines.append(f"{moment:<32}" + "".join(f"{mark:>12}" for mark in marks))
    return "\n".join(lines)
