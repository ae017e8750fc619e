"""A pool of workers, their lighthouse, a broker and agents as processes of their own, to be killed at chosen moments.

Children are forked from a server that has torch loaded already, so that one takes a moment to start. A child may carry
a *trap*: when it publishes the n-th message of a kind it stops right before or right after, says so, and goes on when
it is told to. Between the two whoever runs the test kills whom it likes, the child itself included.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.messages import WindowState, parse
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import TransportEvent, Will
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import CheckpointStore, RestoredCheckpoint
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_pool, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.worker_options import WorkerOptions
from support.ports import free_port, listens
from support.small_run import small_dataset
from support.waiting import until

__all__ = ["AgentSpec", "Child", "Lighthouse", "Trap", "WorkerSpec", "start_agent", "start_worker"]

When = Literal["before", "after"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["support.pool_processes", "cutlayer.server_worker.torchft_pool"])
QUICK = Deadlines(hello_s=0.5, step_s=1.0, longest_s=4.0)


@dataclass(frozen=True)
class Trap:
    """Where a child stops.

    Attributes:
        topic_end: What the message's topic ends with.
        number: Which of these messages, from 1.
        when: Before or after it is published.
        only_closing: Whether only a worker's call to close the window counts.
    """

    topic_end: str
    number: int
    when: When
    only_closing: bool = False

    def matches(self, topic: str, payload: bytes) -> bool:
        """Whether this is one of the messages that count."""
        if not topic.endswith(self.topic_end):
            return False
        message = parse(payload) if self.only_closing else None
        return not self.only_closing or (isinstance(message, WindowState) and message.closes)


class TrappedTransport:
    """A transport that stops at a trap, tells who listens, and waits to be told to go on."""

    def __init__(self, inner: MqttTransport, trap: Trap | None, line: Connection) -> None:
        self._inner = inner
        self._trap = trap
        self._line = line
        self._num_seen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def connect(self, will: Will | None) -> None:
        """Start connecting."""
        self._inner.connect(will)

    def poll(self) -> list[TransportEvent]:
        """Return what has happened."""
        return self._inner.poll()

    def publish(self, topic: str, payload: bytes, **options: Any) -> int:
        """Publish, and stop before or after where the trap says so."""
        trap = self._trap
        if trap is None or not trap.matches(topic, payload):
            return self._inner.publish(topic, payload, **options)
        self._num_seen += 1
        if self._num_seen != trap.number:
            return self._inner.publish(topic, payload, **options)
        if trap.when == "before":
            self._stop()
            return self._inner.publish(topic, payload, **options)
        written = self._inner.publish(topic, payload, **options)
        until(lambda: not self._inner.pending_bytes(), "acknowledgement of the trapped message", every_s=0.001)
        self._stop()
        return written

    def _stop(self) -> None:
        self._line.send("trapped")
        self._line.recv()


@dataclass(frozen=True)
class WorkerSpec:
    """A worker of a pool. Attributes as of the commands' options; `store` is the folder of its checkpoints."""

    name: str
    settings: RunSettings
    url: str
    lighthouse: str
    store: Path
    log: Path
    resumes: bool = False


@dataclass(frozen=True)
class AgentSpec:
    """An agent of a small run; `seed` makes its samples."""

    topic: str
    seed: int
    url: str
    log: Path
    num_train: int = 16


class Child:
    """A process, with a line to it."""

    def __init__(self, main: Callable[..., None], spec: WorkerSpec | AgentSpec, trap: Trap | None) -> None:
        self.spec = spec
        self.line, line = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=main, args=(spec, trap, line), daemon=True)
        self._process.start()
        line.close()

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process.pid is not None
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def is_trapped(self, timeout_s: float) -> bool:
        """Wait until it stops at its trap."""
        try:
            return self.line.poll(timeout_s) and self.line.recv() == "trapped"
        except EOFError:
            return False

    def go_on(self) -> None:
        """Let it go on."""
        self.line.send("go on")

    def exit_code(self, timeout_s: float) -> int | None:
        """Wait for its end; None when it has not come."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def log(self) -> str:
        """Return what it has printed."""
        return self.spec.log.read_text(encoding="utf-8", errors="replace")

    def result(self) -> RestoredCheckpoint:
        """Return the checkpoint that a worker has left."""
        assert isinstance(self.spec, WorkerSpec)
        return CheckpointStore(self.spec.store).load_latest()


def start_worker(spec: WorkerSpec, trap: Trap | None = None) -> Child:
    """Start a worker."""
    return Child(_worker_main, spec, trap)


def start_agent(spec: AgentSpec, trap: Trap | None = None) -> Child:
    """Start an agent."""
    return Child(_agent_main, spec, trap)


class Lighthouse:
    """torchft's lighthouse, on a port that stays the same over its deaths."""

    def __init__(self, log: Path, *, heartbeat_timeout_ms: int = 1_000, join_timeout_ms: int = 3_000) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._timeouts = (heartbeat_timeout_ms, join_timeout_ms)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        heartbeat, join = self._timeouts
        command = [str(Path(sys.executable).parent / "torchft_lighthouse"), "--bind", f"127.0.0.1:{self.port}"]
        command += ["--min_replicas", "1", "--heartbeat_timeout_ms", str(heartbeat), "--join_timeout_ms", str(join)]
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, "RUST_LOG": "warn"}
            )
        until(lambda: listens(self.port), f"lighthouse on port {self.port}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()


def _worker_main(spec: WorkerSpec, trap: Trap | None, line: Connection) -> None:
    def run() -> None:
        import torch

        torch.set_num_threads(1)
        settings = spec.settings
        built = build(settings, settings.run.seed)
        engine = make_engine(settings, built)
        manifest = make_manifest(settings, built)
        session = make_session(settings, manifest, spec.name, is_pooled=True, version=engine.version)
        transport = MqttTransport(_broker(spec.url), client_id=f"worker-{spec.name}", identity=spec.name)
        runtime = WorkerRuntime(
            TrappedTransport(transport, trap, line),
            session,
            engine,
            built.tokenizer_file,
            RunBook(manifest, 0),
            checkpoints=CheckpointStore(spec.store),
            pool=make_pool(settings, spec.lighthouse, spec.name, torch.device("cpu")),
            url=spec.url,
            options=WorkerOptions(claim_s=0.1),
        )
        runtime.run(lambda: False)

    _run_in_child(spec.log, run)


def _agent_main(spec: AgentSpec, trap: Trap | None, line: Connection) -> None:
    def run() -> None:
        data = small_dataset(spec.seed, spec.num_train)
        incarnation = time.time_ns() // 1_000_000
        client_id = f"{spec.topic.replace('/', '-')}-{incarnation}"
        transport = MqttTransport(_broker(spec.url), client_id=client_id, identity=spec.topic)
        agent = AgentRuntime(
            TrappedTransport(transport, trap, line),
            spec.topic,
            incarnation,
            lambda _: data,
            url=spec.url,
            options=AgentOptions(deadlines=QUICK),
        )
        agent.run(lambda: False)

    _run_in_child(spec.log, run)


def _broker(url: str) -> BrokerSettings:
    return BrokerSettings(url=url)


def _run_in_child(log: Path, run: Callable[[], None]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    try:
        run()
    except BaseException:  # noqa: BLE001 - whatever it is, it belongs into the log
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # The pool's threads are not waited for, as a killed process would not.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
