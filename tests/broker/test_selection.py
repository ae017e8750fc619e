"""Which weights a run ends with: candidates, their judgement, the choice and the early end, without any I/O."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.manifest import EvaluationSpec
from cutlayer.broker.reports import MetricSums
from cutlayer.broker.selection import Decision, Judgement, Selection, judging_metric
from cutlayer.broker.tasks import ClassificationSpec, RegressionSpec, TargetSpec

TASK = ClassificationSpec(classes=("no", "yes"))
PRICE = RegressionSpec(targets=(TargetSpec(name="price", mean=0.0, std=2.0),))
EPOCHS = 4
PLANNED = 400


def selection(
    keep: str = "best", patience: int = 0, *, every: int = 1, metric: str = "", epochs: int = EPOCHS
) -> Selection:
    spec = EvaluationSpec.model_validate(
        {"keep": keep, "patience_epochs": patience, "every_epochs": every, "metric": metric}
    )
    return Selection(spec, TASK, epochs)


def right(num_correct: int, loss: float = 1.0) -> MetricSums:
    """Return sums over 100 samples, so many of them right."""
    return MetricSums(100 * loss, num_correct, 100)


def epoch_ends(chosen: Selection, epoch: int, epochs: int = EPOCHS) -> str:
    """Commit the last window of an epoch, and take the candidate that it makes; return its name."""
    chosen.committed(epoch * PLANNED // epochs, PLANNED)
    assert chosen.due == epoch
    name = f"weights {epoch}"
    chosen.taken(name)
    return name


def judge(chosen: Selection, epoch: int, num_correct: int, loss: float = 1.0, *, is_over: bool = False) -> None:
    """Let an epoch end, and its weights be judged by one agent."""
    chosen.report("a", epoch_ends(chosen, epoch), right(num_correct, loss))
    chosen.conclude(chosen.proposals({"a"}, is_over=is_over), is_over=is_over)


def due_after(chosen: Selection, committed: int, planned: int = PLANNED) -> int | None:
    """Commit a window, and return the epoch of the candidate that its weights are."""
    chosen.committed(committed, planned)
    return chosen.due


def test_a_candidate_is_due_when_an_epoch_of_the_whole_run_has_ended_and_once() -> None:
    chosen = selection()
    assert due_after(chosen, 99) is None
    assert due_after(chosen, 100) == 1
    chosen.taken("one")
    assert due_after(chosen, 101) is None
    assert due_after(chosen, 333) == 3, "a window as large as two epochs: the one that it ends in counts"


def test_with_a_stride_of_epochs_the_last_one_is_a_candidate_all_the_same() -> None:
    chosen = selection(every=3)
    dues = []
    for committed in range(0, PLANNED + 1, 50):
        chosen.committed(committed, PLANNED)
        if chosen.due is not None:
            dues.append(chosen.due)
            chosen.taken(str(committed))
    assert dues == [3, 4]


def test_agents_who_come_late_take_no_epoch_back() -> None:
    chosen = selection()
    epoch_ends(chosen, 2)
    chosen.committed(210, 2 * PLANNED)
    assert chosen.due is None, "epoch 1 of what is planned now"


def test_a_candidate_is_judged_by_the_sums_of_all_who_are_awaited() -> None:
    chosen = selection()
    name = epoch_ends(chosen, 1)
    chosen.report("a", name, MetricSums(30.0, 90, 100))
    assert chosen.proposals({"a", "b"}, is_over=False) == ()
    assert set(chosen.reported()) == {"a"}
    chosen.report("b", name, MetricSums(270.0, 30, 300))
    assert chosen.proposals({"a", "b"}, is_over=False) == (Judgement(name, 0.3, 0.75, 400),)


def test_whoever_vanishes_is_not_awaited_and_what_it_reported_counts() -> None:
    chosen = selection()
    name = epoch_ends(chosen, 1)
    chosen.report("gone", name, right(50))
    chosen.report("a", name, right(70))
    assert chosen.proposals({"a"}, is_over=False) == (Judgement(name, 0.6, 1.0, 200),)


def test_reports_of_other_weights_or_that_cannot_be_are_passed_over() -> None:
    chosen = selection()
    name = epoch_ends(chosen, 1)
    chosen.report("a", "other weights", right(50))
    chosen.report("a", name, MetricSums(1.0, 101, 100))
    assert list(chosen.reported()) == []


def test_what_is_being_evaluated_is_not_taken_away_by_newer_candidates() -> None:
    chosen = selection()
    first = epoch_ends(chosen, 1)
    second, third = epoch_ends(chosen, 2), epoch_ends(chosen, 3)
    assert chosen.held == (first, third), f"{second} has waited, and a newer one took its place"
    chosen.report("a", first, right(50))
    chosen.conclude(chosen.proposals({"a"}, is_over=False), is_over=False)
    assert chosen.current is not None
    assert (chosen.current.name, chosen.held) == (third, (first, third))


def test_the_best_candidate_is_kept_with_its_epoch() -> None:
    chosen = selection()
    for epoch, num_correct in enumerate((50, 80, 70), start=1):
        judge(chosen, epoch, num_correct)
    judge(chosen, 4, 60, is_over=True)
    assert chosen.decision == Decision(2, "weights 2", is_early=False)
    assert chosen.reason() == "all agents have done their epochs"
    assert [*chosen.held] == ["weights 2"]
    chosen.restored()
    assert not [*chosen.held]


def test_of_equal_candidates_the_one_of_lower_loss_is_better_and_else_the_earlier() -> None:
    chosen = selection()
    judge(chosen, 1, 80, 0.5)
    judge(chosen, 2, 80, 0.4)
    judge(chosen, 3, 80, 0.4)
    assert chosen.best is not None
    assert chosen.best.epoch == 2


@pytest.mark.parametrize(("metric", "best"), [("loss", 2), ("accuracy", 1), ("", 1)])
def test_the_metric_says_what_is_better(metric: str, best: int) -> None:
    chosen = selection(metric=metric)
    judge(chosen, 1, 80, 0.5)
    judge(chosen, 2, 70, 0.4)
    assert chosen.best is not None
    assert chosen.best.epoch == best


def test_errors_are_better_when_there_are_less_and_a_wrong_name_lists_the_right_ones() -> None:
    assert judging_metric(PRICE, "").better == "less"
    assert judging_metric(PRICE, "r2").better == "more"
    with pytest.raises(ValueError, match="no metric 'acuracy': choose one of accuracy, loss"):
        judging_metric(TASK, "acuracy")


def test_training_ends_when_so_many_epochs_have_brought_nothing_better() -> None:
    chosen = selection(patience=2, epochs=8)
    told = []
    for epoch, num_correct in enumerate((50, 80, 70, 75), start=1):
        name = epoch_ends(chosen, epoch, 8)
        chosen.report("a", name, right(num_correct))
        told += [
            chosen.text(judged) for judged in chosen.conclude(chosen.proposals({"a"}, is_over=False), is_over=False)
        ]
    assert chosen.decision == Decision(2, "weights 2", is_early=True)
    assert chosen.reason() == "no better epoch since epoch 2, in 2 epochs"
    assert told == [
        "epoch 1: validation accuracy 0.5 on 100 samples (the best so far; stops after 2 more without a better one)",
        "epoch 2: validation accuracy 0.8 on 100 samples (the best so far; stops after 2 more without a better one)",
        "epoch 3: validation accuracy 0.7 on 100 samples (best so far: 0.8 of epoch 2; stops after 1 more without a "
        "better one)",
        "epoch 4: validation accuracy 0.75 on 100 samples (best so far: 0.8 of epoch 2; stops now)",
    ]


def test_patience_without_best_weights_ends_with_the_last_ones() -> None:
    chosen = selection("last", patience=1)
    judge(chosen, 1, 80)
    assert chosen.held == (), "the best is remembered, and its weights are not"
    judge(chosen, 2, 70)
    assert chosen.decision == Decision(2, "", is_early=True)


def test_at_the_end_the_newest_weights_are_a_candidate_whatever_epoch_they_are_of() -> None:
    chosen = selection()
    judge(chosen, 3, 80)
    assert due_after(chosen, 350) is None
    chosen.conclude((), is_over=True)
    assert chosen.as_json()["state"]["due"] == 4
    chosen.taken("the last")
    chosen.conclude(chosen.proposals({"a"}, is_over=True), is_over=True)
    assert chosen.decision is None, "the agent has not reported"
    chosen.report("a", "the last", right(90))
    chosen.conclude(chosen.proposals({"a"}, is_over=True), is_over=True)
    assert chosen.decision == Decision(4, "the last", is_early=False)


def test_where_nobody_has_validation_samples_the_last_weights_are_kept() -> None:
    chosen = selection(patience=1)
    for epoch in (1, 2, 3):
        epoch_ends(chosen, epoch)
        chosen.conclude(chosen.proposals((), is_over=False), is_over=False)
    epoch_ends(chosen, 4)
    while chosen.decision is None:
        chosen.conclude(chosen.proposals((), is_over=True), is_over=True)
    assert chosen.decision == Decision(4, "", is_early=False)
    assert all(judged.value is None for judged in chosen.judged)
    assert chosen.text(chosen.judged[0]) == "epoch 1: validation accuracy nobody could tell"


def test_sums_that_were_too_few_to_leave_judge_nothing() -> None:
    chosen = selection()
    chosen.report("a", epoch_ends(chosen, 1), MetricSums(0.0, 0, 0))
    (judged,) = chosen.conclude(chosen.proposals({"a"}, is_over=False), is_over=False)
    assert (judged.value, chosen.best) == (None, None)


@given(st.randoms(use_true_random=False), st.integers(0, 3), st.booleans())
def test_replicas_that_conclude_the_same_choose_the_same_and_hold_three_at_most(
    rng: random.Random, patience: int, is_from_checkpoint: bool
) -> None:
    """One hears all agents, one none; a third is started anew from the first one's bytes again and again."""
    hears, deaf, anew = (selection(patience=patience, epochs=12) for _ in range(3))
    committed = 0
    while hears.decision is None:
        committed = min(committed + rng.randint(1, 60), PLANNED)
        is_over = committed == PLANNED
        for one in (hears, deaf, anew):
            one.committed(committed, PLANNED) if not is_over or one.current is None else None
            if one.due is not None:
                one.taken(f"after {committed}")
        if hears.current is not None and rng.random() < 0.6:
            hears.report("a", hears.current.name, right(rng.randint(0, 100)))
        judged = hears.proposals({"a"}, is_over=is_over)
        for one in (hears, deaf, anew):
            one.conclude(judged, is_over=is_over)
            if one.due is not None:
                one.taken("the last")
            assert len(one.held) <= 3
        if is_from_checkpoint:
            document = json.loads(json.dumps(hears.as_json()))
            anew = selection(patience=patience, epochs=12)
            anew.load(document)
        assert hears.as_json() == deaf.as_json() == anew.as_json()
    best = max((judged for judged in hears.judged if judged.value is not None), key=lambda judged: judged.value or 0)
    decided = next(judged for judged in hears.judged if judged.name == hears.decision.name)
    assert decided.value == best.value
