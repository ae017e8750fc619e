"""The agent's side, one message at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from cutlayer.broker.actions import (
    AgentAction,
    Duplicate,
    Fail,
    LeaseGranted,
    LeaseLost,
    OutputsReceived,
    PhaseReached,
    Publish,
    Refused,
    StepCommitted,
    Subscribe,
)
from cutlayer.broker.agent_session import MAX_GOODBYES, MAX_WORKERS, AgentSession, Deadlines
from cutlayer.broker.errors import IdentityTaken, Rejected
from cutlayer.broker.messages import (
    MESSAGE_TYPES,
    ActivationGradients,
    Activations,
    AgentState,
    Busy,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    Mode,
    NegotiatedCodecs,
    OutputGradients,
    Outputs,
    Phase,
    Reject,
    RejectReason,
    Resend,
    ResendReason,
    RunPhase,
    TrainingDone,
    Welcome,
    WorkerState,
)
from cutlayer.broker.states import ExchangeState, next_state
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics
from support.conversation import BYTE_STAGES, CODECS, counters, image_tokens, zeros
from support.message_values import EXAMPLES

INCARNATION = 1_000
DIGEST = bytes(range(32))
IDENTITY = NegotiatedCodecs("identity", "identity", "identity", "identity")
DEADLINES = Deadlines(hello_s=2.0, step_s=5.0, longest_s=60.0)
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Desk:
    """A session whose workers are played by the test."""

    def __init__(self, *workers: str, is_leased: bool = True, credits: int = 2) -> None:  # noqa: A002
        self.now = 0.0
        self.session = AgentSession(AgentTopics("clinic/07"), INCARNATION, software="v1", deadlines=DEADLINES)
        self.leases: dict[str, int] = {}
        self.session.connected(self.now)
        self.session.ready(DIGEST, 40, CODECS, BYTE_STAGES, self.now)
        for worker in workers:
            self.online(worker)
            if is_leased:
                self.welcome(worker, credits=credits)

    def receive(self, message: Message) -> list[AgentAction]:
        return self.session.receive(message, self.now)

    def online(
        self, worker: str = "w0", *, online: bool = True, incarnation: int = 1, **changes: Any
    ) -> list[AgentAction]:
        """A worker's state comes."""
        state = {"manifest_digest": DIGEST, "phase": RunPhase.TRAINING, "reason": ""} | changes
        return self.receive(
            WorkerState(
                online=online,
                worker=worker,
                incarnation=incarnation,
                manifest_digest=state["manifest_digest"],
                phase=state["phase"],
                agents=0,
                version=0,
                reason=state["reason"],
            )
        )

    def welcome(
        self,
        worker: str = "w0",
        lease: int | None = None,
        *,
        credits: int = 2,  # noqa: A002
        committed: tuple[tuple[int, int], ...] = (),
        phase: RunPhase = RunPhase.TRAINING,
        codecs: NegotiatedCodecs = IDENTITY,
        incarnation: int = INCARNATION,
    ) -> list[AgentAction]:
        """A worker grants a lease; without a number a new one."""
        number = lease if lease is not None else 100 + sum(self.leases.values()) + len(self.leases)
        actions = self.receive(Welcome(worker, incarnation, number, credits, codecs, committed, phase, 60.0))
        self.leases[worker] = number
        return actions

    def submit(self, step: int = 0, mode: Mode = Mode.TRAIN) -> list[AgentAction]:
        return self.session.submit(step, mode, 4, image_tokens(), self.now)

    def outputs(
        self, step: int = 0, mode: Mode = Mode.TRAIN, *, version: int = 0, worker: str = "w0"
    ) -> list[AgentAction]:
        return self.receive(Outputs(self.leases[worker], step, mode, version, 0.25, zeros(4, 2)))

    def gradients(self, step: int = 0, version: int = 0) -> list[AgentAction]:
        return self.session.submit_gradients(step, version, zeros(4, 2), self.now)

    def commit(self, step: int = 0, worker: str = "w0") -> list[AgentAction]:
        return self.receive(ActivationGradients(self.leases[worker], step, 3, 0.5, ()))

    def resend(
        self, step: int = 0, reason: ResendReason = ResendReason.STALE, mode: Mode = Mode.TRAIN, worker: str = "w0"
    ) -> list[AgentAction]:
        return self.receive(Resend(self.leases[worker], step, mode, reason))

    def phase(self, phase: RunPhase, worker: str = "w0") -> list[AgentAction]:
        return self.receive(Phase(self.leases[worker], phase, "because"))

    def tick_at(self, now: float) -> list[AgentAction]:
        self.now = now
        return self.session.tick(now)

    def state_of(self, step: int = 0, mode: Mode = Mode.TRAIN) -> ExchangeState:
        exchange = self.session._exchanges.get((mode, step))
        return exchange.state if exchange else ExchangeState.DONE


