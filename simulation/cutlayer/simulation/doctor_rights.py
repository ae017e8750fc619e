"""The doctor's look at an agent's rights: may this user publish and subscribe where an agent must?

A right is proven by what comes back. Mosquitto grants a foreign SUBSCRIBE and then delivers nothing, and answers a
foreign PUBLISH with "Not authorized" in MQTT 5 only, so neither SUBACK nor MQTT 3.1.1's PUBACK proves anything.

Nothing here disturbs a run. What is published is empty and not retained, which agents and workers pass over, or a
Probe; and where a topic of our own making does, it is one that nobody listens to.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from cutlayer.broker.broker_settings import BrokerSettings, is_loopback
from cutlayer.broker.probe import probe_answers
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics, WorkerTopics, model_chunk, model_chunks
from cutlayer.simulation.doctor_client import Answer, DoctorClient
from cutlayer.simulation.doctor_report import Finding, found, problem, warning
from cutlayer.simulation.doctor_scene import Scene

__all__ = ["RightsCheck"]

ECHO_S: Final = 1.5
"""How long our own message may take to come back, once it is acknowledged."""
NOT_PROVEN: Final = (
    "start a worker (`server-worker start --run RUN.toml`) and run the doctor again: its messages prove it"
)


@dataclass(frozen=True, slots=True)
class _Right:
    """A line of the ACL that an agent needs."""

    verb: str
    """`read`, `write` or `readwrite`, as in Mosquitto's ACL."""
    topics: str

    @property
    def line(self) -> str:
        return f"topic {self.verb} {self.topics}"


