from __future__ import annotations

from itertools import islice

import pytest

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import Mode
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.work_items import WorkItem, WorkItems

BOTH = ("audio", "image")


def make(epochs: int = 3, num_test: int = 6, *, every_epochs: int = 1, modalities: tuple[str, ...] = BOTH) -> WorkItems:
    """Two steps an epoch, evaluations of one batch of four samples."""
    plan = EpochPlan(0, "clinic/07", epochs, 8, num_test, 4)
    return WorkItems(plan, modalities, every_epochs=every_epochs, evaluation_samples=4)


def drain(items: WorkItems) -> list[WorkItem]:
    found = []
    while (item := items.next()) is not None:
        found.append(item)
    return found


def steps(items: list[WorkItem], mode: Mode = Mode.TRAIN) -> list[int]:
    return [item.step for item in items if item.mode is mode]


def commit(items: WorkItems, *numbers: int) -> None:
    for number in numbers:
        items.commit(number)


def test_training_steps_come_in_order_with_an_evaluation_after_each_epoch_but_the_last() -> None:
    order = " ".join(f"{item.mode}{item.step}" for item in drain(make()))
    assert order == "train0 train1 eval0 train2 train3 eval1 train4 train5"


@pytest.mark.parametrize(("every_epochs", "expected"), [(0, 0), (1, 4), (2, 2), (3, 1), (9, 0)])
def test_evaluations_come_as_often_as_asked_for(every_epochs: int, expected: int) -> None:
    assert len(steps(drain(make(epochs=5, every_epochs=every_epochs)), Mode.EVAL)) == expected


def test_items_say_which_samples_and_modalities_to_send() -> None:
    items = make()
    first, _, evaluation = islice(iter(items.next, None), 3)
    assert (first.split, first.indices.tolist(), first.given) == ("train", items.plan.train_indices(0).tolist(), BOTH)
    assert (evaluation.split, len(evaluation.indices), evaluation.given) == ("test", 4, BOTH)
    assert evaluation.evaluation is not None
    assert (evaluation.evaluation.epoch, evaluation.evaluation.is_final) == (1, False)


def test_whether_anything_is_left_to_send_is_known_without_taking_it() -> None:
    items = make(epochs=1, every_epochs=0)
    assert items.has_next()
    assert not items.has_next(may_train=False)
    assert steps(drain(items)) == [0, 1]
    assert not items.has_next()
    items.start_final_evaluations()
    assert items.has_next(may_train=False)
    drain(items)
    items.resume(((1, 2),))
    assert not items.has_next(), "step 0 is still out"


def test_training_is_done_when_every_step_is_committed() -> None:
    items = make()
    drain(items)
    commit(items, 5, 0, 2, 1, 4)
    assert not items.is_training_done
    assert items.epoch == 2
    assert items.commit(3)
    assert not items.commit(3), "twice is no news"
    assert items.is_training_done


def test_what_a_ledger_knows_is_not_sent_again() -> None:
    items = make(every_epochs=0)
    items.resume(((0, 2), (3, 4)))
    assert steps(drain(items)) == [2, 4, 5]


def test_what_is_out_is_not_sent_again_after_another_lease() -> None:
    items = make(every_epochs=0)
    assert steps(list(islice(iter(items.next, None), 3))) == [0, 1, 2]
    assert not items.resume(((0, 1),))
    assert steps(drain(items)) == [3, 4, 5]


def test_steps_that_a_worker_has_forgotten_are_sent_again() -> None:
    items = make(every_epochs=0)
    drain(items)
    commit(items, 0, 1, 2, 3)
    assert items.resume(((0, 2),))
    assert steps(drain(items)) == [2, 3, 4, 5], "4 and 5 must not hold the credits that 2 and 3 need"


def test_steps_that_are_taken_up_again_come_before_evaluations() -> None:
    items = make(every_epochs=1)
    taken = list(islice(iter(items.next, None), 2))
    assert steps(taken) == [0, 1]
    commit(items, 0)
    assert items.has_evaluations
    assert items.resume(())
    again = list(islice(iter(items.next, None), 3))
    assert [(item.mode, item.step) for item in again] == [(Mode.TRAIN, 0), (Mode.TRAIN, 1), (Mode.EVAL, 0)]


