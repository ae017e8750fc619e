"""Replicas in processes of their own meet at a real lighthouse: they agree, die, heal, and outlive the lighthouse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torchft.manager import ExceptionWithTraceback  # type: ignore[import-untyped]

from cutlayer.broker.errors import PoolError
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.pool_round import WindowPart
from cutlayer.server_worker import torchft_pool
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.pool import RoundResult, RoundTask
from cutlayer.server_worker.torchft_pool import PoolTimeouts, TorchftPool, own_address
from server_worker.torchft_replica import GIVE_UP_S, Child, Report, number_of
from support.pool_processes import Lighthouse
from support.ports import free_port


class Site:
    """A lighthouse and replicas around it."""

    def __init__(self, folder: Path) -> None:
        self.lighthouse = Lighthouse(folder / "lighthouse.log")
        self.children: dict[str, Child] = {}
        self._folder = folder

    def start(self, *names: str) -> None:
        for name in names:
            self.children[name] = Child(self.lighthouse.url, name, self._folder / f"{name}.log")

    def wait_for(self, condition: Callable[[dict[str, Report]], bool]) -> dict[str, Report]:
        """Wait until the reports of all replicas are as wanted; return them."""
        give_up_at = time.monotonic() + GIVE_UP_S
        while True:
            reports = {name: child.report() for name, child in self.children.items()}
            if condition(reports):
                return reports
            assert time.monotonic() < give_up_at, {
                name: (report.window, report.workers, report.num_failures) for name, report in reports.items()
            }

    def wait_for_windows(self, num_windows: int) -> dict[str, Report]:
        """Wait until all have committed so many more windows, and all of them together."""
        wanted = max(child.report().window for child in self.children.values()) + num_windows
        names = tuple(sorted(self.children))
        return self.wait_for(
            lambda reports: all(
                report.window >= wanted and tuple(sorted(report.workers)) == names for report in reports.values()
            )
        )

    def close(self) -> None:
        for child in self.children.values():
            child.kill()
        self.lighthouse.kill()


@contextmanager
def site(folder: Path, *names: str) -> Iterator[Site]:
    """A lighthouse with replicas that have committed three windows together."""
    place = Site(folder)
    try:
        place.start(*names)
        place.wait_for_windows(3)
        yield place
    finally:
        place.close()


def assert_agree(reports: dict[str, Report]) -> None:
    """Check that replicas had the same weights and ledgers, and that the weights are what the ledgers say."""
    common = set.intersection(*(set(report.weights) for report in reports.values()))
    assert common, "no window is known to all"
    for window in common:
        assert len({report.weights[window] for report in reports.values()}) == 1
        assert len({report.ledgers[window] for report in reports.values()}) == 1
    for report in reports.values():
        for window, weight in report.weights.items():
            ledger = Ledger.from_bytes(report.ledgers[window])
            steps = [(agent, step) for agent in ledger.agents() for step in range(len(ledger.of(agent)))]
            assert weight == sum(number_of(*step) for step in steps)


def num_steps_of_each(report: Report) -> int:
    """Return how many steps of each of two replicas are committed, at the least."""
    ledger = Ledger.from_bytes(report.ledgers[report.window])
    return min(len(ledger.of(name)) for name in ("w0", "w1"))


# Together ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_replicas_commit_the_same_sums(tmp_path: Path) -> None:
    with site(tmp_path, "w0", "w1") as place:
        place.wait_for_windows(10)
        reports = place.wait_for(lambda reports: min(map(num_steps_of_each, reports.values())) >= 10)
        assert_agree(reports)


@pytest.mark.slow
def test_a_killed_replica_does_not_stop_the_other_and_a_new_one_heals(tmp_path: Path) -> None:
    with site(tmp_path, "w0", "w1") as place:
        place.children.pop("w1").kill()
        alone = place.wait_for_windows(3)["w0"]
        assert alone.workers == ("w0",)
        place.start("w1")
        reports = place.wait_for_windows(3)
        assert_agree(reports)
        assert reports["w1"].healed_at
        assert reports["w1"].healed_at[0] >= alone.window
        assert not reports["w0"].healed_at or reports["w0"].healed_at[-1] < alone.window, "never from the new one"


@pytest.mark.slow
def test_a_replica_that_leaves_does_not_stop_the_other(tmp_path: Path) -> None:
    with site(tmp_path, "w0", "w1") as place:
        place.children.pop("w1").leave()
        report = place.wait_for_windows(3)["w0"]
        assert_agree({"w0": report})


@pytest.mark.slow
def test_replicas_go_on_when_the_lighthouse_comes_back(tmp_path: Path) -> None:
    with site(tmp_path, "w0", "w1") as place:
        place.lighthouse.kill()
        time.sleep(0.5)  # rounds are under way meanwhile
        place.lighthouse.start()
        assert_agree(place.wait_for_windows(3))


@pytest.mark.slow
def test_a_replica_outlives_lighthouse_and_companion(tmp_path: Path) -> None:
    """A lighthouse that starts anew counts its quorums from one again: the same number is another membership."""
    with site(tmp_path, "w0", "w1") as place:
        place.lighthouse.kill()
        place.children.pop("w1").kill()
        place.lighthouse.start()
        assert_agree(place.wait_for_windows(3))
        place.start("w2")
        assert_agree(place.wait_for_windows(3))


# A round that fails ------------------------------------------------------------------------------------------


class HealingManager:
    """What the pool uses of torchft's manager, at a replica that is behind in every round."""

    def __init__(self, *, load_state_dict: Callable[[dict[str, Any]], None], **_: object) -> None:
        self.is_connected = False
        self.num_healed = 0
        self._heal = load_state_dict
        self._step = 0
        self._error: ExceptionWithTraceback | None = None

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._step = state["step"]

    def current_step(self) -> int:
        return self._step

    def start_quorum(self) -> None:
        self._quorum_id = 1
        self._error = None
        if self._step < 5:
            self._step = 5
            self.num_healed += 1
            ledger = torch.frombuffer(bytearray(Ledger().to_bytes()), dtype=torch.uint8)
            state = {"version": 3, "weights": {}, "optimizer": {}, "ledger": ledger, "meta": {}, "candidates": {}}
            self._heal(state)
        if not self.is_connected:
            self.report_error(RuntimeError("connection closed by peer"))

    def report_error(self, error: Exception) -> None:
        self._error = ExceptionWithTraceback(error)

    def errored(self) -> ExceptionWithTraceback | None:
        return self._error

    def should_commit(self) -> bool:
        self._step += self._error is None
        return self._error is None

    def shutdown(self, *, wait: bool) -> None:
        pass