class RightsCheck:
    """Looks at the rights of one agent's user.

    Args:
        client: An open connection.
        settings: The broker.
        scene: What is there; workers are probed already.

    Attributes:
        quiet_topic: A topic of the agent's that nobody listens to.
        may_publish: Whether publishing there is not refused.
        is_open: Whether the broker lets this user write where only a worker must.
    """

    def __init__(self, client: DoctorClient, settings: BrokerSettings, scene: Scene) -> None:
        assert scene.topics is not None
        self._client = client
        self._settings = settings
        self._scene = scene
        self._topics: AgentTopics = scene.topics
        self._nobody = f"doctor-{secrets.token_hex(4)}"
        """No worker has this name."""
        self.quiet_topic = self._topics.up_activations(self._nobody)
        self.may_publish = True
        self.is_open = False

    def findings(self) -> list[Finding]:
        """Look at every right; one finding each."""
        state = self._state()
        self.is_open = self._comes_back(probe_answers(self._topics.root, secrets.randbits(53)))
        return [
            self._up(),
            self._inbox(),
            state,
            self._down(),
            self._run(),
            self._model(),
            self._worker_states(),
            *self._openness(),
        ]

    # Publishing -----------------------------------------------------------------------------------------------

    def _up(self) -> Finding:
        right = _Right("write", f"{self._topics.root}/up/#")
        answers = [
            self._publish(topic)
            for topic in (self.quiet_topic, self._topics.up_gradients(self._nobody), self._topics.telemetry)
        ]
        refused = next((answer for answer in answers if not answer.is_accepted), None)
        self.may_publish = refused is None
        return self._written(right, refused or answers[0], self.quiet_topic)

    def _inbox(self) -> Finding:
        right = self._inbox_right
        for name, proof in self._scene.proofs.items():
            if proof.round_trips:
                return self._proven(right, f"worker {name} has read it and answered")
            if not proof.published.is_accepted:
                return self._denied(right, proof.published.text)
        topic = WorkerTopics(self._nobody).inbox_of(self._topics.root)
        return self._written(right, self._publish(topic), topic)

    @property
    def _inbox_right(self) -> _Right:
        return _Right("write", WorkerTopics(self._nobody).inbox_of(self._topics.root).replace(self._nobody, "+"))

    def _written(self, right: _Right, answer: Answer, topic: str) -> Finding:
        if answer.code is None and self._client.is_open:
            return self._unproven(right, "the broker does not acknowledge it", "try again, with a longer --timeout")
        if not answer.is_accepted:
            return self._denied(right, answer.text)
        if self._client.protocol == "5":
            return self._proven(right, "the broker takes it (PUBACK of MQTT 5)")
        if self.is_open and self._comes_back(topic):
            return self._proven(right, "what was published came back")
        fix = "use --mqtt 5, in which a broker says what it refuses; MQTT 3.1.1 acknowledges it all the same"
        return self._unproven(right, "the broker acknowledges it, which means nothing in MQTT 3.1.1", fix)

    def _state(self) -> Finding:
        right = _Right("readwrite", self._topics.state)
        denied = self._not_granted(self._topics.state)
        if denied is not None:
            return self._denied(right, denied)
        # Empty and not retained: the agent and its workers pass it over, and what is retained stays.
        answer = self._publish(self._topics.state)
        if not answer.is_accepted:
            return self._denied(right, f"publishing: {answer.text}")
        # A running agent's own state is not empty.
        if self._client.pump(lambda: any(not own.payload for own in self._client.take(self._topics.state)), ECHO_S):
            return self._proven(right, "what was published came back")
        missing = "reading" if self._client.protocol == "5" else "publishing or reading"
        return self._denied(right, f"what was published does not come back: {missing} is refused in silence")

    # Reading --------------------------------------------------------------------------------------------------

    def _down(self) -> Finding:
        right = _Right("read", f"{self._topics.root}/down/#")
        denied = self._not_granted(self._topics.down_all)
        if denied is not None:
            return self._denied(right, denied)
        answered = [name for name, proof in self._scene.proofs.items() if proof.round_trips]
        if answered:
            return self._proven(right, f"worker {answered[0]}'s answer came")
        if self.is_open:
            return self._proven(right, "what was published there came back")
        asked = [name for name, proof in self._scene.proofs.items() if proof.published.is_accepted]
        if asked:
            inbox = "" if self._client.protocol == "5" else f" (and `{self._inbox_right.line}`)"
            return self._denied(
                right,
                f"worker {asked[0]} is online and its answer does not come",
                f"{inbox}; if it has that, worker {asked[0]} hangs or is of another release: look at its log",
            )
        if self._scene.proofs:
            return self._unproven(right, "no worker could be asked", "mend what is refused and run the doctor again")
        return self._unproven(right, "the broker grants the subscription, which proves nothing", NOT_PROVEN)

    def _run(self) -> Finding:
        right = _Right("read", RUN)
        denied = self._not_granted(RUN)
        if denied is not None:
            return self._denied(right, denied)
        if self._scene.manifest is not None or self._scene.manifest_error is not None:
            return self._proven(right, "the manifest came")
        if self._scene.online:
            fact = f"worker {self._scene.online[0].worker} serves a run, but its manifest does not come"
            return self._denied(right, fact)
        return self._unproven(right, "nothing is retained there", NOT_PROVEN)

    def _model(self) -> Finding:
        right = _Right("read", "cutlayer/model/#")
        manifest = self._scene.manifest
        if manifest is not None:
            denied = self._not_granted(model_chunks(manifest.tokenizers.digest))
            if denied is not None:
                return self._denied(right, denied)
            if self._scene.num_pieces or self._scene.model_error is not None:
                return self._proven(right, "pieces of the model came")
            if self._scene.online:
                return self._denied(right, "a run is there, but no piece of its model comes")
        if self.is_open and self._comes_back(model_chunk(self._nobody, 0)):
            return self._proven(right, "what was published there came back")
        return self._unproven(right, "nothing is retained there", NOT_PROVEN)

    def _worker_states(self) -> Finding:
        right = _Right("read", WORKER_STATES)
        denied = self._not_granted(WORKER_STATES)
        if denied is not None:
            return self._denied(right, denied)
        if self._scene.workers or self._scene.worker_error is not None:
            return self._proven(right, "a worker's state came")
        if self.is_open and self._comes_back(WorkerTopics(self._nobody).state):
            return self._proven(right, "what was published there came back")
        if self._scene.manifest is not None:
            # A worker announces its run first and then itself, and a run that has ended is not announced any more.
            fact = "a run is announced, but no worker's state comes"
            return self._denied(right, fact, "; if it has that, start the worker again")
        return self._unproven(right, "nothing is retained there", NOT_PROVEN)

    def _openness(self) -> list[Finding]:
        if not self.is_open or is_loopback(self._settings.host):
            return []
        return [
            warning(
                "rights",
                f"{self._user} may also publish on its own down/ topics, where only workers should",
                "give the broker an ACL (broker/acl.example): without one anybody can end a run or forge gradients",
                {"is_open": True},
            )
        ]

    # What the broker does -------------------------------------------------------------------------------------

    def _publish(self, topic: str) -> Answer:
        if not self._client.ensure_open():
            return Answer(None, self._client.end)
        return self._client.publish(topic)

    def _comes_back(self, topic: str) -> bool:
        """Publish an empty message where we listen; return whether it comes."""
        if not self._client.ensure_open() or not self._client.subscribe(topic)[topic].is_accepted:
            return False
        came = self._publish(topic).is_accepted and self._client.pump(
            lambda: any(heard.topic == topic for heard in self._client.heard), ECHO_S
        )
        self._client.take(topic)
        self._client.unsubscribe(topic)
        return came

    def _not_granted(self, topic_filter: str) -> str | None:
        answer = self._scene.granted.get(topic_filter)
        return None if answer is None or answer.is_accepted else f"subscribing: {answer.text}"

    # Findings -------------------------------------------------------------------------------------------------

    @property
    def _user(self) -> str:
        return f"user {self._settings.username}" if self._settings.username is not None else "users without a name"

    def _proven(self, right: _Right, how: str) -> Finding:
        return found("rights", f"{right.verb} {right.topics}: {how}", {"right": right.line, "is_proven": True})

    def _unproven(self, right: _Right, why: str, fix: str) -> Finding:
        return warning(
            "rights", f"{right.verb} {right.topics}: not proven, {why}", fix, {"right": right.line, "is_proven": False}
        )

    def _denied(self, right: _Right, why: str, otherwise: str = "") -> Finding:
        fix = f"give {self._user} the line `{right.line}` in the broker's ACL{otherwise}"
        return problem("rights", f"{right.verb} {right.topics}: {why}", fix, {"right": right.line, "is_proven": False})