def messages(actions: Sequence[AgentAction], kind: type[AnyMessage]) -> list[AnyMessage]:
    """Return the messages of a kind that are published."""
    return [action.message for action in actions if isinstance(action, Publish) and isinstance(action.message, kind)]


def kinds(actions: Sequence[AgentAction]) -> list[str]:
    """Return what is done, by name; messages by theirs."""
    return [type(action.message if isinstance(action, Publish) else action).__name__ for action in actions]


def has_left(desk: Desk) -> bool:
    """Return whether its goodbyes are answered, or were said often enough."""
    return desk.session.has_left


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
    assert hello.topic == "cutlayer/workers/w0/inbox"
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
    assert desk.welcome("w0", 7) == [Duplicate("Welcome")]


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


@pytest.mark.parametrize("online", [True, False])
def test_a_newer_process_with_the_same_identity_ends_this_one(online: bool) -> None:
    desk = Desk("w0")
    # Retained from before: its clock may have been ahead.
    assert desk.receive(AgentState(False, INCARNATION + 9)) == []
    assert desk.receive(AgentState(True, INCARNATION)) == []
    assert desk.receive(AgentState(True, INCARNATION - 1)) == []
    (fail,) = desk.receive(AgentState(online, INCARNATION + 1))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, IdentityTaken)


def test_another_connection_asks_whether_the_leases_still_stand() -> None:
    desk = Desk("w0", "w1")
    assert kinds(desk.session.connected(50.0))[5:] == ["Hello", "Hello"]


@pytest.mark.parametrize("name", sorted({kind.__name__ for kind in MESSAGE_TYPES.values()}))
def test_any_message_at_all_is_taken_without_an_exception(name: str) -> None:
    for desk in (Desk(), Desk("w0")):
        desk.receive(EXAMPLES[name])


# A step ------------------------------------------------------------------------------------------------------


def test_a_training_step_goes_through_its_four_messages() -> None:
    desk = Desk("w0")
    (up,) = desk.submit(5)
    assert isinstance(up, Publish)
    assert up == Publish(
        "clinic/07/up/w0/activations", Activations(desk.leases["w0"], 5, Mode.TRAIN, 4, image_tokens())
    )
    desk.now = 0.75
    (received,) = desk.outputs(5, version=9)
    assert received == OutputsReceived(5, Mode.TRAIN, zeros(4, 2), IDENTITY, 9, 0.75, 0.25)
    (gradients,) = desk.gradients(5, version=9)
    assert gradients == Publish("clinic/07/up/w0/gradients", OutputGradients(desk.leases["w0"], 5, 9, zeros(4, 2)))
    assert desk.session.num_outstanding == 1
    assert desk.commit(5) == [StepCommitted(5, 3)]
    assert desk.session.num_outstanding == 0


def test_an_evaluation_ends_with_its_outputs() -> None:
    desk = Desk("w0")
    desk.submit(0, Mode.EVAL)
    assert kinds(desk.outputs(0, Mode.EVAL)) == ["OutputsReceived"]
    assert desk.session.num_outstanding == 0
    assert desk.gradients(0) == []


def test_credits_bound_what_is_outstanding() -> None:
    desk = Desk("w0", credits=2)
    desk.submit(0)
    assert desk.session.can_submit()
    desk.submit(1, Mode.EVAL)
    assert not desk.session.can_submit()
    desk.outputs(0)
    assert not desk.session.can_submit(), "a credit comes back with the end of the step"
    desk.outputs(1, Mode.EVAL)
    assert desk.session.can_submit()


@pytest.mark.parametrize("state", ["ACTIVATIONS", "OUTPUTS", "GRADIENTS"])
def test_a_commit_ends_a_step_in_any_state(state: str) -> None:
    desk = Desk("w0")
    desk.submit(0)
    if state != "ACTIVATIONS":
        desk.outputs(0)
    if state == "GRADIENTS":
        desk.gradients(0)
    assert desk.state_of().name == state
    assert desk.commit(0) == [StepCommitted(0, 3)]
    assert desk.commit(0) == [Duplicate("ActivationGradients")]
    assert desk.gradients(0) == []