class GroupOfOne:
    """A process group of one replica."""

    def __init__(self, **_: object) -> None:
        pass

    def size(self) -> int:
        return 1

    def abort(self, *, errored: bool) -> None:
        pass


def test_what_a_replica_takes_over_in_a_round_that_fails_it_takes_over_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The manager counts the step as soon as the state is there, and would not ask for it again."""
    monkeypatch.setattr(torchft_pool, "Manager", HealingManager)
    monkeypatch.setattr(torchft_pool, "ProcessGroupGloo", GroupOfOne)
    pool = TorchftPool(f"http://127.0.0.1:{free_port()}", "w0", device=torch.device("cpu"))
    pool.start_from(4)

    def next_round() -> RoundResult:
        part = WindowPart("w0", 3, 3, "digest", is_due=False)
        pool.begin(RoundTask(part, [torch.zeros(1)], Ledger(), is_synchronous=False, snapshot=checkpoint))
        while (result := pool.poll()) is None:
            time.sleep(pool.poll_s)
        return result

    assert next_round().failure == "connection closed by peer"
    assert pool._manager.current_step() == 4
    pool._manager.is_connected = True
    assert next_round().taken_over is not None
    assert pool._manager.current_step() == 6
    assert next_round().taken_over is None
    assert pool._manager.num_healed == 2
    pool.close()


def test_a_replica_that_falls_behind_counts_a_round_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchft_pool, "Manager", HealingManager)
    monkeypatch.setattr(torchft_pool, "ProcessGroupGloo", GroupOfOne)
    pool = TorchftPool(f"http://127.0.0.1:{free_port()}", "w0", device=torch.device("cpu"))
    for before, after in ((4, 3), (0, 0)):
        pool.start_from(before)
        pool.fall_behind()
        assert pool._manager.current_step() == after
    pool.close()


def checkpoint() -> Checkpoint:
    return Checkpoint(EngineState(3, {}, {}), Ledger().to_bytes(), {})


# Alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:29510",
        "https://127.0.0.1:29510",
        "http://127.0.0.1",
        "http://:29510",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://[::1:29510",
        "http://127.0.0.1:0",
    ],
)
def test_an_address_that_is_none_is_named_with_the_fix(address: str) -> None:
    with pytest.raises(PoolError, match="no address such as") as caught:
        own_address(address)
    assert caught.value.lighthouse == address
    assert "fix: start `torchft_lighthouse" in str(caught.value)


def test_the_own_address_is_the_one_towards_the_lighthouse() -> None:
    assert own_address("http://127.0.0.1:29510") == "127.0.0.1"
    assert own_address("http://localhost:29510") in ("127.0.0.1", "::1")


def test_a_host_that_nobody_knows_is_named_with_the_fix() -> None:
    with pytest.raises(PoolError, match=r"nowhere\.invalid") as caught:
        own_address("http://nowhere.invalid:29510")
    assert "fix: start `torchft_lighthouse" in str(caught.value)


def test_a_lighthouse_where_nobody_answers_is_named_with_the_fix() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(PoolError, match=address) as caught:
        TorchftPool(address, "w0", device=torch.device("cpu"), timeouts=PoolTimeouts(connect_s=0.5))
    assert "fix: start `torchft_lighthouse" in str(caught.value)
