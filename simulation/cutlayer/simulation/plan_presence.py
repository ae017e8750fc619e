"""What an agent's presence costs, beside its microbatches: it connects, learns of the run, joins it, and leaves."""

from __future__ import annotations

from cutlayer import compression
from cutlayer.broker.actions import Publish
from cutlayer.broker.leases import negotiate_codecs
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    AgentState,
    Goodbye,
    GoodbyeReason,
    Hello,
    Phase,
    RunManifest,
    RunPhase,
    Telemetry,
    TrainingDone,
    Welcome,
    WorkerState,
    serialize,
)
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics, WorkerTopics, model_chunk, model_chunks
from cutlayer.broker.transport import Will
from cutlayer.simulation.plan_exchange import Parties
from cutlayer.simulation.plan_wire import Link, Ways, total

__all__ = ["goodbye", "joining", "leaving"]

END_REASON = "all agents have done their epochs"
NUM_STATES_WHILE_JOINING, NUM_STATES_WHILE_LEAVING = 3, 3
"""States of the worker that an agent hears: as it finds it, as training begins, with the leases granted; then as
evaluation begins, as others leave, and as the run ends, of which the first to leave hear less."""


def joining(
    manifest: Manifest,
    tokenizer_file: bytes,
    num_samples: int,
    num_credits: int,
    lease_s: float,
    parties: Parties,
    link: Link,
) -> Ways:
    """Return what it takes until the first microbatch.

    Args:
        manifest: The run.
        tokenizer_file: The client-side weights.
        num_samples: The agent's training samples.
        num_credits: As the worker grants them.
        lease_s: As the worker says it.
        parties: Who talks.
        link: The agent's connection.
    """
    topics, inbox = AgentTopics(parties.agent), WorkerTopics(parties.worker).inbox_of(parties.agent)
    offline, online = (AgentState(is_online, parties.incarnation) for is_online in (False, True))
    digest = manifest.tokenizers.digest
    codecs, stages = compression.available_codecs(), compression.available_byte_stages()
    own_state = Publish(topics.state, online, retain=True)
    hello = Hello(
        parties.agent,
        parties.incarnation,
        bytes.fromhex(manifest.digest()),
        num_samples,
        codecs,
        stages,
        "cutlayer 0.1.0",
    )
    welcome = Welcome(
        parties.worker,
        parties.incarnation,
        parties.lease,
        num_credits,
        negotiate_codecs(manifest.codecs, codecs, stages),
        (),
        RunPhase.TRAINING,
        lease_s,
        parties.store,
    )
    return total(
        [
            link.connecting(
                parties.client_id,
                Will(topics.state, serialize(offline)),
                (topics.down_all, topics.state, RUN, WORKER_STATES),
            ),
            link.up(own_state),
            link.down(own_state),  # it listens to its own state, which another process might claim
            link.down(Publish(RUN, RunManifest(manifest.to_bytes()))),
            link.subscribing(model_chunks(digest)),
            *(link.down(Publish(model_chunk(digest, chunk.index), chunk)) for chunk in cut_model(tokenizer_file)),
            _worker_state(manifest, parties, link, RunPhase.TRAINING, "") * NUM_STATES_WHILE_JOINING,
            link.up(Publish(inbox, hello)),
            link.down(Publish(topics.down_control, welcome)),
            link.down(Publish(topics.down_control, Phase(parties.lease, RunPhase.TRAINING, ""))),
        ]
    )


def leaving(manifest: Manifest, parties: Parties, link: Link) -> Ways:
    """Return what it takes from the last commit on, beside evaluations and the Goodbye."""
    topics, inbox = AgentTopics(parties.agent), WorkerTopics(parties.worker).inbox_of(parties.agent)
    return total(
        [
            link.up(Publish(inbox, TrainingDone(parties.lease))),
            link.down(Publish(topics.down_control, Phase(parties.lease, RunPhase.EVALUATING, END_REASON))),
            _worker_state(manifest, parties, link, RunPhase.EVALUATING, END_REASON) * NUM_STATES_WHILE_LEAVING,
            link.up(Publish(topics.state, AgentState(False, parties.incarnation), retain=True)),
            link.disconnecting(),
        ]
    )


def goodbye(telemetry: Telemetry, parties: Parties, link: Link) -> Ways:
    """Return what the Goodbye takes, with the last counters, and its answer."""
    topics, inbox = AgentTopics(parties.agent), WorkerTopics(parties.worker).inbox_of(parties.agent)
    said = Goodbye(parties.lease, GoodbyeReason.COMPLETED, telemetry)
    answer = Phase(parties.lease, RunPhase.ENDED, "goodbye")
    return link.up(Publish(inbox, said)) + link.down(Publish(topics.down_control, answer))


def _worker_state(manifest: Manifest, parties: Parties, link: Link, phase: RunPhase, reason: str) -> Ways:
    digest = bytes.fromhex(manifest.digest())
    state = WorkerState(True, parties.worker, parties.incarnation, digest, phase, 1, 0, reason)
    return link.down(Publish(WorkerTopics(parties.worker).state, state))
