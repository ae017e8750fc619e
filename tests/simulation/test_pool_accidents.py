"""Accidents of a pool, in virtual time: a worker that only the broker has lost, a checkpoint of yesterday's run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.events import StateTakenOver
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
