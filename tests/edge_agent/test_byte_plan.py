"""What a limit of bytes leaves for activations: over the planned run, whatever is sent once or each time."""

from __future__ import annotations

import pytest

from cutlayer.broker.manifest import EvaluationSpec, Manifest
from cutlayer.edge_agent.byte_plan import GUESSED_MICROBATCH_BYTES, NUM_BEFORE_MEASURED, BytePlan, Sent
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.reporter import FREE_BYTES
from support.small_side import small_manifest

EPOCHS, NUM_TRAIN, NUM_TEST, SIZE = 10, 100, 20, 4
PASSES = EPOCHS * NUM_TRAIN


def manifest(every_epochs: int = 0) -> Manifest:
    evaluation = EvaluationSpec(every_epochs=every_epochs, samples=5)
    return small_manifest(epochs=EPOCHS).model_copy(update={"evaluation": evaluation})


def plan(limit: float = 100.0, *, every_epochs: int = 0, committed: int = 0) -> BytePlan:
    steps = EpochPlan(0, "clinic/07", EPOCHS, NUM_TRAIN, NUM_TEST, SIZE)
    made = BytePlan(limit, steps, manifest(every_epochs))
    made.start(Sent(0, 0), committed)
    return made


def test_before_anything_is_known_other_messages_are_guessed() -> None:
    others = PASSES * GUESSED_MICROBATCH_BYTES / SIZE
    room = plan(200.0).allowed(Sent(0, 0), num_fresh=SIZE, is_kept=False)
    num_fresh = PASSES + 2 * NUM_TEST  # the finished model is evaluated with both modalities, and with each alone
    assert room == pytest.approx((200 * PASSES - others) / num_fresh)


def test_what_is_sent_once_counts_once_over_all_epochs() -> None:
    each, once = (plan().allowed(Sent(0, 0), num_fresh=SIZE, is_kept=is_kept) for is_kept in (False, True))
    assert once * (NUM_TRAIN + NUM_TEST) == pytest.approx(each * (PASSES + 2 * NUM_TEST))
    size = 500.0  # far above the limit in the first epoch, and below it on average
    average = plan().average(Sent(0, 0), size, num_fresh=SIZE, is_kept=True)
    assert average == pytest.approx((size * (NUM_TRAIN + NUM_TEST) + PASSES * GUESSED_MICROBATCH_BYTES / SIZE) / PASSES)


def test_evaluations_between_epochs_are_planned_for() -> None:
    without, with_them = (
        plan(every_epochs=every).average(Sent(0, 0), 50.0, num_fresh=SIZE, is_kept=False) for every in (0, 3)
    )
    assert with_them - without == pytest.approx(3 * 5 * 50.0 / PASSES)


def test_other_messages_go_on_as_they_have_so_far() -> None:
    made = plan()
    for _ in range(NUM_BEFORE_MEASURED):
        made.add(num_passes=SIZE, num_fresh=SIZE, tensor_bytes=1_000)
    num_done = NUM_BEFORE_MEASURED * SIZE
    sent = Sent(NUM_BEFORE_MEASURED * 1_000 + num_done * 7, 0)
    average = made.average(sent, 0.0, num_fresh=SIZE, is_kept=False)
    assert average * PASSES == pytest.approx(sent.all_bytes + (PASSES - num_done) * 7)


def test_reports_are_expected_by_the_clock_without_the_waiting_and_within_their_share() -> None:
    made = plan()
    for _ in range(NUM_BEFORE_MEASURED):
        made.add(num_passes=SIZE, num_fresh=SIZE, tensor_bytes=0)
    num_done = NUM_BEFORE_MEASURED * SIZE

    def to_come(wait_share: float, report_bytes: int) -> float:
        sent = Sent(report_bytes, report_bytes, wait_share)
        return made.average(sent, 0.0, num_fresh=SIZE, is_kept=False) * PASSES - report_bytes

    assert to_come(0.0, 64) == pytest.approx(64 * (PASSES - num_done) / num_done)
    assert to_come(0.75, 64) == pytest.approx(16 * (PASSES - num_done) / num_done)
    assert to_come(0.0, 5_000) == pytest.approx(FREE_BYTES + 0.02 * 100 * PASSES - 5_000)


def test_a_process_that_goes_on_with_a_run_plans_for_what_is_left() -> None:
    half = plan(committed=EPOCHS * NUM_TRAIN // SIZE // 2)
    whole = plan()
    assert half.allowed(Sent(0, 0), num_fresh=SIZE, is_kept=True) == pytest.approx(
        whole.allowed(Sent(0, 0), num_fresh=SIZE, is_kept=True) / 2
    )


def test_a_store_that_forgets_is_planned_for_as_none() -> None:
    made = plan()
    for _ in range((NUM_TRAIN + NUM_TEST) // SIZE):
        made.add(num_passes=SIZE, num_fresh=SIZE, tensor_bytes=0)
    kept, each = (made.allowed(Sent(0, 0), num_fresh=SIZE, is_kept=is_kept) for is_kept in (True, False))
    assert kept == each


def test_the_last_microbatch_gets_what_is_left() -> None:
    made = plan()
    for _ in range(PASSES // SIZE + 10):
        made.add(num_passes=SIZE, num_fresh=SIZE, tensor_bytes=0)
    assert made.allowed(Sent(PASSES * 100 - 80, 0), num_fresh=SIZE, is_kept=False) == pytest.approx(80 / SIZE)