def test_copies_change_nothing() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.outputs(0)
    assert desk.outputs(0) == [Duplicate("Outputs")]
    desk.gradients(0)
    assert desk.outputs(0) == [Duplicate("Outputs")]
    assert desk.gradients(0) == []
    desk.commit(0)
    assert desk.outputs(0) == [Duplicate("Outputs")]
    assert desk.resend(0) == [Duplicate("Resend")]


@pytest.mark.parametrize("message", [Outputs, ActivationGradients, Resend, Phase])
def test_messages_under_an_unknown_lease_are_refused(message: type[Message]) -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.leases["w0"] += 1
    sent: dict[type[Message], Callable[[], list[AgentAction]]] = {
        Outputs: desk.outputs,
        ActivationGradients: desk.commit,
        Resend: desk.resend,
        Phase: lambda: desk.phase(RunPhase.ENDED),
    }
    actions = sent[message]()
    assert [action.label for action in actions if isinstance(action, Refused)] == ["lease"]
    assert desk.state_of() is ExchangeState.ACTIVATIONS


@pytest.mark.parametrize("mode", [Mode.TRAIN, Mode.EVAL])
@pytest.mark.parametrize("event", [Outputs, ActivationGradients, Resend])
@pytest.mark.parametrize("state", [ExchangeState.ACTIVATIONS, ExchangeState.OUTPUTS, ExchangeState.GRADIENTS])
def test_the_session_goes_where_the_state_table_says(mode: Mode, state: ExchangeState, event: type[Message]) -> None:
    if mode is Mode.EVAL and (state is not ExchangeState.ACTIVATIONS or event is ActivationGradients):
        return  # such a state is never reached, and the message names no mode
    desk = Desk("w0")
    desk.submit(0, mode)
    if state is not ExchangeState.ACTIVATIONS:
        desk.outputs(0, mode)
    if state is ExchangeState.GRADIENTS:
        desk.gradients(0)
    after = next_state(mode, state, event)
    sent: dict[type[Message], Callable[[], list[AgentAction]]] = {
        Outputs: lambda: desk.outputs(0, mode),
        ActivationGradients: desk.commit,
        Resend: lambda: desk.resend(0, mode=mode),
    }
    sent[event]()
    # From IDLE the session goes on at once: there is a credit.
    assert desk.state_of(0, mode) is (ExchangeState.ACTIVATIONS if after is ExchangeState.IDLE else after)


def test_outputs_from_another_worker_than_the_one_asked_are_refused() -> None:
    desk = Desk("w0", "w1")
    desk.submit(0)
    assert kinds(desk.outputs(0, worker="w1")) == ["Refused"]
    assert kinds(desk.resend(0, worker="w1")) == ["Refused"]
    assert kinds(desk.commit(0, worker="w1")) == ["StepCommitted"], "a commit is a commit, whoever says it"


# Sending again -----------------------------------------------------------------------------------------------


def test_an_unanswered_message_is_sent_again_less_and_less_often() -> None:
    desk = Desk("w0")
    desk.submit(0)
    waits = []
    for _ in range(6):
        due = desk.session.next_deadline()
        assert due is not None
        assert not messages(desk.tick_at(due - 0.01), Activations)
        repeated = [a for a in desk.tick_at(due) if isinstance(a, Publish) and isinstance(a.message, Activations)]
        assert [action.repeated for action in repeated] == [True]
        waits.append(due)
    assert waits[0] == 5.0
    assert [b - a for a, b in pairwise(waits)] == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert desk.session.num_repeats == 6


def test_a_message_that_is_never_answered_is_repeated_for_ever() -> None:
    """Two raised to the number of repetitions is no float after a night of them."""
    desk = Desk("w0")
    desk.submit(0)
    for _ in range(1_100):
        due = desk.session.next_deadline()
        assert due is not None
        desk.tick_at(due)
    assert desk.session.num_repeats > 1_000


def test_what_is_repeated_is_the_last_message() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.outputs(0)
    assert desk.session.next_deadline() is None, "now the driver is at work, and nothing is missing"
    desk.gradients(0)
    actions = desk.tick_at(5.0)
    assert messages(actions, OutputGradients)
    assert not messages(actions, Activations)


