"""Whom a microbatch goes to, and how far the run is when its workers say different things."""

from __future__ import annotations

from collections import Counter

import pytest

from cutlayer.broker.agent_workers import KnownWorker, WorkerTable
from cutlayer.broker.messages import Mode, RunPhase

WAITING, TRAINING, EVALUATING, ENDED = RunPhase


def table(*workers: KnownWorker, agent: str = "clinic/07") -> WorkerTable:
    """Return a table of these workers."""
    known = WorkerTable(agent)
    for worker in workers:
        known.add(worker)
    return known


def leased(name: str, *, held: int = 0, phase: RunPhase = TRAINING) -> KnownWorker:
    """Return a worker of two credits that holds so many microbatches."""
    outstanding = {(Mode.TRAIN, step) for step in range(held)}
    return KnownWorker(name, lease=ord(name[-1]), credits=2, phase=phase, outstanding=outstanding)


def chosen(agent: str, step: int, *names: str) -> str:
    """Return the worker that an agent's step goes to when all hold equally few."""
    worker = table(*(leased(name) for name in names), agent=agent).choose(step)
    assert worker is not None
    return worker.name


def test_the_worker_with_the_fewest_is_chosen_for_every_step() -> None:
    known = table(leased("w0", held=1), leased("w1"), leased("w2", held=1))
    assert {worker.name for step in range(50) if (worker := known.choose(step))} == {"w1"}


def test_among_equals_agents_spread_over_the_workers_although_each_sends_one_at_a_time() -> None:
    shares = Counter(chosen(f"clinic/{number}", 0, "w0", "w1", "w2", "w3") for number in range(400))
    assert set(shares) == {"w0", "w1", "w2", "w3"}
    assert all(70 <= share <= 130 for share in shares.values())


def test_among_equals_one_agents_steps_spread_over_the_workers() -> None:
    shares = Counter(chosen("clinic/07", step, "w0", "w1") for step in range(400))
    assert all(150 <= share <= 250 for share in shares.values())


def test_the_choice_depends_on_nothing_but_agent_worker_and_step() -> None:
    for step in range(50):
        assert chosen("clinic/07", step, "w0", "w1", "w2") == chosen("clinic/07", step, "w2", "w0", "w1")


def test_a_worker_that_goes_takes_no_other_workers_steps_elsewhere() -> None:
    for step in range(50):
        before = chosen("clinic/07", step, "w0", "w1", "w2")
        assert before == "w2" or chosen("clinic/07", step, "w0", "w1") == before


@pytest.mark.parametrize(
    "closed",
    [
        KnownWorker("w0"),
        KnownWorker("w0", lease=1, credits=2, phase=TRAINING, is_draining=True),
        KnownWorker("w0", lease=1, credits=2, phase=TRAINING, is_silent=True),
        leased("w0", phase=ENDED),
        leased("w0", held=2),
    ],
    ids=["without a lease", "draining", "silent", "ended", "without a credit"],
)
def test_a_worker_that_takes_nothing_is_not_chosen(closed: KnownWorker) -> None:
    assert table(closed).choose(0) is None
    chosen_instead = table(closed, leased("w1", held=1)).choose(0)
    assert chosen_instead is not None
    assert chosen_instead.name == "w1"


@pytest.mark.parametrize(
    ("phases", "phase"),
    [
        ((), TRAINING),
        ((WAITING,), WAITING),
        ((WAITING, EVALUATING), EVALUATING),
        ((ENDED,), ENDED),
        ((ENDED, TRAINING), TRAINING),
        ((ENDED, WAITING, EVALUATING), EVALUATING),
        ((ENDED, ENDED), ENDED),
    ],
)
def test_the_run_is_as_far_as_its_furthest_worker_and_ended_when_all_are(
    phases: tuple[RunPhase, ...], phase: RunPhase
) -> None:
    workers = [leased(f"w{number}", phase=of_worker) for number, of_worker in enumerate(phases)]
    assert table(*workers, KnownWorker("w9", phase=ENDED)).phase(TRAINING) is phase


def test_under_one_lease_a_phase_only_goes_on() -> None:
    worker = leased("w0", phase=TRAINING)
    worker.advance(WAITING)
    assert worker.phase is TRAINING
    worker.advance(EVALUATING)
    assert worker.phase is EVALUATING


def test_a_worker_is_asked_while_it_grants_no_lease_or_no_word_but_not_while_it_drains() -> None:
    assert KnownWorker("w0").is_asked
    assert not KnownWorker("w0", is_draining=True).is_asked
    worker = leased("w0")
    assert not worker.is_asked
    silent = KnownWorker("w1", lease=2, is_silent=True)
    assert silent.is_asked
    silent.hear(3.0)
    assert (silent.is_asked, silent.heard_at) == (False, 3.0)