def test_evaluations_do_not_wait_for_steps_that_may_not_be_trained() -> None:
    items = make(every_epochs=1)
    drain(items)
    commit(items, 0)
    items.resume(())
    items.start_final_evaluations()
    item = items.next(may_train=False)
    assert item is not None
    assert item.mode is Mode.EVAL


@pytest.mark.parametrize(
    ("before", "ledger", "lacks_steps"),
    [
        ((), (), False),
        ((), (3,), False),
        ((0, 1), (0, 1), False),
        ((0, 1), (0, 1, 2), False),
        ((1, 3), (0, 1, 2, 3, 4), False),
        ((1, 3, 5), (1, 3, 5), False),
        ((0, 1), (1,), True),
        ((0, 1), (0,), True),
        ((0,), (), True),
        ((0, 1, 2), (0, 2), True),
        ((5,), (0, 1, 2, 3, 4), True),
        ((0, 4), (0, 1, 2, 3, 5), True),
    ],
    ids=str,
)
def test_ledger_that_lacks_a_step_is_told_from_one_that_has_more(
    before: tuple[int, ...], ledger: tuple[int, ...], lacks_steps: bool
) -> None:
    items = make(every_epochs=0)
    commit(items, *before)
    ranges = StepRanges()
    for step in ledger:
        ranges.add(step)
    assert items.resume(tuple(ranges)) is lacks_steps
    assert steps(drain(items)) == [step for step in range(6) if step not in ledger]


def test_step_whose_commit_only_the_ledger_has_told_can_be_forgotten_later() -> None:
    items = make(every_epochs=0)
    drain(items)
    items.resume(((0, 6),))
    assert items.is_training_done
    items.resume(((0, 4),))
    assert steps(drain(items)) == [4, 5]


def test_ledger_of_a_peer_is_checked() -> None:
    with pytest.raises(MalformedMessage):
        make().resume(((3, 1),))


def test_ledger_with_more_steps_than_there_are_is_no_more_than_all_epochs() -> None:
    items = make()
    items.resume(((0, 1 << 50),))
    assert (items.epoch, items.is_training_done) == (3, True)


def test_finished_model_is_evaluated_with_all_modalities_and_with_each_alone() -> None:
    items = make(every_epochs=0)
    drain(items)
    items.start_final_evaluations()
    assert items.has_evaluations
    final = drain(items)
    assert [item.given for item in final] == [BOTH, BOTH, ("audio",), ("audio",), ("image",), ("image",)]
    assert all(item.evaluation is not None and item.evaluation.is_final for item in final)
    assert sum(len(item.indices) for item in final) == 3 * 6
    assert not items.has_evaluations


def test_single_modality_is_evaluated_once() -> None:
    items = make(every_epochs=0, modalities=("image",))
    items.start_final_evaluations()
    assert [item.given for item in drain(items) if item.mode is Mode.EVAL] == [("image",), ("image",)]


def test_agent_without_test_samples_evaluates_nothing() -> None:
    items = make(num_test=0)
    items.start_final_evaluations()
    assert not items.has_evaluations
    assert steps(drain(items)) == [0, 1, 2, 3, 4, 5]


def test_evaluations_alone_may_be_asked_for() -> None:
    items = make()
    assert items.next(may_train=False) is None
    items.start_final_evaluations()
    item = items.next(may_train=False)
    assert item is not None
    assert item.mode is Mode.EVAL


def test_evaluation_steps_have_numbers_of_their_own() -> None:
    items = make()
    numbers = steps(drain(items), Mode.EVAL)
    items.start_final_evaluations()
    numbers += steps(drain(items), Mode.EVAL)
    assert numbers == list(range(len(numbers)))


def test_evaluations_that_wait_can_be_forgotten() -> None:
    items = make()
    items.start_final_evaluations()
    items.forget_evaluations()
    assert not items.has_evaluations