def test_with_the_repetition_goes_a_hello_since_a_worker_without_the_lease_hears_nothing_else() -> None:
    desk = Desk("w0")
    desk.now = 10.0
    desk.submit(0)
    assert kinds(desk.tick_at(15.0)) == ["Activations", "Hello"]
    desk.welcome("w0", desk.leases["w0"])
    assert kinds(desk.tick_at(25.0)) == ["Activations", "Hello"]


def test_moving_bytes_put_the_deadline_off() -> None:
    desk = Desk("w0")
    desk.submit(0)
    for now in (4.0, 8.0, 12.0):
        desk.session.progress(now)
        assert desk.session.next_deadline() == now + 5.0


def test_bytes_that_move_after_a_message_is_out_say_nothing_about_it() -> None:
    """The counters that go up every second must not put off what was lost for ever."""
    desk = Desk("w0")
    desk.submit(0)
    desk.session.progress(2.0, handed_bytes=1_000, pending_bytes=900)
    desk.session.progress(4.0, handed_bytes=1_300, pending_bytes=700)
    assert desk.session.next_deadline() == 9.0
    desk.session.progress(6.0, handed_bytes=1_600, pending_bytes=600)
    assert desk.session.next_deadline() == 11.0, "its last bytes left between this and the time before"
    desk.session.progress(8.0, handed_bytes=1_900, pending_bytes=300)
    assert desk.session.next_deadline() == 11.0
    assert messages(desk.tick_at(11.0), Activations)


def test_a_message_that_takes_minutes_to_leave_is_not_sent_twice() -> None:
    desk = Desk("w0")
    desk.submit(0)
    for now in range(1, 500):
        desk.session.progress(float(now), handed_bytes=1_000_000, pending_bytes=1_000_000 - 1_000 * now)
        assert desk.tick_at(float(now)) == []


def test_where_nobody_knows_what_has_left_a_message_is_sent_again_after_the_longest_time() -> None:
    desk = Desk("w0")
    desk.submit(0)
    for now in range(60):
        desk.session.progress(float(now))
        assert desk.tick_at(float(now)) == []
    assert messages(desk.tick_at(60.0), Activations)


def test_slow_round_trips_stretch_the_deadline() -> None:
    desk = Desk("w0")
    for step in range(30):
        desk.submit(step)
        desk.now += 4.0
        desk.outputs(step)
        desk.commit(step)
    desk.submit(30)
    due = desk.session.next_deadline()
    assert due is not None
    assert due - desk.now == pytest.approx(16.0)


def test_a_repeated_message_measures_no_round_trip() -> None:
    """Karn's rule: an answer may be to either sending."""
    desk = Desk("w0")
    desk.submit(0)
    desk.tick_at(5.0)
    desk.now = 5.1
    desk.outputs(0)
    desk.commit(0)
    assert desk.session._round_trip_s is None
    desk.submit(1)
    desk.now += 1.0
    desk.outputs(1)
    desk.commit(1)
    assert desk.session._round_trip_s == pytest.approx(1.0)
    desk.submit(2)
    desk.resend(2)
    desk.now += 0.01
    desk.outputs(2)
    assert desk.session._round_trip_s == pytest.approx(1.0)


@pytest.mark.parametrize("server_s", [9.0, 1e300])
def test_a_worker_slower_than_the_first_deadline_is_not_sent_everything_twice_for_ever(server_s: float) -> None:
    desk = Desk("w0")
    num_repeats = []
    for step in range(10):
        desk.submit(step)
        start, before = desk.now, desk.session.num_repeats
        while desk.now < start + 9.5:
            desk.tick_at(desk.now + 0.5)
        desk.receive(Outputs(desk.leases["w0"], step, Mode.TRAIN, 0, server_s, zeros(4, 2)))
        desk.commit(step)
        num_repeats.append(desk.session.num_repeats - before)
    assert num_repeats[0] == 1
    assert num_repeats[1:] == [0] * 9
    desk.submit(10)
    due = desk.session.next_deadline()
    assert due is not None
    assert due - desk.now < 40.0


def test_a_resend_starts_the_step_again_from_its_activations() -> None:
    for state in ("ACTIVATIONS", "OUTPUTS", "GRADIENTS"):
        desk = Desk("w0")
        desk.submit(0)
        if state != "ACTIVATIONS":
            desk.outputs(0)
        if state == "GRADIENTS":
            desk.gradients(0)
        (again,) = desk.resend(0)
        assert isinstance(again, Publish)
        assert again.repeated
        assert isinstance(again.message, Activations)
        assert desk.state_of() is ExchangeState.ACTIVATIONS
        assert desk.gradients(0) == [], "the driver's answer to the outputs before comes too late"


