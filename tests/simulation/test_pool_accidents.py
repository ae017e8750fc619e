"""Accidents of a pool, in virtual time: a worker that only the broker has lost, a checkpoint of yesterday's run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.events import StateTakenOver
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from simulation.test_pool import ASYNCHRONOUS, Pool
from support.small_run import small_settings


@pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_a_worker_that_has_lost_the_broker_alone_does_not_hold_up_the_others_rounds(window: dict[str, object]) -> None:
    """The lighthouse still hears it, and would let each round wait for it until its timeout."""
    pool = Pool(small_settings(window=window, run={"absence_grace_s": 1.0}))
    pool.start("w0", "w1")
    pool.add_agents(num_train=80)
    pool.run_for_windows("w0", 5)
    session, cut_off = pool.workers["w0"].session, pool.workers["w1"].runtime
    began_at = pool.network.clock()

    def is_enough() -> bool:
        if cut_off.is_connected:
            pool.network.broker.cut("w1")
        return session.window >= 15

    pool.network.run(is_enough)
    assert pool.network.clock() - began_at < 2 * 5.0, "ten rounds have taken no more than two of its timeouts"
    pool.finish()
    pool.assert_all_committed_once(40)


def test_a_checkpoint_of_another_run_does_not_take_the_place_of_what_is_trained_now(tmp_path: Path) -> None:
    before = Pool(small_settings(window=ASYNCHRONOUS))
    before.start("w1", store=CheckpointStore(tmp_path))
    before.add_agents(num_train=40)
    before.finish()
    pool = Pool(small_settings(window=ASYNCHRONOUS))
    pool.start("w0")
    pool.add_agents(num_train=40)
    pool.run_for_windows("w0", 3)
    assert before.workers["w1"].session.window > pool.workers["w0"].session.window
    pool.start("w1", store=CheckpointStore(tmp_path), resumes=True)
    pool.finish()
    pool.assert_all_committed_once(20)
    assert not any(isinstance(event, StateTakenOver) for event in pool.workers["w0"].events)
    assert any(isinstance(event, StateTakenOver) for event in pool.workers["w1"].events)


def train_apart(pool: Pool, until: Callable[[], bool]) -> None:
    """Let w0 and w1 have rounds of their own for a while: two pools that each think the other is gone."""
    apart = pool.workers["w1"]
    assert apart.pool is not None
    apart.pool.close()
    apart.pool.lighthouse = MemoryLighthouse(pool.network.clock)
    pool.network.run(lambda: until() and not is_in_round(pool))
    apart.pool.close()
    apart.pool.lighthouse = pool.lighthouse


def is_in_round(pool: Pool) -> bool:
    return any(worker.session._run.scheduler.is_in_round for worker in pool.workers.values())


def rounds_of(pool: Pool) -> int:
    return next(seat.step for seat in pool.lighthouse._seats if seat.name == "w0")


@pytest.mark.parametrize("lead", [-1, 0, 1])
def test_workers_that_have_trained_apart_agree_again_and_what_one_of_them_has_done_is_done_again(lead: int) -> None:
    """A lighthouse that comes back and hears of one worker long before the other lets each train alone."""
    pool = Pool(small_settings(window=ASYNCHRONOUS))
    pool.start("w0", "w1")
    pool.add_agents(num_train=80)
    pool.run_for_windows("w0", 5)
    pool.network.run(lambda: not is_in_round(pool))
    w0, w1 = pool.workers["w0"], pool.workers["w1"]
    wanted = w0.session.window + 2, w1.session.window + 2
    train_apart(pool, lambda: w0.session.window >= wanted[0] and w1.session.window >= wanted[1])
    assert w0.engine.fingerprint() != w1.engine.fingerprint()
    assert w1.pool is not None
    w1.pool.start_from(rounds_of(pool) + lead)
    pool.finish()
    pool.assert_all_committed_once(40)


@pytest.mark.parametrize("num_windows", [4, 8, 9, 10])
def test_in_synchronous_mode_nobody_waits_for_a_step_that_was_committed_apart(num_windows: int) -> None:
    """Where w1 was ahead its agent does a step again; where w0 was, w1 has to hear of it."""
    pool = Pool(small_settings())
    pool.start("w0", "w1")
    pool.add_agents(["site/0"], num_train=80)
    pool.run_for_windows("w0", num_windows)
    w0, w1 = pool.workers["w0"], pool.workers["w1"]
    pool.network.run(lambda: w0.session.window == w1.session.window and not is_in_round(pool))
    give_up_at = pool.network.clock() + 20.0
    train_apart(pool, lambda: w1.session.window > w0.session.window or pool.network.clock() > give_up_at)
    assert w0.engine.fingerprint() != w1.engine.fingerprint()
    assert w1.pool is not None
    w1.pool._seat = pool.lighthouse.join("w1", rounds_of(pool))  # the lighthouse knows it by its heartbeats
    pool.finish()
    pool.assert_all_committed_once(40, ["site/0"])
