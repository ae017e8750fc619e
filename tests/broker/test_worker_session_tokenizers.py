"""The worker's side of trained tokenizers, one message at a time: what it takes, refuses, and tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cutlayer.broker.actions import Publish, Refused, WorkerAction
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    EncodedTensor,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Reject,
    RejectReason,
    RunPhase,
    TokenizerWeights,
    TrainingDone,
)
from cutlayer.broker.work import Backward, Commit, Forward, Key, NamedTensors
from support.conversation import (
    BYTE_STAGES,
    CLASSES,
    CODECS,
    IMAGE,
    MICROBATCH,
    WIDTH,
    image_tokens,
    make_worker,
    small_manifest,
    zeros,
)

WEIGHT, BIAS = zeros(IMAGE.patch_values, WIDTH), zeros(WIDTH)
OWN: NamedTensors = (("image.bias", BIAS), ("image.weight", WEIGHT))
CUT: NamedTensors = image_tokens()


class Desk:
    """A session of trained tokenizers, one agent, and a driver that computes nothing."""

    def __init__(self, mode: str = "trainable", every_windows: int = 1) -> None:
        document = small_manifest(epochs=2, mode="synchronous").model_dump()
        document["tokenizers"] |= {"mode": mode, "every_windows": every_windows}
        self.manifest = Manifest.model_validate(document)
        self.session = make_worker(self.manifest)
        self.session.take_weights(0, OWN if mode == "trainable" else ())
        self.session.connected()
        self.backwards: list[Backward] = []

    @property
    def lease(self) -> int:
        lease = self.session.leases.of("a")
        assert lease is not None
        return lease.lease

    def hello(self, incarnation: int = 1) -> list[WorkerAction]:
        digest = bytes.fromhex(self.manifest.digest())
        hello = Hello("a", incarnation, digest, 8, CODECS, BYTE_STAGES, "v1")
        return self.session.receive("cutlayer/workers/w0/inbox/a", hello, 0.0)

    def activations(self, step: int = 0) -> list[WorkerAction]:
        message = Activations(self.lease, step, Mode.TRAIN, MICROBATCH, image_tokens())
        actions = self.session.receive("a/up/w0/activations", message, 0.0)
        work = self.session.next_work(0.0)
        if isinstance(work, Forward):
            outputs = {key: zeros(MICROBATCH, len(CLASSES)) for key, _ in work.microbatches}
            actions += self.session.forwarded(work.group, outputs, self.session.version, 0.0)
        return actions

    def gradients(self, step: int = 0, own: NamedTensors = OWN) -> list[WorkerAction]:
        gradients = zeros(MICROBATCH, len(CLASSES))
        message = OutputGradients(self.lease, step, self.session.version, gradients, own)
        return self.session.receive("a/up/w0/gradients", message, 0.0)

    def commit(self) -> list[WorkerAction]:
        actions: list[WorkerAction] = []
        while (work := self.session.next_work(0.0)) is not None:
            if isinstance(work, Backward):
                self.backwards.append(work)
                cut = {key: CUT for key, _ in work.gradients}
                actions += self.session.backward_done(work.group, 0.0, cut)
            else:
                assert isinstance(work, Commit)
                version = self.session.version + 1
                self.session.take_weights(version, OWN)
                actions += self.session.committed(version, 0.0)
        return actions

    def step(self, step: int) -> list[WorkerAction]:
        self.activations(step)
        self.gradients(step)
        return self.commit()


def messages(actions: Sequence[WorkerAction]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, Publish)]


def weights_in(actions: Sequence[WorkerAction]) -> list[TokenizerWeights]:
    return [message for message in messages(actions) if isinstance(message, TokenizerWeights)]


@pytest.mark.parametrize(
    ("own", "detail"),
    [
        ((("image.bias", zeros(WIDTH + 1)),), "shape"),
        ((("image.weight", zeros(WIDTH, IMAGE.patch_values)),), "shape"),
        ((("image.bias", zeros(WIDTH, codec="fp16")),), "encoded as 'fp16'"),
        ((("image.bias", EncodedTensor("identity", (WIDTH,), bytes(999))),), "999 B"),
        ((("smell.bias", BIAS),), "smell.bias"),
        ((("image.bias", BIAS), ("image.bias", BIAS)), "at most once"),
    ],
)
def test_gradients_of_tokenizers_that_do_not_fit_end_their_agent(own: NamedTensors, detail: str) -> None:
    desk = Desk()
    desk.hello()
    desk.activations()
    actions = desk.gradients(own=own)
    assert [action.label for action in actions if isinstance(action, Refused)] == ["content"]
    (reject,) = (message for message in messages(actions) if isinstance(message, Reject))
    assert reject.reason is RejectReason.CONTENT
    assert detail in reject.detail
    assert not isinstance(desk.session.next_work(0.0), Backward)


def test_gradients_of_frozen_tokenizers_end_their_agent() -> None:
    desk = Desk("frozen")
    desk.hello()
    desk.activations()
    (reject,) = (message for message in messages(desk.gradients()) if isinstance(message, Reject))
    assert "frozen" in reject.detail


def test_gradients_of_tokenizers_go_with_the_backward_pass_of_their_step() -> None:
    desk = Desk()
    desk.hello()
    desk.activations(0)
    desk.gradients(0, own=())
    desk.commit()
    desk.step(1)
    assert [work.tokenizer_gradients for work in desk.backwards] == [(), ((Key("a", Mode.TRAIN, 1), OWN),)]


def test_new_weights_go_before_the_commit_that_they_come_of() -> None:
    desk = Desk()
    desk.hello()
    first, second = messages(desk.step(0))
    assert isinstance(first, TokenizerWeights)
    assert (first.version, first.tensors) == (1, OWN)
    assert isinstance(second, ActivationGradients)
    assert second.tensors == CUT


def test_weights_go_after_so_many_windows_and_before_the_evaluation() -> None:
    desk = Desk(every_windows=2)
    desk.hello()
    assert [[told.version for told in weights_in(desk.step(step))] for step in range(3)] == [[], [2], []]
    desk.step(3)
    actions = desk.session.receive("cutlayer/workers/w0/inbox/a", TrainingDone(desk.lease), 0.0)
    assert desk.session.phase is RunPhase.EVALUATING
    assert [told.version for told in weights_in(actions)] == [4]


def test_weights_follow_the_lease_and_each_further_hello() -> None:
    desk = Desk()
    assert [told.version for told in weights_in(desk.hello())] == [0]
    desk.step(0)
    (told,) = weights_in(desk.hello())
    assert (told.lease, told.version) == (desk.lease, 1)


def test_frozen_tokenizers_are_not_told_of() -> None:
    desk = Desk("frozen")
    assert not weights_in(desk.hello())


def test_a_commit_that_is_told_again_carries_what_it_carried() -> None:
    desk = Desk()
    desk.hello()
    desk.step(0)
    (again,) = messages(desk.gradients(0))
    assert isinstance(again, ActivationGradients)
    assert again.tensors == CUT


def test_an_agent_that_is_gone_leaves_no_gradients_behind() -> None:
    desk = Desk()
    desk.hello()
    desk.step(0)
    desk.session.tick(0.0)
    desk.session.tick(1e6)  # its lease ends
    desk.session.tick(2e6)  # and so does the time that it may be away
    assert desk.session.leases.of("a") is None
    desk.hello(incarnation=2)
    (again,) = (m for m in messages(desk.activations(0)) if isinstance(m, ActivationGradients))
    assert again.tensors == ()