def test_outputs_of_newer_weights_take_the_place_of_late_ones() -> None:
    """The worker runs the step again, but the outputs from before its Resend arrive after it."""
    desk = Desk("w0")
    desk.submit(0)
    desk.resend(0)
    assert kinds(desk.outputs(0, version=3)) == ["OutputsReceived"]
    desk.gradients(0, version=3)
    (received,) = desk.outputs(0, version=8)
    assert isinstance(received, OutputsReceived)
    assert received.version == 8
    assert desk.gradients(0, version=3) == []
    (gradients,) = messages(desk.gradients(0, version=8), OutputGradients)
    assert gradients.version == 8
    assert desk.outputs(0, version=3) == [Duplicate("Outputs")]
    assert desk.outputs(0, version=8) == [Duplicate("Outputs")]


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
    assert desk.session._workers["w0"].lease == 555


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
    held = {name: len(worker.outstanding) for name, worker in desk.session._workers.items()}
    assert held == {"w0": 2, "w1": 2, "w2": 2}
    desk.commit(1, worker="w1")
    actions = desk.online("w0", online=False)
    assert kinds(actions) == ["LeaseLost", "Activations", "Activations"]
    topics = [action.topic for action in actions if isinstance(action, Publish)]
    assert topics == ["clinic/07/up/w1/activations", "clinic/07/up/w1/activations"]
    assert desk.session.leased_workers == ("w1", "w2")


def test_what_finds_no_credit_elsewhere_goes_as_soon_as_there_is_one() -> None:
    desk = Desk("w0", "w1", credits=1)
    desk.submit(0)
    desk.submit(1)
    desk.outputs(1, worker="w1")
    desk.gradients(1)
    assert kinds(desk.online("w0", online=False)) == ["LeaseLost"]
    assert not desk.session.can_submit()
    actions = desk.commit(1, worker="w1")
    assert kinds(actions) == ["StepCommitted", "Activations"]
    assert messages(actions, Activations)[0].step == 0


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


# Phases and the end ------------------------------------------------------------------------------------------


def test_phases_are_reached_once_and_in_order() -> None:
    desk = Desk("w0", is_leased=False)
    desk.welcome("w0", 7, phase=RunPhase.WAITING)
    assert desk.phase(RunPhase.TRAINING) == [PhaseReached(RunPhase.TRAINING, "because")]
    assert desk.phase(RunPhase.TRAINING) == []
    assert desk.phase(RunPhase.EVALUATING) == [PhaseReached(RunPhase.EVALUATING, "because")]
    assert desk.phase(RunPhase.TRAINING) == []
    assert desk.welcome("w0", 7, phase=RunPhase.WAITING) == [Duplicate("Welcome")]
    assert desk.session.phase is RunPhase.EVALUATING


def test_a_new_lease_may_say_an_earlier_phase_since_its_worker_was_resumed() -> None:
    desk = Desk("w0")
    desk.phase(RunPhase.EVALUATING)
    desk.welcome("w0", 555, phase=RunPhase.WAITING)
    assert desk.session.phase is RunPhase.WAITING


def test_a_phase_that_was_lost_comes_with_the_answer_to_a_poll() -> None:
    desk = Desk("w0", is_leased=False)
    desk.welcome("w0", 7, phase=RunPhase.WAITING)
    assert desk.session.next_deadline() == 5.0
    assert kinds(desk.tick_at(5.0)) == ["Hello"]
    assert desk.welcome("w0", 7, phase=RunPhase.TRAINING) == [PhaseReached(RunPhase.TRAINING, "")]
    assert desk.session.next_deadline() is None


def test_training_done_is_told_again_until_the_run_moves_on() -> None:
    desk = Desk("w0")
    assert kinds(desk.session.training_done(0.0)) == ["TrainingDone"]
    assert desk.session.next_deadline() == 5.0
    actions = desk.tick_at(5.0)
    assert kinds(actions) == ["TrainingDone", "Hello"]
    assert messages(actions, TrainingDone) == [TrainingDone(desk.leases["w0"])]
    desk.phase(RunPhase.EVALUATING)
    assert desk.tick_at(100.0) == []


