"""What agents and workers say to each other of candidates, one message at a time."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.broker.actions import CandidateGone, CandidateJudged, CandidateOffered, Publish, Refused, WorkerAction
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.manifest import EvaluationSpec
from cutlayer.broker.messages import (
    Activations,
    Candidate,
    Evaluation,
    Hello,
    Message,
    MetricSums,
    Mode,
    Phase,
    Reject,
    RejectReason,
    Resend,
    ResendReason,
    RunPhase,
)
from cutlayer.broker.selection import Selection
from cutlayer.broker.topics import AgentTopics, WorkerTopics
from cutlayer.broker.work import Forward
from cutlayer.broker.worker_candidates import OFFER_AGAIN_S
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from support.agent_desk import Desk
from support.conversation import BYTE_STAGES, CODECS, counters, image_tokens, small_manifest, zeros

TOPICS = AgentTopics("clinic/07")
LEASE = 100


class Clinic:
    """A worker that chooses its weights, and one agent of four samples with validation samples."""

    def __init__(self, num_val: int = 40) -> None:
        evaluation = EvaluationSpec(keep="best")
        manifest = small_manifest(epochs=4).model_copy(update={"evaluation": evaluation})
        self.selection = Selection(evaluation, manifest.task, manifest.epochs)
        self.worker = WorkerSession(
            "w0", 1, manifest, WorkerLimits(), LeaseTable(lambda: LEASE), selection=self.selection
        )
        self.worker.connected()
        digest = bytes.fromhex(manifest.digest())
        self.says(Hello("clinic/07", 1, digest, 4, CODECS, BYTE_STAGES, "", num_val))

    def says(self, message: Message, topic: str = TOPICS.up_activations("w0"), now: float = 0.0) -> list[WorkerAction]:
        inbox = WorkerTopics("w0").inbox_of("clinic/07")
        return self.worker.receive(inbox if isinstance(message, Hello) else topic, message, now)

    def hold(self, name: str, epoch: int = 1) -> list[WorkerAction]:
        self.selection.committed(4 * epoch, 16)
        return self.worker.candidates.taken(name, (), 0.0)

    def evaluates(self, candidate: str, step: int = 0, mode: Mode = Mode.EVAL) -> list[WorkerAction]:
        return self.says(Activations(LEASE, step, mode, 4, image_tokens(), candidate=candidate))

    def reports(self, candidate: str) -> list[WorkerAction]:
        evaluation = Evaluation(1, "image", False, MetricSums(20.0, 30, 40), 0, candidate)
        return self.says(replace(counters(), evaluations=(evaluation,)), TOPICS.telemetry)


def messages(actions: list[WorkerAction]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, Publish)]


def test_a_candidate_is_offered_at_once_and_again_until_it_is_reported() -> None:
    clinic = Clinic()
    assert messages(clinic.hold("c0ffee")) == [Candidate(LEASE, 1, "c0ffee")]
    assert not [each for each in messages(clinic.worker.tick(1.0)) if isinstance(each, Candidate)]
    assert Candidate(LEASE, 1, "c0ffee") in messages(clinic.worker.tick(OFFER_AGAIN_S))
    (judged,) = [action for action in clinic.reports("c0ffee") if isinstance(action, CandidateJudged)]
    assert (judged.judged.value, judged.judged.loss) == (0.75, 0.5)
    assert not [each for each in messages(clinic.worker.tick(3 * OFFER_AGAIN_S)) if isinstance(each, Candidate)]


def test_an_agent_without_validation_samples_is_offered_nothing() -> None:
    clinic = Clinic(num_val=0)
    assert messages(clinic.hold("c0ffee")) == []


def test_what_waits_is_offered_when_the_one_before_it_is_judged() -> None:
    clinic = Clinic()
    clinic.hold("first")
    assert messages(clinic.hold("second", epoch=2)) == []
    assert Candidate(LEASE, 2, "second") in messages(clinic.reports("first"))


def test_an_evaluation_runs_apart_from_those_of_other_weights() -> None:
    clinic = Clinic()
    clinic.hold("c0ffee")
    assert clinic.evaluates("c0ffee", 0) == []
    assert clinic.evaluates("", 1) == []
    works = [clinic.worker.next_work(0.0), clinic.worker.next_work(0.0)]
    assert [work.candidate for work in works if isinstance(work, Forward)] == ["c0ffee", ""]


def test_an_evaluation_of_weights_that_are_not_held_is_given_back_at_once() -> None:
    clinic = Clinic()
    gone = [Resend(LEASE, 0, Mode.EVAL, ResendReason.CANDIDATE)]
    assert messages(clinic.evaluates("c0ffee")) == gone
    clinic.hold("c0ffee")
    assert clinic.evaluates("c0ffee") == []
    clinic.hold("second", epoch=2)
    clinic.hold("third", epoch=3)
    assert messages(clinic.evaluates("second", 1)) == [replace(gone[0], step=1)]


def test_training_with_the_weights_of_a_candidate_is_refused_for_good() -> None:
    clinic = Clinic()
    clinic.hold("c0ffee")
    (reject,) = [each for each in messages(clinic.evaluates("c0ffee", mode=Mode.TRAIN)) if isinstance(each, Reject)]
    assert reject.reason is RejectReason.CONTENT


def test_after_the_choice_training_is_not_taken_and_the_phase_is_said_again() -> None:
    clinic = Clinic()
    clinic.hold("c0ffee")
    clinic.reports("c0ffee")
    clinic.selection.conclude((), is_over=True)
    clinic.worker.candidates.kept(version=2)
    assert clinic.worker.phase is RunPhase.EVALUATING
    actions = clinic.evaluates("", mode=Mode.TRAIN)
    assert [action.label for action in actions if isinstance(action, Refused)] == ["state"]
    assert messages(actions) == [Phase(LEASE, RunPhase.EVALUATING, "all agents have done their epochs")]
    assert clinic.evaluates("", 1) == [], "the finished model is evaluated"


def test_the_agent_is_told_of_an_offer_and_of_weights_that_are_gone() -> None:
    desk = Desk("w0")
    offer = desk.receive(Candidate(desk.leases["w0"], 3, "c0ffee", (("image.bias", zeros(2)),)))
    assert offer == [CandidateOffered(3, "c0ffee", (("image.bias", zeros(2)),))]
    (up,) = desk.session.submit(0, Mode.EVAL, 4, image_tokens(), desk.now, candidate="c0ffee")
    assert isinstance(up, Publish)
    assert isinstance(up.message, Activations)
    assert up.message.candidate == "c0ffee"
    assert desk.resend(0, ResendReason.CANDIDATE, Mode.EVAL) == [CandidateGone(0)]
    assert desk.session.num_outstanding == 0
