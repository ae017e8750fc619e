"""The worker's side, one message at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from cutlayer.broker.actions import (
    AgentJoined,
    AgentLeft,
    Duplicate,
    PhaseReached,
    Publish,
    Refused,
    Subscribe,
    TelemetryReceived,
    Unsubscribe,
    WorkerAction,
)
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import (
    MESSAGE_TYPES,
    ActivationGradients,
    Activations,
    AgentState,
    Busy,
    EncodedTensor,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    Mode,
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
from cutlayer.broker.work import Commit, Key
from cutlayer.broker.worker_session import WorkerSession
from support.conversation import (
    BYTE_STAGES,
    CLASSES,
    CODECS,
    IMAGE,
    MICROBATCH,
    WIDTH,
    Arithmetic,
    counters,
    image_tokens,
    make_worker,
    small_manifest,
    zeros,
)
from support.message_values import EXAMPLES

INBOX = "cutlayer/workers/w0/inbox/a"
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Desk:
    """A session whose agents are played by the test."""

    def __init__(self, session: WorkerSession | None = None, **window: Any) -> None:
        self.manifest = session.manifest if session else small_manifest(epochs=2, **window)
        self.session = session or make_worker(self.manifest)
        self.arithmetic = Arithmetic(self.session)
        self.now = 0.0
        self.digest = bytes.fromhex(self.manifest.digest())
        self.session.connected()

    def hello(self, agent: str = "a", incarnation: int = 1, num_samples: int = 8, **changes: Any) -> list[WorkerAction]:
        hello = Hello(agent, incarnation, self.digest, num_samples, CODECS, BYTE_STAGES, "v1")
        hello = replace(hello, **changes)
        return self.session.receive(f"cutlayer/workers/w0/inbox/{hello.agent}", hello, self.now)

    def lease(self, agent: str = "a") -> int:
        lease = self.session.leases.of(agent)
        assert lease is not None
        return lease.lease

    def join(self, agent: str = "a", incarnation: int = 1, num_samples: int = 8) -> int:
        self.hello(agent, incarnation, num_samples)
        return self.lease(agent)

    def activations(
        self,
        agent: str = "a",
        step: int = 0,
        mode: Mode = Mode.TRAIN,
        num_samples: int = MICROBATCH,
        lease: int | None = None,
        **changes: Any,
    ) -> list[WorkerAction]:
        number = self.lease(agent) if lease is None else lease
        message = Activations(number, step, mode, num_samples, image_tokens(num_samples))
        return self.session.receive(f"{agent}/up/w0/activations", replace(message, **changes), self.now)

    def gradients(
        self,
        agent: str = "a",
        step: int = 0,
        version: int | None = None,
        gradients: EncodedTensor | None = None,
        lease: int | None = None,
    ) -> list[WorkerAction]:
        number = self.lease(agent) if lease is None else lease
        used = self.session.version if version is None else version
        message = OutputGradients(number, step, used, gradients or zeros(MICROBATCH, len(CLASSES)))
        return self.session.receive(f"{agent}/up/w0/gradients", message, self.now)

    def done(self, agent: str = "a", lease: int | None = None, *, committed: bool = True) -> list[WorkerAction]:
        held = self.session.leases.of(agent)
        for step in range(held.total_steps if committed and held is not None else 0):
            self.session.ledger.add(agent, step)
        message = TrainingDone(self.lease(agent) if lease is None else lease)
        return self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", message, self.now)

    def goodbye(
        self,
        agent: str = "a",
        reason: GoodbyeReason = GoodbyeReason.COMPLETED,
        lease: int | None = None,
        incarnation: int = 1,
    ) -> list[WorkerAction]:
        number = self.lease(agent) if lease is None else lease
        goodbye = Goodbye(number, reason, counters(incarnation))
        return self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", goodbye, self.now)

    def offline(self, agent: str = "a", incarnation: int = 1) -> list[WorkerAction]:
        return self.session.receive(f"{agent}/state", AgentState(False, incarnation), self.now)

    def compute(self) -> list[WorkerAction]:
        """Do all work that there is; return what the session did about it."""
        actions: list[WorkerAction] = []
        while (some := self.arithmetic.compute(self.now)) is not None:
            actions += some
        return actions

    def train(self, agent: str = "a", step: int = 0) -> list[WorkerAction]:
        """Bring a step into a window."""
        self.activations(agent, step)
        self.compute()
        self.gradients(agent, step)
        return self.compute()


def messages(actions: Sequence[WorkerAction], kind: type[AnyMessage]) -> list[AnyMessage]:
    """Return the messages of a kind that are published."""
    return [action.message for action in actions if isinstance(action, Publish) and isinstance(action.message, kind)]


def kinds(actions: Sequence[WorkerAction]) -> list[str]:
    """Return what is done, by name; messages by theirs."""
    return [type(action.message if isinstance(action, Publish) else action).__name__ for action in actions]


def label_of(actions: Sequence[WorkerAction]) -> str:
    """Return the label of the only refusal."""
    (label,) = [action.label for action in actions if isinstance(action, Refused)]
    return label


def phase_of(desk: Desk) -> RunPhase:
    """Return where the run stands."""
    return desk.session.phase


def absent_since(desk: Desk, agent: str = "a") -> float | None:
    """Return when an agent with a lease vanished."""
    lease = desk.session.leases.of(agent)
    assert lease is not None
    return lease.absent_since


# Leases ------------------------------------------------------------------------------------------------------


def test_a_connection_subscribes_and_says_that_the_worker_is_online() -> None:
    session = make_worker(incarnation=7)
    subscribe, state = session.connected()
    assert subscribe == Subscribe("cutlayer/workers/w0/inbox/#")
    assert isinstance(state, Publish)
    assert (state.topic, state.retain) == ("cutlayer/workers/w0/state", True)
    digest = bytes.fromhex(small_manifest().digest())
    assert state.message == WorkerState(True, "w0", 7, digest, RunPhase.WAITING, 0, 0, "")


def test_a_hello_is_answered_with_a_lease_after_the_subscriptions() -> None:
    desk = Desk(make_worker(min_agents=2))
    actions = desk.hello("clinic/07")
    assert actions[:4] == [
        Subscribe("clinic/07/up/w0/+"),
        Subscribe("clinic/07/up/telemetry"),
        Subscribe("clinic/07/up/missing"),
        Subscribe("clinic/07/state"),
    ]
    assert actions[4] == AgentJoined("clinic/07", 8, returning=False)
    assert isinstance(actions[5], Publish)
    assert actions[5].topic == "clinic/07/down/control"
    (welcome,) = messages(actions, Welcome)
    assert (welcome.worker, welcome.incarnation, welcome.credits, welcome.phase) == ("w0", 1, 2, RunPhase.WAITING)
    assert welcome.lease == desk.lease("clinic/07")
    assert welcome.committed == ()


def test_another_connection_subscribes_for_every_lease_again() -> None:
    desk = Desk()
    desk.join("a")
    filters = [action.topic_filter for action in desk.session.connected() if isinstance(action, Subscribe)]
    assert filters == ["cutlayer/workers/w0/inbox/#", "a/up/w0/+", "a/up/telemetry", "a/up/missing", "a/state"]


def test_the_same_hello_again_gets_the_same_lease() -> None:
    desk = Desk()
    lease = desk.join()
    (welcome,) = messages(desk.hello(), Welcome)
    assert welcome.lease == lease
    assert len(desk.session.leases) == 1


def test_a_new_process_gets_a_new_lease_and_the_old_one_is_unknown() -> None:
    desk = Desk()
    old = desk.join(incarnation=1)
    actions = desk.hello(incarnation=2)
    assert AgentJoined("a", 8, returning=True) in actions
    assert desk.lease() != old
    assert label_of(desk.activations(lease=old)) == "lease"


def test_a_late_hello_of_an_earlier_process_does_not_take_the_lease() -> None:
    desk = Desk()
    lease = desk.join(incarnation=5)
    assert label_of(desk.hello(incarnation=4)) == "incarnation"
    assert desk.lease() == lease


def test_a_process_whose_clock_went_back_gets_the_lease_once_the_old_one_is_absent() -> None:
    desk = Desk()
    desk.join(incarnation=5)
    desk.offline(incarnation=5)
    assert messages(desk.hello(incarnation=4), Welcome)


@pytest.mark.parametrize("agent", ["", "a/+", "#", "cutlayer/a", "a/up", "a//b"])
def test_a_hello_from_what_cannot_be_an_agents_topic_is_refused_and_not_answered(agent: str) -> None:
    desk = Desk()
    assert kinds(desk.hello(agent)) == ["Refused"]
    assert not len(desk.session.leases)


def test_a_hello_with_another_manifest_is_not_answered_since_the_agent_will_read_it_again() -> None:
    desk = Desk()
    assert label_of(desk.hello(manifest_digest=bytes(32))) == "manifest"
    assert not len(desk.session.leases)


def test_a_hello_without_the_codecs_of_the_run_is_rejected() -> None:
    desk = Desk()
    actions = desk.hello(codecs=("fp16",))
    assert label_of(actions) == "codec"
    (reject,) = messages(actions, Reject)
    assert reject.reason is RejectReason.CODEC
    assert "identity" in reject.detail


def test_a_hello_beyond_the_last_place_is_told_to_come_again() -> None:
    desk = Desk(make_worker(max_agents=2))
    desk.join("a")
    desk.join("b")
    actions = desk.hello("c")
    assert [message.retry_after_s for message in messages(actions, Busy)] == [30.0]
    assert messages(desk.hello("b", incarnation=2), Welcome), "who has a place keeps it"
    desk.goodbye("a")
    assert messages(desk.hello("c"), Welcome)


def test_a_late_copy_of_the_hello_of_a_process_that_has_said_goodbye_gets_no_lease() -> None:
    desk = Desk(make_worker(min_agents=2))
    desk.join("a", incarnation=3)
    desk.join("b")
    desk.goodbye("a", GoodbyeReason.LEFT, incarnation=3)
    assert label_of(desk.hello("a", incarnation=3)) == "departed"
    assert len(desk.session.leases) == 1
    assert messages(desk.hello("a", incarnation=4), Welcome), "another process is welcome"


@pytest.mark.parametrize("name", sorted({kind.__name__ for kind in MESSAGE_TYPES.values()}))
@pytest.mark.parametrize(
    "topic",
    [INBOX, "a/up/w0/activations", "a/up/w0/state", "a/state", "b/up/w0/gradients", "/up/x/y", "", "cutlayer/up/a"],
)
def test_any_message_on_any_topic_is_taken_without_an_exception(name: str, topic: str) -> None:
    desk = Desk()
    lease = desk.join()
    message = EXAMPLES[name]
    desk.session.receive(topic, message, 0.0)
    if isinstance(message, Activations | OutputGradients | TrainingDone | Goodbye):
        desk.session.receive(topic, replace(message, lease=lease), 0.0)
    desk.session.tick(1.0)
    desk.compute()


# A step ------------------------------------------------------------------------------------------------------


def test_a_step_goes_through_its_four_messages() -> None:
    desk = Desk(samples=4)
    lease = desk.join()
    assert desk.activations(step=1) == []
    desk.now = 2.0
    actions = desk.compute()
    assert messages(actions, Outputs) == [Outputs(lease, 1, Mode.TRAIN, 0, 2.0, zeros(4, 2))]
    assert [action.topic for action in actions if isinstance(action, Publish)] == ["a/down/outputs"]
    assert desk.gradients(step=1) == []
    desk.now = 2.5
    actions = desk.compute()
    assert messages(actions, ActivationGradients) == [ActivationGradients(lease, 1, 0, 0.5, ())]
    assert [action.topic for action in actions if isinstance(action, Publish)] == ["a/down/gradients"]
    assert list(desk.session.ledger.of("a")) == [(1, 2)]
    assert (desk.session.window, desk.session.version, desk.session.committed_samples) == (1, 1, 4)


def test_an_evaluation_stops_at_its_outputs_and_is_forgotten() -> None:
    desk = Desk()
    desk.join()
    desk.activations(step=0, mode=Mode.EVAL)
    (outputs,) = messages(desk.compute(), Outputs)
    assert outputs.mode is Mode.EVAL
    assert desk.session.num_live == 0
    assert desk.session.window == 0


@pytest.mark.parametrize("state", ["ACTIVATIONS", "OUTPUTS", "GRADIENTS", "DONE"])
def test_a_copy_of_activations_is_answered_from_memory(state: str) -> None:
    desk = Desk(samples=4)
    desk.join()
    desk.join("b")  # keeps the group of `a` and the window open
    desk.activations()
    outputs = messages(desk.compute(), Outputs) if state != "ACTIVATIONS" else []
    if state in ("GRADIENTS", "DONE"):
        desk.gradients()
    if state == "DONE":
        desk.compute()
    actions = desk.activations()
    assert kinds(actions)[0] == "Duplicate"
    answer = {"OUTPUTS": ["Outputs"], "DONE": ["ActivationGradients"]}.get(state, [])
    assert kinds(actions)[1:] == answer
    assert all(action.repeated for action in actions if isinstance(action, Publish))
    if state == "OUTPUTS":
        assert messages(actions, Outputs) == outputs
    desk.now = 100.0
    desk.gradients()
    desk.compute()
    assert all(count == 1 for count in desk.arithmetic.committed.values())


def test_a_copy_of_gradients_is_ignored_and_after_the_commit_answered_with_it() -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    desk.activations()
    desk.compute()
    desk.gradients()
    assert desk.gradients() == [Duplicate("OutputGradients")]
    desk.compute()
    assert desk.gradients() == [Duplicate("OutputGradients")]
    desk.now = 10.0
    desk.compute()
    actions = desk.gradients()
    assert kinds(actions) == ["Duplicate", "ActivationGradients"]
    assert desk.arithmetic.committed == {Key("a", Mode.TRAIN, 0): 1}


@pytest.mark.parametrize("event", [Activations, OutputGradients])
@pytest.mark.parametrize(
    "state", [ExchangeState.IDLE, ExchangeState.ACTIVATIONS, ExchangeState.OUTPUTS, ExchangeState.GRADIENTS]
)
def test_the_session_goes_where_the_state_table_says(state: ExchangeState, event: type[Message]) -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    if state is not ExchangeState.IDLE:
        desk.activations()
    if state in (ExchangeState.OUTPUTS, ExchangeState.GRADIENTS):
        desk.compute()
    if state is ExchangeState.GRADIENTS:
        desk.gradients()
    actions = desk.activations() if event is Activations else desk.gradients()
    after = next_state(Mode.TRAIN, state, event)
    exchange = desk.session._run.in_hand.exchanges.get(Key("a", Mode.TRAIN, 0))
    if after is None:
        assert set(kinds(actions)) & {"Refused", "Resend"}
        after = state
    assert (exchange.state if exchange else ExchangeState.IDLE) is after


def test_gradients_of_a_step_that_is_not_here_ask_for_its_activations() -> None:
    desk = Desk()
    lease = desk.join()
    (resend,) = messages(desk.gradients(step=1), Resend)
    assert resend == Resend(lease, 1, Mode.TRAIN, ResendReason.UNKNOWN)


def test_gradients_before_their_outputs_are_refused() -> None:
    desk = Desk()
    desk.join()
    desk.activations()
    assert label_of(desk.gradients()) == "state"


def test_gradients_of_other_outputs_than_the_last_are_refused_and_answered_with_the_last() -> None:
    """An agent that has taken late outputs for the last ones would otherwise repeat its gradients for ever."""
    desk = Desk()
    desk.join()
    desk.activations()
    (outputs,) = messages(desk.compute(), Outputs)
    actions = desk.gradients(version=7)
    assert label_of(actions) == "late"
    assert messages(actions, Outputs) == [outputs]
    assert desk.gradients(version=0) == []


def test_more_than_the_credits_is_refused_and_disturbs_nothing() -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    for step in range(2):
        assert desk.activations(step=step) == []
        desk.compute()
        desk.gradients(step=step)
    assert label_of(desk.activations(step=2)) == "credits"
    assert label_of(desk.activations(step=0, mode=Mode.EVAL)) == "credits"
    assert desk.session.num_live == 2
    assert len(desk.session.leases) == 2


def test_a_step_beyond_the_credits_takes_the_place_of_the_oldest_that_its_agent_has_taken_back() -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    desk.activations("b")
    for step in (2, 3, 0):
        assert desk.activations(step=step) == []
    assert [(key.agent, key.step) for key in desk.session.live_keys()] == [("b", 0), ("a", 3), ("a", 0)]
    assert desk.activations(step=0, mode=Mode.EVAL) == []
    assert [(key.agent, key.step) for key in desk.session.live_keys()] == [("b", 0), ("a", 0), ("a", 0)]


def test_in_synchronous_mode_an_earlier_step_beyond_the_credits_takes_the_place_of_the_last() -> None:
    desk = Desk(mode="synchronous")
    desk.join()
    for step in (2, 3, 1):
        assert desk.activations(step=step) == []
    assert [key.step for key in desk.session.live_keys()] == [2, 1]
    assert desk.activations(step=3) == []
    assert [key.step for key in desk.session.live_keys()] == [1, 3], "what is later than all takes the oldest's"


# Leases that are not known -----------------------------------------------------------------------------------


def test_activations_and_gradients_under_an_unknown_lease_are_told_so() -> None:
    desk = Desk()
    for actions, mode in (
        (desk.activations(lease=9, step=4, mode=Mode.EVAL), Mode.EVAL),
        (desk.gradients(lease=9, step=4), Mode.TRAIN),
    ):
        assert label_of(actions) == "lease"
        assert messages(actions, Resend) == [Resend(9, 4, mode, ResendReason.LEASE)]
        assert [action.topic for action in actions if isinstance(action, Publish)] == ["a/down/control"]


def test_another_agents_lease_is_as_good_as_none() -> None:
    desk = Desk()
    lease = desk.join("a")
    actions = desk.activations("b", lease=lease)
    assert label_of(actions) == "lease"
    assert [action.topic for action in actions if isinstance(action, Publish)] == ["b/down/control"]
    assert desk.session.num_live == 0


def test_a_message_on_a_topic_that_is_no_agents_ends_nothing() -> None:
    """A subscriber to `a/up/w0/+` gets `a/up/w0/state` too; whoever it seems to come from cannot be answered."""
    desk = Desk()
    for topic in ("a/up/w0/state", "up/w0/activations", "/up/w0/activations", "cutlayer/up/w0/activations"):
        message = Activations(9, 0, Mode.TRAIN, 4, image_tokens())
        assert label_of(desk.session.receive(topic, message, 0.0)) == "lease"


def test_training_done_under_an_unknown_lease_is_refused() -> None:
    assert label_of(Desk().done(lease=9)) == "lease"


def test_messages_that_are_not_for_a_worker_are_refused() -> None:
    assert label_of(Desk().session.receive(INBOX, EXAMPLES["Welcome"], 0.0)) == "unexpected"


# Content -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"tensors": ()}, "modalities"),
        ({"tensors": (("smell", zeros(4, 4, 2)),)}, "modalities"),
        ({"tensors": image_tokens() * 2}, "modalities"),
        ({"tensors": (("image", zeros(4, 5, 2)),)}, "shape"),
        ({"tensors": (("image", zeros(3, 4, 2)),)}, "shape"),
        ({"tensors": (("image", zeros(4, 4, 2, codec="fp16")),)}, "encoded as 'fp16'"),
        ({"tensors": (("image", EncodedTensor("identity", (4, IMAGE.num_tokens, WIDTH), bytes(999))),)}, "999 B"),
        ({"num_samples": 5}, "5 samples"),
        ({"num_samples": 0}, "0 samples"),
        ({"step": 4}, "step 4 of an agent that has 4"),
    ],
)
def test_activations_that_no_repetition_would_mend_end_their_agent_and_nobody_else(
    changes: dict[str, Any], detail: str
) -> None:
    desk = Desk()
    desk.join("a")
    desk.join("b")
    actions = desk.activations("a", **changes)
    assert label_of(actions) == "content"
    (reject,) = messages(actions, Reject)
    assert reject.reason is RejectReason.CONTENT
    assert detail in reject.detail
    assert AgentLeft("a", "it was refused") in actions
    assert desk.session.leases.of("b") is not None
    assert desk.session.num_live == 0


@pytest.mark.parametrize("gradients", [zeros(4, 3), zeros(3, 2), zeros(4, 2, codec="fp16")])
def test_gradients_that_no_repetition_would_mend_end_their_agent(gradients: EncodedTensor) -> None:
    desk = Desk()
    desk.join()
    desk.activations()
    desk.compute()
    actions = desk.gradients(gradients=gradients)
    assert label_of(actions) == "content"
    assert messages(actions, Reject)
    desk.compute()
    assert not desk.arithmetic.graphs
    assert desk.session.num_live == 0


def test_tensors_that_cannot_be_decoded_end_their_agent_during_the_work_too() -> None:
    desk = Desk(samples=8)
    desk.join("a")
    desk.join("b")
    for agent in "ab":
        desk.activations(agent)
    desk.compute()
    for agent in "ab":
        desk.gradients(agent)
    actions = desk.session.fail_content(Key("a", Mode.TRAIN, 0), "outputs: NaN")
    assert messages(actions, Reject)
    desk.compute()
    desk.now = 10.0
    desk.compute()
    assert desk.arithmetic.committed == {Key("b", Mode.TRAIN, 0): 1}
    assert desk.session.fail_content(Key("a", Mode.TRAIN, 0), "again") == []


def test_a_late_copy_of_the_hello_of_a_refused_agent_may_have_a_lease_again() -> None:
    desk = Desk()
    desk.join("a")
    desk.activations("a", num_samples=0, tensors=())
    assert messages(desk.hello("a"), Welcome)


# Coming, going and coming back -------------------------------------------------------------------------------


def test_a_late_agent_joins_the_training() -> None:
    desk = Desk(samples=4)
    desk.join("a")
    desk.train("a")
    (welcome,) = messages(desk.hello("b"), Welcome)
    assert welcome.phase is RunPhase.TRAINING
    assert messages(desk.train("b"), ActivationGradients)


def test_a_process_that_comes_back_while_its_gradient_is_in_the_open_window_is_not_committed_twice() -> None:
    desk = Desk(samples=99)
    desk.join("a", incarnation=1)
    desk.join("b")
    desk.train("a", 0)
    desk.offline("a", incarnation=1)
    (welcome,) = messages(desk.hello("a", incarnation=2), Welcome)
    assert welcome.committed == ()
    assert desk.activations("a", 0) == [Duplicate("Activations")]
    desk.now = 10.0
    (commit,) = messages(desk.compute(), ActivationGradients)
    assert (commit.lease, commit.step) == (desk.lease("a"), 0)
    assert desk.arithmetic.committed == {Key("a", Mode.TRAIN, 0): 1}


def test_a_process_that_comes_back_after_the_commit_is_told_in_its_welcome() -> None:
    desk = Desk(samples=4)
    desk.join("a", incarnation=1)
    desk.train("a", 0)
    (welcome,) = messages(desk.hello("a", incarnation=2), Welcome)
    assert welcome.committed == ((0, 1),)
    (commit,) = messages(desk.activations("a", 0), ActivationGradients)
    assert commit.lease == desk.lease("a")


def test_what_an_earlier_process_had_not_sent_the_gradients_of_starts_again() -> None:
    desk = Desk(samples=99)
    desk.join("a", incarnation=1)
    desk.activations("a", 0)
    desk.compute()
    desk.activations("a", 1)
    desk.hello("a", incarnation=2)
    assert desk.session.num_live == 0
    desk.compute()
    assert not desk.arithmetic.graphs, "the graph is freed"
    assert desk.activations("a", 0) == []


def test_a_lease_that_is_dropped_while_its_microbatch_is_in_the_open_window_is_committed_and_not_told() -> None:
    desk = Desk(samples=99)
    desk.join("a")
    desk.join("b")
    desk.train("a", 0)
    desk.goodbye("a", GoodbyeReason.LEFT)
    desk.now = 10.0
    assert not messages(desk.compute(), ActivationGradients)
    assert list(desk.session.ledger.of("a")) == [(0, 1)]


def test_a_silent_agent_is_absent_then_dropped_and_anything_it_says_brings_it_back() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2), min_agents=2, lease_s=60.0, absence_grace_s=30.0))
    desk.join("a")
    assert desk.session.next_deadline(0.0) == 60.0
    desk.session.tick(59.9)
    assert absent_since(desk) is None
    desk.session.tick(60.0)
    assert absent_since(desk) == 60.0
    desk.now = 70.0
    desk.activations("a")
    assert absent_since(desk) is None
    desk.session.tick(130.0)
    assert absent_since(desk) == 130.0
    assert desk.session.next_deadline(130.0) == 160.0
    assert not any(isinstance(action, AgentLeft) for action in desk.session.tick(159.0))
    actions = desk.session.tick(160.0)
    assert AgentLeft("a", "it has been away for too long") in actions
    assert {Unsubscribe("a/up/w0/+"), Unsubscribe("a/state")} <= {
        action for action in actions if isinstance(action, Unsubscribe)
    }


def test_counters_are_a_sign_of_life_of_the_process_that_sent_them() -> None:
    desk = Desk()
    desk.join("a", incarnation=5)
    lease = desk.session.leases.of("a")
    assert lease is not None
    desk.session.receive("a/up/telemetry", counters(4), 20.0)
    assert lease.heard_at == 0.0
    assert desk.session.receive("a/up/telemetry", counters(5), 30.0) == [TelemetryReceived("a", counters(5))]
    assert lease.heard_at == 30.0


def test_counters_of_an_agent_that_never_had_a_lease_are_refused() -> None:
    desk = Desk()
    assert label_of(desk.session.receive("a/up/telemetry", counters(), 0.0)) == "lease"
    assert label_of(desk.session.receive(INBOX, counters(), 0.0)) == "lease"
    desk.join("a")
    desk.goodbye("a", GoodbyeReason.LEFT)
    assert desk.session.receive("a/up/telemetry", counters(), 0.0) == [TelemetryReceived("a", counters())]


def test_the_will_of_an_earlier_process_says_nothing_about_this_one() -> None:
    desk = Desk()
    desk.join("a", incarnation=2)
    assert desk.offline("a", incarnation=1) == []
    assert absent_since(desk) is None
    desk.offline("a", incarnation=2)
    assert absent_since(desk) == 0.0
    assert desk.offline("b") == []


def test_a_synchronous_window_waits_for_an_absent_agent_through_the_grace_period_only() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2, mode="synchronous"), absence_grace_s=30.0))
    desk.join("a")
    desk.join("b")
    desk.train("a", 0)
    desk.offline("b")
    desk.now = 29.0
    desk.session.tick(29.0)
    assert not desk.compute()
    desk.now = 30.0
    desk.session.tick(30.0)
    assert messages(desk.compute(), ActivationGradients)
    assert desk.session.leases.of("b") is None


def test_gradients_of_weights_that_are_too_old_are_answered_with_new_outputs() -> None:
    """The activations are still here: a slow link carries them once."""
    desk = Desk(samples=4, max_staleness=0)
    desk.join("a")
    desk.join("b")
    desk.activations("a", 0)
    (old,) = messages(desk.compute(), Outputs)
    actions = desk.train("b", 0)
    assert messages(actions, Resend) == []
    assert desk.gradients("a", 0, version=old.version) == []
    (new,) = messages(desk.compute(), Outputs)
    assert (new.step, new.version) == (0, old.version + 1)
    refused = desk.gradients("a", 0, version=old.version)
    assert label_of(refused) == "late"
    desk.gradients("a", 0, version=new.version)
    assert messages(desk.compute(), ActivationGradients)


# Goodbye -----------------------------------------------------------------------------------------------------


def test_a_goodbye_is_answered_every_time_and_taken_once() -> None:
    desk = Desk()
    lease = desk.join("a")
    desk.join("b")
    actions = desk.goodbye("a")
    assert actions[0] == TelemetryReceived("a", counters())
    assert messages(actions, Phase) == [Phase(lease, RunPhase.ENDED, "goodbye")]
    assert AgentLeft("a", "it has finished") in actions
    again = desk.goodbye("a", lease=lease)
    assert messages(again, Phase) == [Phase(lease, RunPhase.ENDED, "goodbye")]
    assert again[0] == Duplicate("Goodbye")
    assert not any(isinstance(action, AgentLeft) for action in again)


def test_a_goodbye_under_a_lease_of_before_ends_the_one_that_the_agent_does_not_know_of_yet() -> None:
    """Its connection broke and came back, its Hello has crossed its Goodbye: no lease must stay behind."""
    desk = Desk()
    old = desk.join("a", incarnation=3)
    desk.offline("a", incarnation=3)
    desk.hello("a", incarnation=3)
    actions = desk.goodbye("a", lease=old, incarnation=3)
    assert desk.session.leases.of("a") is None
    assert TelemetryReceived("a", counters(3)) in actions
    assert old in [message.lease for message in messages(actions, Phase)]


def test_a_goodbye_of_an_earlier_process_leaves_the_new_one_its_lease() -> None:
    desk = Desk()
    old = desk.join("a", incarnation=3)
    lease = desk.join("a", incarnation=4)
    actions = desk.goodbye("a", lease=old, incarnation=3)
    assert desk.lease("a") == lease
    assert kinds(actions) == ["Duplicate", "TelemetryReceived", "Phase"]


def test_a_goodbye_under_a_lease_that_never_was_is_refused() -> None:
    assert label_of(Desk().goodbye(lease=9)) == "lease"


# Phases ------------------------------------------------------------------------------------------------------


def test_training_begins_when_enough_agents_are_there() -> None:
    desk = Desk(make_worker(min_agents=2))
    first = desk.join("a")
    desk.activations("a")
    assert phase_of(desk) is RunPhase.WAITING
    assert desk.session.next_work(0.0) is None
    actions = desk.hello("b")
    assert PhaseReached(RunPhase.TRAINING, "") in actions
    assert {message.lease for message in messages(actions, Phase)} == {first, desk.lease("b")}
    assert [message.phase for message in messages(actions, Welcome)] == [RunPhase.TRAINING]
    assert messages(actions, WorkerState)[-1].phase is RunPhase.TRAINING
    assert desk.compute()


def test_evaluation_begins_when_all_are_done_and_the_end_when_all_have_left() -> None:
    desk = Desk()
    desk.join("a")
    desk.join("b")
    desk.done("a")
    assert phase_of(desk) is RunPhase.TRAINING
    actions = desk.done("b")
    assert phase_of(desk) is RunPhase.EVALUATING
    assert len(messages(actions, Phase)) == 2
    (again,) = messages(desk.done("a"), Phase)
    assert again.phase is RunPhase.EVALUATING, "the first may have been lost"
    desk.goodbye("a")
    assert phase_of(desk) is RunPhase.EVALUATING
    actions = desk.goodbye("b")
    assert phase_of(desk) is RunPhase.ENDED
    assert messages(actions, WorkerState)[-1].phase is RunPhase.ENDED
    assert desk.session.reason == "all agents have done their epochs"


def test_an_agent_whose_steps_are_all_committed_is_done_without_saying_so() -> None:
    desk = Desk(samples=4)
    desk.join("a", num_samples=4)
    for step in range(2):
        desk.train("a", step)
    desk.join("b")
    desk.hello("a", incarnation=2, num_samples=4)
    assert [lease.agent for lease in desk.session.leases.training()] == ["b"]


def test_when_the_last_that_trains_is_dropped_the_others_evaluate() -> None:
    desk = Desk()
    desk.join("a")
    desk.join("b")
    desk.done("a")
    desk.offline("b")
    desk.session.tick(30.0)
    assert phase_of(desk) is RunPhase.EVALUATING


def test_with_nobody_left_the_run_waits_for_whoever_comes() -> None:
    desk = Desk()
    desk.join("a")
    desk.goodbye("a", GoodbyeReason.LEFT)
    assert phase_of(desk) is RunPhase.TRAINING
    assert messages(desk.hello("a", incarnation=2), Welcome)


def test_a_service_never_ends() -> None:
    desk = Desk(make_worker(is_service=True))
    desk.join("a")
    desk.done("a")
    desk.goodbye("a")
    assert phase_of(desk) is RunPhase.TRAINING
    desk.hello("b")
    desk.train("b")
    desk.now = 10.0
    desk.compute()
    assert [work.progress for work in desk.arithmetic.done if isinstance(work, Commit)] == [None]


def test_after_the_end_new_agents_are_rejected_and_those_with_a_lease_are_told() -> None:
    desk = Desk()
    lease = desk.join("a")
    actions = desk.session.end("because")
    assert messages(actions, Phase) == [Phase(lease, RunPhase.ENDED, "because")]
    assert [message.phase for message in messages(desk.hello("a"), Welcome)] == [RunPhase.ENDED]
    assert [message.phase for message in messages(desk.done("a"), Phase)] == [RunPhase.ENDED]
    (reject,) = messages(desk.hello("b"), Reject)
    assert reject.reason is RejectReason.ENDED
    assert "because" in reject.detail


# Plans and checkpoints ---------------------------------------------------------------------------------------


def test_planned_samples_are_those_of_the_agents_known_less_what_leavers_will_not_do() -> None:
    desk = Desk(samples=4)
    desk.join("a", num_samples=8)
    desk.join("b", num_samples=100)
    assert desk.session.planned_samples == 2 * 108
    for step in range(2):
        desk.train("b", step)
    desk.goodbye("b", GoodbyeReason.LEFT)
    assert desk.session.planned_samples == 2 * 8 + 8
    desk.hello("b", incarnation=2, num_samples=100)
    assert desk.session.planned_samples == 2 * 108


def test_who_is_dropped_is_not_planned_for_either() -> None:
    desk = Desk()
    desk.join("a", num_samples=8)
    desk.join("b", num_samples=100)
    desk.offline("b")
    desk.session.tick(1.0)
    assert desk.session.planned_samples == 2 * 108
    desk.session.tick(31.0)
    assert desk.session.planned_samples == 2 * 8


def test_who_completes_stays_planned_for() -> None:
    desk = Desk(samples=4)
    desk.join("b")
    desk.join("a", num_samples=6)
    for step in range(4):
        desk.activations("a", step, num_samples=4 if step % 2 == 0 else 2)
        desk.compute()
        desk.gradients("a", step, gradients=zeros(4 if step % 2 == 0 else 2, 2))
        desk.now += 10.0
        desk.compute()
    desk.goodbye("a")
    assert desk.session.planned_samples == 2 * 8 + 12


def test_a_welcome_has_no_more_ranges_than_a_message_may_carry() -> None:
    ledger = Ledger()
    for step in range(0, 10_000, 2):
        ledger.add("a", step)
    desk = Desk(make_worker(small_manifest(epochs=2), ledger=ledger))
    (welcome,) = messages(desk.hello("a", num_samples=100_000), Welcome)
    assert len(welcome.committed) == 4_096


def resumed(*agents: str, **limits: Any) -> Desk:
    """Return a worker that was resumed from a checkpoint in which these agents have all their steps."""
    ledger = Ledger()
    for agent in agents:
        for step in range(4):
            ledger.add(agent, step)
    return Desk(make_worker(small_manifest(epochs=2, samples=4), ledger=ledger, window=7, version=7, **limits))


def test_a_resumed_worker_goes_on_counting_where_it_was() -> None:
    desk = resumed("a")
    assert (desk.session.window, desk.session.version) == (7, 7)
    desk.hello("b")
    (commit,) = messages(desk.train("b"), ActivationGradients)
    assert commit.window == 7


def test_a_resumed_worker_does_not_evaluate_before_the_ledgers_agents_had_time_to_come_back() -> None:
    """The first to come back may be the one that had done all its steps."""
    desk = resumed("a", "b")
    desk.session.tick(0.0)
    desk.hello("a")
    desk.done("a")
    assert phase_of(desk) is RunPhase.TRAINING
    desk.hello("b", num_samples=16)
    assert phase_of(desk) is RunPhase.TRAINING
    desk.goodbye("b", GoodbyeReason.LEFT)
    desk.session.tick(1.0)
    assert phase_of(desk) is RunPhase.EVALUATING


def test_a_resumed_worker_waits_no_longer_than_the_grace_period_for_those_who_left_for_good() -> None:
    desk = resumed("a", "b", "c", min_agents=3, absence_grace_s=30.0)
    desk.session.tick(100.0)
    assert desk.session.next_deadline(100.0) == 130.0
    desk.hello("a", num_samples=16)
    desk.session.tick(129.0)
    assert phase_of(desk) is RunPhase.WAITING
    desk.session.tick(130.0)
    assert phase_of(desk) is RunPhase.TRAINING
    desk.done("a")
    assert phase_of(desk) is RunPhase.EVALUATING


def test_a_new_run_waits_for_enough_agents_however_long() -> None:
    desk = Desk(make_worker(min_agents=2))
    desk.hello("a")
    for now in range(0, 1_000, 10):
        desk.session.receive("a/up/telemetry", counters(), float(now))
        desk.session.tick(float(now))
    assert phase_of(desk) is RunPhase.WAITING
