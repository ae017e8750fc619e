"""What a peer sends that it should not is counted under a label, and the run ends as it would have without it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import (
    MAX_MESSAGE_BYTES,
    Activations,
    AgentState,
    Chunk,
    EncodedTensor,
    Goodbye,
    Hello,
    Message,
    Mode,
    ModelChunk,
    NegotiatedCodecs,
    OutputGradients,
    Outputs,
    Resend,
    ResendReason,
    RunManifest,
    RunPhase,
    TrainingDone,
    Welcome,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics, model_chunk
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import AUDIO, IMAGE, small_dataset, small_settings
from support.virtual_run import Client, Worker, committed_once, run_until_over

LINK = LinkFaults(delay_s=0.01, jitter_s=0.01)
SITE = AgentTopics("site/0")
INBOX = WorkerTopics("w0").inbox_of(SITE.root)
EVIL = AgentTopics("evil/0")
EVIL_INBOX = WorkerTopics("w0").inbox_of(EVIL.root)
NO_SUCH_LEASE = 7
TENSOR = EncodedTensor("identity", (2, 3), bytes(24))


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    torch.set_num_threads(1)
    with caplog.at_level(logging.DEBUG, "cutlayer"):
        yield
    for record in caplog.records:
        assert not record.exc_info, record
        assert record.levelno < logging.ERROR, record


def settings_of() -> RunSettings:
    return small_settings(run={"min_agents": 2, "epochs": 4})


class Scene:
    """A run of two agents that a stranger disturbs."""

    def __init__(self, *, computes: bool = False) -> None:
        self.network = VirtualNetwork(LINK)
        self.stranger = Client(self.network)
        self.worker = Worker(self.network, settings_of(), computes=computes)
        self.agents = [self.network.add_agent(f"site/{index}", small_dataset(index, 12)) for index in range(2)]

    def to_window(self, window: int) -> None:
        self.network.run(lambda: self.worker.session.window >= window)

    def finish(self) -> None:
        run_until_over(self.network, self.worker, self.agents)

    def refused(self, reason: str) -> float:
        return self.worker.metric("cutlayer_rejects_total", side="worker", reason=reason)

    def rejects(self) -> int:
        return sum(entry.rejects for topic, entry in self.worker.book.latest() if topic == "site/0")

    def seen(self, kind: type[Message], topic: str) -> list[Message]:
        messages = [parse(packet.payload) for packet in self.stranger.seen if packet.topic == topic and packet.payload]
        return [message for message in messages if isinstance(message, kind)]

    def lease_of(self, agent: str) -> int:
        welcomes = self.seen(Welcome, AgentTopics(agent).down_control)
        assert isinstance(welcomes[-1], Welcome)
        return welcomes[-1].lease


def hello(scene: Scene, agent: str, **changes: object) -> Hello:
    digest = bytes.fromhex(scene.worker.manifest.digest())
    whole = Hello(agent, 99, digest, 8, ("identity", "fp16", "int8"), ("lz4", "zstd"), "evil")
    return replace(whole, **changes)  # type: ignore[arg-type]


GARBAGE = {
    "nothing but zeros": bytes(64),
    "no MessagePack": b"\xc1" * 100,
    "text": b"hello, world",
    "a map": msgpack.packb({"version": 1}),
    "another version": msgpack.packb([2, 5, 1, 2, 3]),
    "an unknown kind": msgpack.packb([1, 250, 1]),
    "no fields": msgpack.packb([1, 5]),
    "an extension type": msgpack.packb([1, 5, msgpack.ExtType(4, b"x")]),
    "a deep nest": b"\x91" * 5_000,
    "a truncated message": serialize(Activations(1, 0, Mode.TRAIN, 2, (("image", TENSOR),)))[:-5],
    "a field out of its limit": msgpack.packb([1, 11, 1 << 40]),
    "a chunk of nothing": serialize(Chunk(b"12345678", 3, 2, 10, b"x")),
    "chunks of too much": serialize(Chunk(b"12345678", 0, 2, MAX_MESSAGE_BYTES, b"x" * 100)),
}


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE)
def test_garbage_to_the_worker_is_counted_and_dropped(payload: bytes) -> None:
    scene = Scene()
    scene.to_window(2)
    topics = [INBOX, SITE.up_activations("w0"), SITE.up_gradients("w0"), SITE.telemetry, SITE.state]
    for topic in topics:
        scene.stranger.say(topic, payload)
    scene.stranger.say("nobody/up/w0/activations", payload)
    scene.finish()
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})
    if payload != GARBAGE["chunks of too much"]:  # what is only begun is dropped when its room is wanted
        assert scene.refused("malformed") + scene.refused("version") + scene.refused("oversized") == len(topics)


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE)
def test_garbage_to_an_agent_is_counted_and_dropped(payload: bytes) -> None:
    scene = Scene()
    scene.to_window(2)
    digest = scene.worker.manifest.tokenizers.digest
    topics = [SITE.down_outputs, SITE.down_gradients, SITE.down_control, SITE.state, RUN, WorkerTopics("w9").state]
    for topic in (*topics, model_chunk(digest, 0)):
        scene.stranger.say(topic, payload)
    scene.finish()
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})
    if payload != GARBAGE["chunks of too much"]:
        assert scene.rejects() == len(topics)


FORGED: dict[str, tuple[str, Message, str]] = {
    "activations under no lease": (
        SITE.up_activations("w0"),
        Activations(NO_SUCH_LEASE, 0, Mode.TRAIN, 2, (("image", TENSOR),)),
        "lease",
    ),
    "gradients under no lease": (SITE.up_gradients("w0"), OutputGradients(NO_SUCH_LEASE, 0, 0, TENSOR), "lease"),
    "the end under no lease": (INBOX, TrainingDone(NO_SUCH_LEASE), "lease"),
    "outputs": (INBOX, Outputs(NO_SUCH_LEASE, 0, Mode.TRAIN, 0, 0.0, TENSOR), "unexpected"),
    "a resend": (SITE.up_activations("w0"), Resend(1, 0, Mode.TRAIN, ResendReason.STALE), "unexpected"),
}


@pytest.mark.parametrize(("topic", "message", "label"), FORGED.values(), ids=FORGED)
def test_forged_message_to_the_worker_is_counted(topic: str, message: Message, label: str) -> None:
    scene = Scene()
    scene.to_window(2)
    scene.stranger.say(topic, message)
    scene.finish()
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})
    assert scene.refused(label) == 1


def test_lease_of_one_agent_is_worth_nothing_on_the_topic_of_another() -> None:
    scene = Scene()
    scene.to_window(2)
    lease = scene.lease_of("site/1")
    scene.stranger.say(SITE.up_activations("w0"), Activations(lease, 3, Mode.TRAIN, 2, (("image", TENSOR),)))
    scene.stranger.say(SITE.up_gradients("w0"), OutputGradients(lease, 3, 0, TENSOR))
    scene.finish()
    assert scene.refused("lease") == 2
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})


def test_hello_that_cannot_be_meant_is_counted() -> None:
    scene = Scene()
    scene.to_window(2)
    scene.stranger.say(EVIL_INBOX, hello(scene, "cutlayer/run"))
    scene.stranger.say(EVIL_INBOX, hello(scene, "a/+/b"))
    scene.stranger.say(EVIL_INBOX, hello(scene, SITE.root))
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root, manifest_digest=bytes(32)))
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root, codecs=("fp16",)))
    scene.finish()
    assert (scene.refused("topic"), scene.refused("manifest"), scene.refused("codec")) == (3, 1, 1)
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})


def activations(num_samples: int = 2, **changes: EncodedTensor) -> tuple[tuple[str, EncodedTensor], ...]:
    def tensor(num_tokens: int) -> EncodedTensor:
        return EncodedTensor("identity", (num_samples, num_tokens, 16), bytes(num_samples * num_tokens * 64))

    return tuple(({"audio": tensor(AUDIO.num_tokens), "image": tensor(IMAGE.num_tokens)} | changes).items())


def filled(value: float) -> EncodedTensor:
    return EncodedTensor("identity", (2, 4, 16), np.full((2, 4, 16), value, "<f4").tobytes())


SHORT = EncodedTensor("identity", (2, 4, 16), bytes(12))
BAD_CONTENT: dict[str, tuple[int, int, tuple[tuple[str, EncodedTensor], ...]]] = {
    "NaN": (0, 2, activations(image=filled(float("nan")))),
    "infinity": (0, 2, activations(image=filled(float("-inf")))),
    "values that no model can take": (0, 2, activations(image=filled(1e38))),
    "another shape": (0, 2, activations(image=EncodedTensor("identity", (2, 4, 4), bytes(128)))),
    "fewer bytes": (0, 2, activations(image=SHORT)),
    "more bytes": (0, 2, activations(image=EncodedTensor("identity", (2, 4, 16), bytes(4_096)))),
    "a giant": (0, 2, activations(image=EncodedTensor("identity", (65_536, 1_024), b""))),
    "another codec": (0, 2, activations(image=EncodedTensor("fp16", (2, 4, 16), bytes(256)))),
    "an unknown codec": (0, 2, activations(image=EncodedTensor("../../etc/passwd", (2, 4, 16), bytes(512)))),
    "another modality": (0, 2, activations(smell=filled(0.0))),
    "no modality": (0, 2, ()),
    "no samples": (0, 0, activations(0)),
    "too many samples": (0, 5, activations(5)),
    "a step beyond the end": (8, 2, activations()),
}


@pytest.mark.parametrize(("step", "num_samples", "tensors"), BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_agent_that_sends_bad_activations_is_refused_and_the_others_go_on(
    step: int, num_samples: int, tensors: tuple[tuple[str, EncodedTensor], ...]
) -> None:
    scene = Scene(computes=True)
    scene.to_window(2)
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root))
    scene.network.run(lambda: bool(scene.seen(Welcome, EVIL.down_control)))
    lease = scene.lease_of(EVIL.root)
    scene.stranger.say(EVIL.up_activations("w0"), Activations(lease, step, Mode.TRAIN, num_samples, tensors))
    scene.finish()
    assert scene.refused("content") == 1
    assert [len(scene.worker.session.ledger.of(f"site/{index}")) for index in range(2)] == [12, 12]
    assert len(scene.worker.session.ledger.of(EVIL.root)) == 0
    assert all(torch.isfinite(weights).all() for weights in scene.worker.built.encoder.parameters())


def refer(**fields: object) -> Activations:
    """Return a microbatch of two samples that refers to what the worker has stored, with some fields replaced."""
    right = Activations(0, 0, Mode.TRAIN, 2, (), samples=b"\x00\x01", stored=b"\x03", from_store=("audio", "image"))
    return replace(right, **fields)  # type: ignore[arg-type]


BAD_REFERENCES = {
    "no numbers": refer(samples=b""),
    "numbers of other samples": refer(samples=b"\x00\x01\x02"),
    "a mask of other samples": refer(stored=b"\x03\x00"),
    "a bit behind the last sample": refer(stored=b"\x07"),
    "nothing at all": refer(from_store=()),
    "a modality that is none": refer(from_store=("audio", "smell")),
    "a modality twice": refer(from_store=("audio", "audio")),
    "tensors of samples that are stored": refer(tensors=activations()),
    "all tensors where one sample is fresh": refer(stored=b"\x01", from_store=(), tensors=activations()),
    "changes, which this run does not send": refer(stored=b"", from_store=(), tensors=activations(), bases=b"\x01\x01"),
    "positions of tokens that are all there": refer(
        stored=b"", from_store=(), tensors=activations(), positions=(("image", b"\x0f\x0f"),)
    ),
}


@pytest.mark.parametrize("message", BAD_REFERENCES.values(), ids=BAD_REFERENCES)
def test_agent_that_refers_to_samples_wrongly_is_refused_and_the_others_go_on(message: Activations) -> None:
    scene = Scene(computes=True)
    scene.to_window(2)
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root))
    scene.network.run(lambda: bool(scene.seen(Welcome, EVIL.down_control)))
    scene.stranger.say(EVIL.up_activations("w0"), replace(message, lease=scene.lease_of(EVIL.root)))
    scene.finish()
    assert scene.refused("content") == 1
    assert [len(scene.worker.session.ledger.of(f"site/{index}")) for index in range(2)] == [12, 12]


def test_agent_that_refers_to_samples_that_it_has_never_sent_is_asked_for_them() -> None:
    scene = Scene(computes=True)
    scene.to_window(2)
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root))
    scene.network.run(lambda: bool(scene.seen(Welcome, EVIL.down_control)))
    lease = scene.lease_of(EVIL.root)
    scene.stranger.say(EVIL.up_activations("w0"), refer(lease=lease))
    scene.network.run(lambda: bool(scene.seen(Resend, EVIL.down_control)))
    resend = scene.seen(Resend, EVIL.down_control)[0]
    assert resend == Resend(lease, 0, Mode.TRAIN, ResendReason.MISSING, b"\x03")


BAD_GRADIENTS = {
    "NaN": EncodedTensor("identity", (2, 3), np.full((2, 3), np.nan, "<f4").tobytes()),
    "infinity": EncodedTensor("identity", (2, 3), np.full((2, 3), np.inf, "<f4").tobytes()),
    "another shape": EncodedTensor("identity", (3, 2), bytes(24)),
    "a giant": EncodedTensor("identity", (65_536, 1_024), b""),
    "an unknown codec": EncodedTensor("gzip", (2, 3), bytes(24)),
    "fewer bytes": EncodedTensor("identity", (2, 3), bytes(4)),
}


@pytest.mark.parametrize("gradients", BAD_GRADIENTS.values(), ids=BAD_GRADIENTS)
def test_agent_that_sends_bad_gradients_is_refused_and_the_others_go_on(gradients: EncodedTensor) -> None:
    scene = Scene(computes=True)
    scene.to_window(2)
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root))
    scene.network.run(lambda: bool(scene.seen(Welcome, EVIL.down_control)))
    lease = scene.lease_of(EVIL.root)
    scene.stranger.say(EVIL.up_activations("w0"), Activations(lease, 0, Mode.TRAIN, 2, activations()))
    scene.network.run(lambda: bool(scene.seen(Outputs, EVIL.down_outputs)))
    outputs = scene.seen(Outputs, EVIL.down_outputs)[0]
    assert isinstance(outputs, Outputs)
    scene.stranger.say(EVIL.up_gradients("w0"), OutputGradients(lease, 0, outputs.version, gradients))
    scene.finish()
    assert scene.refused("content") == 1
    assert [len(scene.worker.session.ledger.of(f"site/{index}")) for index in range(2)] == [12, 12]
    assert all(torch.isfinite(weights).all() for weights in scene.worker.built.encoder.parameters())


def test_agent_that_uses_more_credits_than_it_has_is_held_to_them() -> None:
    scene = Scene()
    scene.to_window(2)
    scene.stranger.say(EVIL_INBOX, hello(scene, EVIL.root, num_samples=400))
    scene.network.run(lambda: bool(scene.seen(Welcome, EVIL.down_control)))
    lease = scene.lease_of(EVIL.root)
    for step in range(50):
        scene.stranger.say(EVIL.up_activations("w0"), Activations(lease, step, Mode.TRAIN, 2, activations()))
    sent_at = scene.network.clock()
    scene.network.run(lambda: scene.network.clock() > sent_at + 1.0)
    # What it sends beyond its credits takes the place of what it has sent before, and of nobody else's.
    assert [key.step for key in scene.worker.session.live_keys() if key.agent == EVIL.root] == [48, 49]
    scene.finish()
    assert {key for key in scene.worker.counter.committed if "site" in str(key)} == set(
        committed_once({"site/0": 12, "site/1": 12})
    )


def test_flood_of_forged_outputs_is_counted_and_nothing_more() -> None:
    scene = Scene()
    scene.to_window(2)
    for number in range(300):
        tensor = EncodedTensor(f"codec-{number}", (65_536, 1_024), b"")
        scene.stranger.say(SITE.down_outputs, Outputs(NO_SUCH_LEASE, 0, Mode.TRAIN, 0, 0.0, tensor))
    scene.finish()
    assert scene.rejects() == 300
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})


def test_forged_welcome_before_the_agent_is_ready_is_nothing() -> None:
    network = VirtualNetwork(LINK)
    stranger = Client(network)
    agent = network.add_agent("site/0", small_dataset(0, 8))
    network.run(lambda: any(packet.topic == SITE.state for packet in stranger.seen))
    # It says so in a state that everybody may read; the Welcome names it.
    state = parse(next(packet.payload for packet in stranger.seen if packet.topic == SITE.state))
    assert isinstance(state, AgentState)
    online = WorkerState(True, "w0", 0, bytes(32), RunPhase.TRAINING, agents=0, version=0, reason="")
    stranger.say(WorkerTopics("w0").state, online)
    codecs = NegotiatedCodecs("identity", "identity", "identity", "identity")
    ranges = ((0, 1 << 50),)
    stranger.say(SITE.down_control, Welcome("w0", state.incarnation, 5, 2, codecs, ranges, RunPhase.TRAINING, 60.0))
    network.run(lambda: agent.is_leased)
    worker = Worker(network, small_settings(run={"min_agents": 1}))
    run_until_over(network, worker, [agent])
    assert worker.counter.committed == committed_once({"site/0": 4})


def test_state_that_calls_the_worker_gone_is_seen_through() -> None:
    scene = Scene()
    scene.to_window(2)
    state = scene.seen(WorkerState, WorkerTopics("w0").state)[-1]
    assert isinstance(state, WorkerState)
    scene.stranger.say(WorkerTopics("w0").state, replace(state, online=False))
    scene.finish()
    assert scene.worker.counter.committed == committed_once({"site/0": 12, "site/1": 12})


def test_pieces_of_other_weights_are_refused_and_the_right_ones_asked_for_again() -> None:
    network = VirtualNetwork(LINK)
    stranger = Client(network)
    worker = Worker(network, small_settings(run={"min_agents": 1}))
    network.run(lambda: any(packet.topic == RUN for packet in stranger.seen))
    topic = model_chunk(worker.manifest.tokenizers.digest, 0)
    right = worker.built.tokenizer_file
    stranger.say(topic, ModelChunk(0, 1, right[:-4] + b"evil"))
    stranger.transport.publish(topic, serialize(ModelChunk(0, 1, right[:-4] + b"evil")), retain=True)
    agent = network.add_agent("site/0", small_dataset(0, 8))
    joined_at = network.clock()
    network.run(lambda: network.clock() > joined_at + 1.0)
    assert not agent.is_leased
    stranger.transport.publish(topic, serialize(ModelChunk(0, 1, right)), retain=True)
    run_until_over(network, worker, [agent])


def test_manifest_of_nonsense_does_not_end_an_agent() -> None:
    scene = Scene()
    scene.to_window(2)
    for document in (b"", b"{}", b"\xff\xfe", b'{"format": 2}', b"[" * 10_000):
        scene.stranger.say(RUN, RunManifest(document))
    scene.finish()
    assert scene.rejects() == 5


def test_flood_of_goodbyes_under_old_leases_changes_nothing() -> None:
    scene = Scene()
    scene.to_window(2)
    telemetry = scene.agents[0].reporter.telemetry(0.0, num_repeats=0, is_final=True)
    for lease in range(200):
        scene.stranger.say(INBOX, Goodbye(lease, reason="left", telemetry=telemetry))  # type: ignore[arg-type]
    scene.finish()
    assert scene.refused("lease") == 200
