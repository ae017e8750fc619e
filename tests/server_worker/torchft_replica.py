"""A replica of a pool over torchft that trains one number, as a process of its own to be killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch

from cutlayer.broker.ledger import Ledger
from cutlayer.broker.pool_round import WindowPart
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.counting_engine import contribution_of
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.pool import RoundResult, RoundTask
from cutlayer.server_worker.torchft_pool import PoolTimeouts, TorchftPool

__all__ = ["GIVE_UP_S", "Child", "Report", "number_of"]

GIVE_UP_S = 180.0
CONTEXT = multiprocessing.get_context("forkserver")
TIMEOUTS = PoolTimeouts(connect_s=10.0, quorum_s=8.0, exchange_s=5.0)


def number_of(agent: str, step: int) -> int:
    """Return what a step adds to the weights: a number so small that no sum of a test's steps overflows."""
    return contribution_of((agent, step)) >> 22


@dataclass
class Report:
    """What a replica has seen.

    Attributes:
        weights: Its weight after each window that it knows of.
        ledgers: Its ledger after each of them.
        workers: Who took part in the last round.
        num_failures: Rounds that have failed.
        healed_at: Windows at which it has taken over another's state.
    """

    weights: dict[int, int] = field(default_factory=dict)
    ledgers: dict[int, bytes] = field(default_factory=dict)
    workers: tuple[str, ...] = ()
    num_failures: int = 0
    healed_at: list[int] = field(default_factory=list)

    @property
    def window(self) -> int:
        return max(self.weights, default=0)


class Replica:
    """One weight, to which every window adds the numbers of its steps."""

    def __init__(self, pool: TorchftPool, name: str) -> None:
        self.pool = pool
        self.name = name
        self.window = 0
        self.weight = torch.zeros(1, dtype=torch.int64)
        self.ledger = Ledger()
        self.is_member = False
        self.report = Report()

    def round(self) -> None:
        """Bring the first step that is missing, once it is a member."""
        step = self.ledger.of(self.name).first_missing()
        steps = ((self.name, step),) if self.is_member else ()
        part = WindowPart(
            self.name,
            self.window,
            self.window,
            str(self.weight.item()) if self.is_member else "",
            steps,
            len(steps),
            bytes([len(steps)]),
            planned_samples=1_000,
            is_due=True if self.is_member else None,
        )
        sums = [torch.tensor([number_of(*one) for one in steps] or [0])]
        self.pool.begin(RoundTask(part, sums, self.ledger, is_synchronous=False, snapshot=self.snapshot))
        while (result := self.pool.poll()) is None:
            time.sleep(self.pool.poll_s)
        self.take(result)

    def snapshot(self) -> Checkpoint:
        state = EngineState(self.window, {"weight": self.weight.clone()}, {})
        return Checkpoint(state, self.ledger.to_bytes(), {"window": self.window})

    def take(self, result: RoundResult) -> None:
        if result.failure:
            self.report.num_failures += 1
            return
        assert result.verdict is not None
        self.report.workers = result.workers
        if result.taken_over is not None:
            self.window = cast("int", result.taken_over.meta["window"])
            self.weight = result.taken_over.state.weights["weight"].clone()
            self.ledger = Ledger.from_bytes(result.taken_over.ledger)
            self.report.healed_at.append(self.window)
            self.note()
        self.is_member = True
        assert not result.verdict.differing
        if result.verdict.commits:
            assert result.sums is not None
            self.weight += result.sums[0]
            self.window += 1
            for agent, step in result.verdict.steps:
                assert self.ledger.add(agent, step), "a step is committed twice"
            self.note()

    def note(self) -> None:
        self.report.weights[self.window] = int(self.weight.item())
        self.report.ledgers[self.window] = self.ledger.to_bytes()


def replica_main(lighthouse: str, name: str, line: Connection, log: Path) -> None:
    """Have rounds until the line says stop, and tell about them when asked."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["RUST_LOG"] = "error"
    logging.basicConfig(level=logging.WARNING, force=True)
    torch.set_num_threads(1)
    try:
        pool = TorchftPool(lighthouse, name, device=torch.device("cpu"), timeouts=TIMEOUTS)
        pool.start_from(0)
        replica = Replica(pool, name)
        while True:
            if line.poll(0.02):
                if line.recv() == "stop":
                    pool.close()
                    line.send("closed")
                    break
                line.send(replica.report)
            replica.round()
    except BaseException:  # noqa: BLE001 - whatever it is, it belongs into the log
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Child:
    """A replica's process."""

    def __init__(self, lighthouse: str, name: str, log: Path) -> None:
        self.name = name
        self._log = log
        self._line, line = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=replica_main, args=(lighthouse, name, line, log), daemon=True)
        self._process.start()
        line.close()

    def report(self) -> Report:
        """Return what it has seen up to now."""
        self._line.send("tell")
        return cast("Report", self._answer())

    def leave(self) -> None:
        """Let it leave the pool."""
        self._line.send("stop")
        assert self._answer() == "closed"
        self._process.join(GIVE_UP_S)
        assert self._process.exitcode == 0

    def _answer(self) -> object:
        log = self._log
        assert self._line.poll(GIVE_UP_S), f"{self.name} does not answer: {log.read_text()}"
        try:
            return self._line.recv()
        except EOFError:
            raise AssertionError(f"{self.name} has ended: {log.read_text()}") from None

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