def test_training_is_not_done_any_more_under_a_new_lease_until_the_driver_says_so() -> None:
    """The worker may have been resumed from a checkpoint that knows of fewer steps."""
    desk = Desk("w0")
    desk.session.training_done(0.0)
    desk.online("w0", incarnation=2)
    desk.welcome("w0", 555)
    assert not messages(desk.tick_at(100.0), TrainingDone)


def test_a_goodbye_is_repeated_until_every_worker_has_answered() -> None:
    desk = Desk("w0", "w1")
    session, telemetry = desk.session, counters(INCARNATION, final=True)
    assert kinds(session.leave(GoodbyeReason.COMPLETED, telemetry, 0.0)) == ["Goodbye", "Goodbye"]
    assert not has_left(desk)
    assert session.next_deadline() == 2.0
    assert desk.phase(RunPhase.ENDED, "w1") == []
    actions = desk.tick_at(2.0)
    assert messages(actions, Goodbye) == [Goodbye(desk.leases["w0"], GoodbyeReason.COMPLETED, telemetry)]
    desk.phase(RunPhase.ENDED, "w0")
    assert has_left(desk)
    assert session.next_deadline() is None


def test_a_goodbye_that_nobody_answers_ends_nevertheless() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.LEFT, counters(), 0.0)
    num_repeats = 0
    while not has_left(desk):
        due = desk.session.next_deadline()
        assert due is not None
        num_repeats += len(messages(desk.tick_at(due), Goodbye))
    assert num_repeats == MAX_GOODBYES
    assert desk.now <= 2.0 * MAX_GOODBYES


def test_a_goodbye_without_a_lease_has_left_at_once() -> None:
    desk = Desk("w0", is_leased=False)
    assert desk.session.leave(GoodbyeReason.LEFT, counters(), 0.0) == []
    assert has_left(desk)


def test_after_a_goodbye_nothing_is_sent_but_goodbyes() -> None:
    desk = Desk("w0", "w1")
    for step in range(3):
        desk.submit(step)
    desk.session.leave(GoodbyeReason.LEFT, counters(), 0.0)
    assert not desk.session.can_submit()
    assert kinds(desk.online("w0", online=False)) == ["LeaseLost"]
    assert {kind for now in (2.0, 4.0, 6.0) for kind in kinds(desk.tick_at(now))} == {"Goodbye"}
    assert desk.online("w2") == []
    assert kinds(desk.session.connected(7.0)) == ["AgentState"] + 4 * ["Subscribe"]


def test_a_late_copy_of_the_welcome_does_not_take_the_goodbye_back() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.COMPLETED, counters(), 0.0)
    desk.phase(RunPhase.ENDED)
    assert desk.welcome("w0", desk.leases["w0"]) == [Duplicate("Welcome")]
    assert has_left(desk)


def test_an_answer_to_a_hello_from_before_the_goodbye_is_said_goodbye_to() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.COMPLETED, counters(), 0.0)
    desk.welcome("w0", 555)
    assert not has_left(desk)
    assert [message.lease for message in messages(desk.tick_at(2.0), Goodbye)] == [555]


def test_a_worker_that_goes_offline_needs_no_goodbye() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.COMPLETED, counters(), 0.0)
    desk.online("w0", online=False, phase=RunPhase.ENDED)
    assert has_left(desk)


def test_the_end_of_the_run_is_known_from_the_workers_state_too() -> None:
    desk = Desk("w0")
    assert desk.online("w0", phase=RunPhase.ENDED, reason="done") == [PhaseReached(RunPhase.ENDED, "done")]
    assert desk.online("w0", phase=RunPhase.ENDED) == []


def test_an_agent_that_the_run_has_ended_without_is_told_so_and_does_not_wait_for_ever() -> None:
    desk = Desk("w0")
    desk.submit(0)
    lost, fail = desk.online("w0", online=False, phase=RunPhase.ENDED, reason="done")
    assert isinstance(lost, LeaseLost)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Rejected)
    assert fail.error.reason == "ended"


def test_the_end_of_another_run_is_none_of_its_business() -> None:
    desk = Desk("w0")
    assert desk.online("w0", phase=RunPhase.ENDED, manifest_digest=bytes(32)) == []
    assert kinds(desk.online("w0", online=False, phase=RunPhase.ENDED, manifest_digest=bytes(32))) == ["LeaseLost"]


def test_a_worker_that_only_stops_is_waited_for() -> None:
    desk = Desk("w0")
    assert kinds(desk.online("w0", online=False, phase=RunPhase.TRAINING)) == ["LeaseLost"]
