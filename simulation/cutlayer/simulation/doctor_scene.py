"""What the doctor hears on an agent's topics: the run's retained messages, workers, answers to probes."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from cutlayer.broker.errors import MalformedMessage, WireError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    AgentState,
    ModelChunk,
    Probe,
    ProbeAnswer,
    RunManifest,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.model_chunks import ModelAssembler
from cutlayer.broker.probe import RoundTrip, probe_answers
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics, WorkerTopics, model_chunks
from cutlayer.simulation.doctor_client import Answer, DoctorClient

__all__ = ["Scene", "WorkerProof", "fetch_model", "look_around", "probe_workers"]

SETTLE_S: Final = 0.5
"""Retained messages follow the SUBACK at once; so long is waited for the next one."""
PROBES: Final = 8
MOST_WORKERS: Final = 8
MODEL_PATIENCE_S: Final = 3.0
"""How long the next piece of a model is waited for."""


@dataclass(slots=True)
class WorkerProof:
    """What came of probing a worker.

    Attributes:
        published: The broker's answer to the first probe.
        round_trips: One for each answer of the worker's.
    """

    published: Answer
    round_trips: list[RoundTrip] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    """What is there on the broker, as far as this user can hear it.

    Attributes:
        topics: The agent's topics, where a topic was given.
        granted: The broker's answer to each subscription.
        manifest: The run's manifest.
        manifest_error: Why the one that is there cannot be read.
        workers: Latest state of each worker, by name.
        worker_error: Why a worker's state cannot be read.
        agent: State of an agent that uses the topic.
        proofs: What came of probing each worker that is online.
        num_pieces: Pieces of the model that came, each counted once.
        model_bytes: Their bytes, headers not included.
        model_s: Seconds that they took.
        is_model_whole: Whether they are all there and have the manifest's digest.
        model_error: Why they are not the manifest's.
    """

    topics: AgentTopics | None
    granted: dict[str, Answer] = field(default_factory=dict)
    manifest: Manifest | None = None
    manifest_error: WireError | None = None
    workers: dict[str, WorkerState] = field(default_factory=dict)
    worker_error: WireError | None = None
    agent: AgentState | None = None
    proofs: dict[str, WorkerProof] = field(default_factory=dict)
    num_pieces: int = 0
    model_bytes: int = 0
    model_s: float = 0.0
    is_model_whole: bool = False
    model_error: WireError | None = None

    @property
    def online(self) -> list[WorkerState]:
        """The workers that say they are there."""
        return [state for state in self.workers.values() if state.online]

    def take(self, topic: str, payload: bytes) -> None:
        """Take a retained message of the run's or of the agent's own."""
        if not payload:
            return
        try:
            message = parse(payload)
            if topic == RUN and isinstance(message, RunManifest):
                self.manifest, self.manifest_error = Manifest.from_bytes(message.document), None
            elif isinstance(message, WorkerState) and topic == WorkerTopics(message.worker).state:
                self.workers[message.worker] = message
            elif isinstance(message, AgentState):
                self.agent = message
            elif topic == RUN:
                raise MalformedMessage(f"a {type(message).__name__} instead of a manifest")
        except WireError as error:
            if topic == RUN:
                self.manifest_error = error
            elif self.topics is None or topic != self.topics.state:
                self.worker_error = error


def look_around(client: DoctorClient, topics: AgentTopics | None) -> Scene:
    """Subscribe as an agent does, and hear what the broker keeps."""
    scene = Scene(topics)
    filters = [RUN, WORKER_STATES]
    if topics is not None:
        filters += [topics.state, topics.down_all]
    for name in filters:  # one by one: a broker may end the connection over one of them
        if client.ensure_open():
            scene.granted[name] = client.subscribe(name)[name]
        if not client.is_open:
            scene.granted[name] = Answer(None, client.end)
            client.unsubscribe(name)
    if topics is not None:
        client.unsubscribe(topics.down_all)  # what comes down to a running agent is no concern of ours
    client.ensure_open()
    while client.pump(lambda: bool(client.heard), SETTLE_S):
        message = client.heard.pop(0)
        scene.take(message.topic, message.payload)
    return scene


def probe_workers(client: DoctorClient, scene: Scene) -> None:
    """Ask each worker that is online for answers."""
    assert scene.topics is not None
    for state in scene.online[:MOST_WORKERS]:
        inbox = WorkerTopics(state.worker).inbox_of(scene.topics.root)
        for number in range(PROBES):
            if not client.ensure_open():
                return
            nonce = secrets.randbits(53)
            answers = probe_answers(scene.topics.root, nonce)
            client.subscribe(answers)
            probe = Probe(nonce, time.time(), b"")
            sent_s = time.perf_counter()
            published = client.publish(inbox, serialize(probe))
            proof = scene.proofs.setdefault(state.worker, WorkerProof(published))
            if published.is_refused or not client.is_open:
                break
            client.pump(lambda answers=answers: any(heard.topic == answers for heard in client.heard))  # type: ignore[misc]
            client.unsubscribe(answers)
            trip = _round_trip(client, answers, probe, sent_s)
            if trip is None:
                break  # another one would take as long
            proof.round_trips.append(trip)
            if number == 0 and trip.round_trip_s > client.timeout_s / 2:
                break


def fetch_model(client: DoctorClient, scene: Scene) -> None:
    """Read the pieces of the client-side weights and check them, as an agent does."""
    assert scene.manifest is not None
    weights = scene.manifest.tokenizers
    name = model_chunks(weights.digest)
    assembler = ModelAssembler(weights)
    seen: set[int] = set()
    if not client.ensure_open():
        return
    started_s = time.perf_counter()
    scene.granted[name] = client.subscribe(name)[name]
    while client.pump(lambda: bool(client.heard), MODEL_PATIENCE_S):
        heard = client.heard.pop(0)
        if not heard.topic.startswith(name.removesuffix("+")):
            scene.take(heard.topic, heard.payload)
            continue
        try:
            message = parse(heard.payload) if heard.payload else None
            if not isinstance(message, ModelChunk):
                continue
            scene.is_model_whole = assembler.feed(message) is not None
        except WireError as error:
            scene.model_error = error
            break
        if message.index not in seen:
            seen.add(message.index)
            scene.model_bytes += len(heard.payload)
            scene.model_s = heard.at_s - started_s
        if scene.is_model_whole:
            break
    scene.num_pieces = len(seen)
    client.unsubscribe(name)


def _round_trip(client: DoctorClient, topic: str, probe: Probe, sent_s: float) -> RoundTrip | None:
    for heard in client.take(topic):
        try:
            answer = parse(heard.payload)
        except WireError:
            continue
        if isinstance(answer, ProbeAnswer) and answer.nonce == probe.nonce:
            return RoundTrip(probe.sent_at, answer.answered_at, heard.at_s - sent_s)
    return None
