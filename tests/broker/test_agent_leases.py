"""An agent's leases: asked for, granted, lost, and what becomes of what was there."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cutlayer.broker.actions import (
    Duplicate,
    Fail,
    LeaseGranted,
    LedgerTold,
    PhaseReached,
    Publish,
    Refused,
    StepCommitted,
    Subscribe,
)
from cutlayer.broker.agent_session import AgentSession
from cutlayer.broker.agent_workers import MAX_WORKERS
from cutlayer.broker.errors import Rejected
from cutlayer.broker.messages import (
    MESSAGE_TYPES,
    Activations,
    AgentState,
    Busy,
    Hello,
    Message,
    Mode,
    NegotiatedCodecs,
    Reject,
    RejectReason,
    ResendReason,
    RunPhase,
    Welcome,
    WorkerState,
)
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics
from support.agent_desk import DIGEST, IDENTITY, INCARNATION, Desk, kinds, messages
from support.conversation import BYTE_STAGES, CODECS
from support.message_values import EXAMPLES

# Connecting and leases ---------------------------------------------------------------------------------------


def test_a_connection_publishes_the_state_before_it_subscribes() -> None:
    session = AgentSession(AgentTopics("clinic/07"), INCARNATION)
    state, *subscriptions = session.connected(0.0)
    assert state == Publish("clinic/07/state", AgentState(True, INCARNATION), retain=True)
    assert subscriptions == [
        Subscribe(wanted) for wanted in ("clinic/07/down/+", "clinic/07/state", RUN, WORKER_STATES)
    ]
    assert session.offline() == Publish("clinic/07/state", AgentState(False, INCARNATION), retain=True)


def test_no_worker_is_asked_before_manifest_and_data_are_there() -> None:
    session = AgentSession(AgentTopics("clinic/07"), INCARNATION)
    state = WorkerState(True, "w0", 1, DIGEST, RunPhase.WAITING, 0, 0, "")
    assert session.receive(state, 0.0) == []
    assert session.next_deadline() is None
    assert session.tick(100.0) == []
    (hello,) = session.ready(DIGEST, 40, CODECS, BYTE_STAGES, 100.0)
    assert isinstance(hello, Publish)
    assert hello.topic == "cutlayer/workers/w0/inbox/clinic/07"
    assert hello.message == Hello("clinic/07", INCARNATION, DIGEST, 40, CODECS, BYTE_STAGES, "")


def test_each_worker_that_comes_online_is_asked_once() -> None:
    desk = Desk()
    assert kinds(desk.online("w0")) == ["Hello"]
    assert desk.online("w0") == []
    assert kinds(desk.online("w1")) == ["Hello"]


def test_an_unanswered_hello_is_repeated_less_and_less_often() -> None:
    desk = Desk("w0", is_leased=False)
    times = []
    for _ in range(8):
        due = desk.session.next_deadline()
        assert due is not None
        assert desk.tick_at(due - 0.01) == []
        assert kinds(desk.tick_at(due)) == ["Hello"]
        times.append(due)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 2.0
    assert waits == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


@pytest.mark.parametrize(("retry_after_s", "wait_s"), [(7.0, 7.0), (0.0, 2.0)])
def test_a_busy_worker_is_asked_again_when_it_says_but_not_at_once(retry_after_s: float, wait_s: float) -> None:
    desk = Desk("w0", is_leased=False)
    assert desk.receive(Busy("w0", INCARNATION, retry_after_s)) == []
    assert desk.session.next_deadline() == wait_s
    assert kinds(desk.tick_at(wait_s)) == ["Hello"]
    assert desk.receive(Busy("w9", INCARNATION, 1.0)) == []


def test_a_reject_ends_the_agent_with_its_reason() -> None:
    desk = Desk("w0", is_leased=False)
    (fail,) = desk.receive(Reject("w0", INCARNATION, RejectReason.CODEC, "no int8"))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Rejected)
    assert (fail.error.worker_id, fail.error.reason, fail.error.detail) == ("w0", "codec", "no int8")


@pytest.mark.parametrize(
    "answer",
    [
        Welcome("w0", INCARNATION - 1, 7, 2, IDENTITY, (), RunPhase.TRAINING, 60.0),
        Busy("w0", INCARNATION - 1, 9.0),
        Reject("w0", INCARNATION - 1, RejectReason.ENDED, ""),
    ],
)
def test_answers_to_an_earlier_process_are_refused(answer: Message) -> None:
    desk = Desk("w0", is_leased=False)
    (refused,) = desk.receive(answer)
    assert isinstance(refused, Refused)
    assert refused.label == "incarnation"
    assert not desk.session.leased_workers


def test_a_welcome_makes_a_lease() -> None:
    desk = Desk("w0", is_leased=False)
    assert not desk.session.can_submit()
    assert desk.session.codecs() is None
    assert desk.welcome("w0", 7, committed=((0, 3),)) == [LeaseGranted("w0", ((0, 3),), RunPhase.TRAINING)]
    assert desk.session.leased_workers == ("w0",)
    assert desk.session.phase is RunPhase.TRAINING
    assert desk.session.can_submit()
    assert desk.session.codecs() == IDENTITY


def test_a_welcome_of_a_worker_that_is_not_online_is_refused() -> None:
    (refused,) = Desk().welcome("w0")
    assert isinstance(refused, Refused)
    assert refused.label == "unexpected"


@pytest.mark.parametrize(
    ("committed", "codecs"),
    [
        (((3, 3),), IDENTITY),
        (((5, 6), (0, 1)), IDENTITY),
        (((0, 2), (2, 3)), IDENTITY),
        ((), NegotiatedCodecs("identity", "int9", "identity", "identity")),
        ((), NegotiatedCodecs("identity:fast", "identity", "identity", "identity")),
    ],
)
def test_a_welcome_that_contradicts_itself_or_names_an_unknown_codec_is_refused_whole(
    committed: tuple[tuple[int, int], ...], codecs: NegotiatedCodecs
) -> None:
    desk = Desk("w0", is_leased=False)
    (refused,) = desk.welcome("w0", committed=committed, codecs=codecs)
    assert isinstance(refused, Refused)
    assert refused.label == "content"
    assert not desk.session.leased_workers


@pytest.mark.parametrize("name", ["", "a/b", "+", "w 0"])
def test_a_worker_whose_name_is_no_topic_level_is_refused(name: str) -> None:
    desk = Desk()
    (refused,) = desk.online(name)
    assert isinstance(refused, Refused)
    assert refused.label == "topic"
    assert desk.session.next_deadline() is None


def test_no_more_workers_are_known_than_the_limit() -> None:
    desk = Desk()
    for number in range(MAX_WORKERS):
        assert kinds(desk.online(f"w{number}")) == ["Hello"]
    assert kinds(desk.online("one-more")) == ["Refused"]
    assert desk.online("w0") == []


def test_another_connection_asks_whether_the_leases_still_stand() -> None:
    desk = Desk("w0", "w1")
    assert kinds(desk.session.connected(50.0))[5:] == ["Hello", "Hello"]


@pytest.mark.parametrize("name", sorted({kind.__name__ for kind in MESSAGE_TYPES.values()}))
def test_any_message_at_all_is_taken_without_an_exception(name: str) -> None:
    for desk in (Desk(), Desk("w0")):
        desk.receive(EXAMPLES[name])


# Losing leases -----------------------------------------------------------------------------------------------


def test_a_resend_for_want_of_a_lease_takes_everything_back_and_asks_anew() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.submit(1)
    desk.outputs(1)
    desk.gradients(1)
    actions = desk.resend(0, ResendReason.LEASE)
    assert kinds(actions) == ["LeaseLost", "Hello"]
    assert desk.session.leased_workers == ()
    assert not desk.session.can_submit()
    granted = desk.welcome("w0", 555)
    assert kinds(granted) == ["LeaseGranted", "Activations", "Activations"]
    assert {message.lease for message in messages(granted, Activations)} == {555}
    assert [message.step for message in messages(granted, Activations)] == [0, 1]


def test_a_resend_for_want_of_a_lease_counts_even_when_its_step_has_ended() -> None:
    desk = Desk("w0")
    assert kinds(desk.resend(99, ResendReason.LEASE)) == ["LeaseLost", "Hello"]


def test_a_new_lease_tells_of_steps_that_were_committed_meanwhile() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.submit(1)
    granted = desk.welcome("w0", 555, committed=((0, 1),))
    assert granted[:2] == [StepCommitted(0, None), LeaseGranted("w0", ((0, 1),), RunPhase.TRAINING)]
    assert [message.step for message in messages(granted, Activations)] == [1]
    assert desk.session.num_outstanding == 1


def test_a_late_copy_of_an_earlier_welcome_is_no_new_lease() -> None:
    desk = Desk("w0")
    first = desk.leases["w0"]
    desk.welcome("w0", 555)
    assert desk.welcome("w0", first) == [Duplicate("Welcome")]
    assert desk.worker("w0").lease == 555


def test_a_hello_after_a_lost_lease_is_soon_repeated() -> None:
    """Polls while waiting must not have used its patience up."""
    desk = Desk("w0", is_leased=False)
    desk.welcome("w0", phase=RunPhase.WAITING)
    for now in range(5, 60, 5):
        assert kinds(desk.tick_at(float(now))) == ["Hello"]
    desk.resend(0, ResendReason.LEASE)
    assert desk.session.next_deadline() == 57.0


def test_when_a_worker_goes_offline_its_microbatches_go_to_the_one_with_the_fewest() -> None:
    desk = Desk("w0", "w1", "w2", credits=3)
    for step in range(6):
        desk.submit(step)
    assert [len(desk.worker(name).outstanding) for name in ("w0", "w1", "w2")] == [2, 2, 2]
    _, step = min(desk.worker("w1").outstanding)
    desk.commit(step, worker="w1")
    actions = desk.online("w0", online=False)
    assert kinds(actions) == ["LeaseLost", "Activations", "Activations", "Hello", "Hello"]
    topics = [action.topic for action in actions if isinstance(action, Publish)]
    assert topics[0] == "clinic/07/up/w1/activations"
    assert len(desk.worker("w1").outstanding) + len(desk.worker("w2").outstanding) == 5
    assert desk.session.leased_workers == ("w1", "w2")


def test_what_finds_no_credit_elsewhere_goes_as_soon_as_there_is_one() -> None:
    desk = Desk("w0", "w1", credits=1)
    desk.submit(0)
    desk.submit(1)
    ((_, there),) = desk.worker("w1").outstanding
    desk.outputs(there, worker="w1")
    desk.gradients(there)
    assert kinds(desk.online("w0", online=False)) == ["LeaseLost", "Hello"]
    assert not desk.session.can_submit()
    actions = desk.commit(there, worker="w1")
    assert kinds(actions) == ["StepCommitted", "Activations"]
    assert messages(actions, Activations)[0].step == 1 - there


def test_in_synchronous_mode_a_later_step_gives_its_place_up_to_one_of_a_worker_that_is_gone() -> None:
    desk = Desk("w0", "w1", is_synchronous=True)
    for step in range(4):
        desk.submit(step)
    gone, left = ("w0", "w1") if (Mode.TRAIN, 0) in desk.worker("w0").outstanding else ("w1", "w0")
    held = {step for _, step in desk.worker(left).outstanding}
    actions = desk.online(gone, online=False)
    assert [message.step for message in messages(actions, Activations)] == sorted({0, 1} - held)
    assert {step for _, step in desk.worker(left).outstanding} == {0, 1}
    assert [message.step for message in messages(desk.commit(0, worker=left), Activations)] == [2]
    assert [message.step for message in messages(desk.commit(1, worker=left), Activations)] == [3]


def test_in_synchronous_mode_a_step_goes_from_a_silent_worker_to_the_place_of_a_later_one() -> None:
    desk = Desk("w0", "w1", credits=1, is_synchronous=True)
    desk.submit(0)
    desk.submit(1)
    silent, other = ("w0", "w1") if desk.worker("w0").outstanding == {(Mode.TRAIN, 0)} else ("w1", "w0")
    for _ in range(20):
        deadline = desk.session.next_deadline()
        assert deadline is not None
        desk.tick_at(deadline)
        if desk.worker(silent).is_silent:
            break
        desk.welcome(other, desk.leases[other])
    assert desk.worker(other).outstanding == {(Mode.TRAIN, 0)}


def test_a_new_lease_with_fewer_credits_is_not_overdrawn_and_nothing_is_forgotten() -> None:
    desk = Desk("w0", credits=3)
    for step in range(3):
        desk.submit(step)
    assert [m.step for m in messages(desk.welcome("w0", 555, credits=1), Activations)] == [0]
    assert [m.step for m in messages(desk.commit(0), Activations)] == [1]
    assert [m.step for m in messages(desk.commit(1), Activations)] == [2]
    assert desk.commit(2) == [StepCommitted(2, 3)]
    assert desk.session.can_submit()


def test_a_worker_started_anew_has_lost_its_leases() -> None:
    desk = Desk("w0")
    desk.submit(0)
    actions = desk.online("w0", incarnation=2)
    assert kinds(actions) == ["LeaseLost", "Hello"]
    assert kinds(desk.welcome("w0", 555)) == ["LeaseGranted", "Activations"]


def test_late_news_of_a_workers_earlier_process_changes_nothing() -> None:
    desk = Desk("w0", is_leased=False)
    desk.online("w0", incarnation=5)
    desk.welcome("w0")
    assert desk.online("w0", online=False, incarnation=4) == []
    assert desk.online("w0", incarnation=4) == []
    assert desk.session.leased_workers == ("w0",)
    assert desk.online("w9", online=False) == []


def test_a_worker_that_comes_back_with_the_same_lease_is_believed() -> None:
    desk = Desk("w0")
    lease = desk.leases["w0"]
    desk.submit(0)
    desk.online("w0", online=False)
    assert kinds(desk.online("w0")) == ["Hello"]
    assert kinds(desk.welcome("w0", lease)) == ["LeaseGranted", "Activations"]


# Several workers ----------------------------------------------------------------------------------------------


def test_when_one_worker_is_lost_the_others_are_asked_what_is_committed() -> None:
    desk = Desk("w0", "w1", "w2")
    actions = desk.online("w1", online=False)
    assert kinds(actions) == ["LeaseLost", "Hello", "Hello"]
    topics = {action.topic for action in actions if isinstance(action, Publish)}
    assert topics == {"cutlayer/workers/w0/inbox/clinic/07", "cutlayer/workers/w2/inbox/clinic/07"}


def test_a_worker_is_asked_for_its_ledger_until_it_tells_it() -> None:
    desk = Desk("w0", "w1")
    desk.online("w1", online=False)
    assert desk.session.next_deadline() == 2.0
    assert kinds(desk.tick_at(2.0)) == ["Hello"]
    desk.welcome("w0", desk.leases["w0"])
    assert desk.session.next_deadline() is None


def test_a_welcome_under_the_same_lease_tells_what_is_committed_by_now() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.submit(1)
    told = desk.welcome("w0", desk.leases["w0"], committed=((0, 1), (4, 9)))
    assert told == [StepCommitted(0, None), LedgerTold("w0", ((0, 1), (4, 9)))]
    assert desk.session.num_outstanding == 1
    assert desk.commit(0) == [Duplicate("ActivationGradients")]


def test_a_ledger_that_contradicts_itself_is_refused_under_the_same_lease_too() -> None:
    desk = Desk("w0")
    desk.submit(0)
    (refused,) = desk.welcome("w0", desk.leases["w0"], committed=((3, 3),))
    assert isinstance(refused, Refused)
    assert refused.label == "content"
    assert desk.session.num_outstanding == 1


def test_the_driver_sees_the_ledger_of_a_new_lease_before_anything_goes_up() -> None:
    """It may have to begin with an earlier step, and the credits must be there for that."""
    desk = Desk("w0", credits=1)
    desk.submit(5)
    desk.online("w0", incarnation=2)
    granted = desk.receive(Welcome("w0", INCARNATION, 555, 1, IDENTITY, (), RunPhase.TRAINING, 60.0))
    assert kinds(granted) == ["LeaseGranted"]
    desk.session.withdraw_training()
    assert [message.step for message in messages(desk.submit(0), Activations)] == [0]


def test_a_draining_worker_gets_nothing_new_and_keeps_what_it_has_to_its_end() -> None:
    desk = Desk("w0", "w1")
    for step in range(4):
        desk.submit(step)
    _, there = min(desk.worker("w0").outstanding)
    desk.online("w0", is_draining=True)
    assert kinds(desk.outputs(there, worker="w0")) == ["OutputsReceived"]
    (gradients,) = desk.gradients(there)
    assert isinstance(gradients, Publish)
    assert gradients.topic == "clinic/07/up/w0/gradients"
    assert kinds(desk.commit(there, worker="w0")) == ["StepCommitted"]
    assert len(desk.worker("w0").outstanding) == 1
    assert not desk.session.can_submit(), "its credit is none any more"


def test_what_a_draining_worker_sends_back_goes_to_another() -> None:
    desk = Desk("w0", "w1")
    desk.submit(0)
    desk.submit(1)
    ((_, there),) = desk.worker("w0").outstanding
    desk.online("w0", is_draining=True)
    (again,) = desk.resend(there, worker="w0")
    assert isinstance(again, Publish)
    assert again.topic == "clinic/07/up/w1/activations"


def test_when_all_drain_the_agent_waits_and_nothing_is_lost() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.online("w0", is_draining=True)
    assert not desk.session.can_submit()
    assert kinds(desk.resend(0)) == []
    assert desk.session.num_outstanding == 1
    assert kinds(desk.online("w0", online=False, is_draining=True)) == ["LeaseLost"]
    desk.online("w1")
    assert [message.step for message in messages(desk.welcome("w1"), Activations)] == [0]


def test_a_drained_worker_that_goes_leaves_nothing_to_be_done_again() -> None:
    desk = Desk("w0", "w1")
    desk.submit(0)
    desk.submit(1)
    ((_, there),) = desk.worker("w0").outstanding
    desk.online("w0", is_draining=True)
    desk.commit(there, worker="w0")
    before = desk.session.num_repeats
    assert kinds(desk.online("w0", online=False, is_draining=True)) == ["LeaseLost", "Hello"]
    assert desk.session.num_repeats == before


def test_a_worker_that_is_started_anew_drains_no_longer() -> None:
    desk = Desk("w0")
    desk.online("w0", is_draining=True)
    assert kinds(desk.online("w0", incarnation=2)) == ["LeaseLost", "Hello"]
    desk.welcome("w0", 555)
    assert desk.session.can_submit()


def test_a_worker_that_still_waits_does_not_take_a_running_agent_back() -> None:
    desk = Desk("w0")
    desk.phase(RunPhase.EVALUATING)
    desk.online("w1")
    assert desk.welcome("w1", phase=RunPhase.WAITING) == [LeaseGranted("w1", (), RunPhase.EVALUATING)]
    assert desk.session.phase is RunPhase.EVALUATING


def test_the_run_goes_back_only_when_no_worker_is_that_far() -> None:
    desk = Desk("w0", "w1")
    desk.phase(RunPhase.EVALUATING, "w0")
    desk.phase(RunPhase.EVALUATING, "w1")
    assert desk.reached() is RunPhase.EVALUATING
    desk.online("w0", online=False)
    assert desk.reached() is RunPhase.EVALUATING
    desk.online("w1", online=False)
    assert desk.reached() is RunPhase.EVALUATING, "nobody says anything else"
    desk.online("w0", incarnation=2)
    desk.welcome("w0", 555, phase=RunPhase.WAITING)
    assert desk.reached() is RunPhase.WAITING


def test_training_is_over_when_no_worker_trains_any_more() -> None:
    desk = Desk("w0", "w1")
    assert desk.phase(RunPhase.EVALUATING, "w1") == [], "another agent may not have come to this worker"
    assert desk.phase(RunPhase.EVALUATING, "w0") == [PhaseReached(RunPhase.EVALUATING, "because")]
    assert desk.phase(RunPhase.EVALUATING, "w0") == []


@pytest.mark.parametrize("is_state", [True, False], ids=["its state says so", "its Phase says so"])
def test_a_worker_that_ends_alone_leaves_the_run_and_its_work_to_the_others(is_state: bool) -> None:
    desk = Desk("w0", "w1")
    desk.submit(0)
    desk.submit(1)
    ((_, there),) = desk.worker("w0").outstanding
    actions = desk.online("w0", phase=RunPhase.ENDED) if is_state else desk.phase(RunPhase.ENDED, "w0")
    assert kinds(actions) == ["Activations"]
    assert messages(actions, Activations)[0].step == there
    assert desk.session.phase is RunPhase.TRAINING
    assert len(desk.worker("w1").outstanding) == 2
    desk.commit(there, worker="w1")
    assert desk.session.can_submit()
    desk.submit(2)
    assert desk.worker("w0").outstanding == set()


def test_the_run_has_ended_when_the_last_worker_says_so_or_goes() -> None:
    for goes in (False, True):
        desk = Desk("w0", "w1")
        assert desk.phase(RunPhase.ENDED, "w0") == []
        actions = desk.online("w1", online=False) if goes else desk.phase(RunPhase.ENDED, "w1")
        assert desk.session.phase is RunPhase.ENDED
        assert [action.phase for action in actions if isinstance(action, PhaseReached)] == [RunPhase.ENDED]


def ended(worker: str) -> Reject:
    """Return what a worker answers whose run has ended."""
    return Reject(worker, INCARNATION, RejectReason.ENDED, "the run has ended")


def test_a_worker_whose_run_has_ended_is_left_alone_while_it_goes_on_at_another() -> None:
    desk = Desk("w0")
    desk.online("w1")
    assert desk.receive(ended("w1")) == []
    assert desk.tick_at(30.0) == []
    assert desk.session.leased_workers == ("w0",)


def test_a_lease_with_a_worker_whose_run_has_ended_is_lost_and_its_work_goes_elsewhere() -> None:
    desk = Desk("w0", "w1")
    desk.submit(0)
    desk.submit(1)
    assert kinds(desk.receive(ended("w0"))) == ["LeaseLost", "Activations", "Hello"]


def test_a_run_that_has_ended_everywhere_is_a_refusal() -> None:
    desk = Desk("w0", "w1", is_leased=False)
    assert desk.receive(ended("w0")) == []
    assert kinds(desk.receive(ended("w1"))) == ["Fail"]


def test_an_agent_without_a_lease_does_not_give_up_while_another_worker_may_grant_one() -> None:
    desk = Desk("w0")
    desk.online("w1")
    assert kinds(desk.online("w0", online=False, phase=RunPhase.ENDED)) == ["LeaseLost"]
    assert kinds(desk.online("w1", online=False, phase=RunPhase.ENDED)) == ["Fail"]


@pytest.mark.parametrize("reason", [RejectReason.CODEC, RejectReason.CONTENT, RejectReason.MANIFEST])
def test_any_other_refusal_ends_the_agent_whoever_else_serves_it(reason: RejectReason) -> None:
    desk = Desk("w0", "w1")
    assert kinds(desk.receive(Reject("w1", INCARNATION, reason, "no"))) == ["Fail"]
