"""An agent over the in-memory broker, and a worker that says what a test tells it."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    AgentState,
    EncodedTensor,
    Hello,
    Message,
    NegotiatedCodecs,
    Outputs,
    RunManifest,
    RunPhase,
    Welcome,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics, model_chunk
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset
from support.small_side import small_manifest, tokenizer_file
from support.virtual_run import Client

__all__ = ["EXACT", "LEASE", "TOPICS", "WORKER", "Scene", "hellos"]

TOPICS = AgentTopics("clinic/07")
WORKER = WorkerTopics("w0")
LEASE = 41
EXACT = NegotiatedCodecs("identity", "identity", "identity", "identity")


class Scene:
    """One agent with 8 samples in microbatches of 4, and a worker played by the test."""

    def __init__(self, data: ArrayDataset | None = None, manifest: Manifest | None = None) -> None:
        self.network = VirtualNetwork(deadlines=Deadlines(hello_s=1.0, step_s=2.0))
        self.worker = Client(self.network, "worker")
        self.manifest = manifest or small_manifest(every_epochs=0)
        self.agent = self.network.add_agent(TOPICS.root, data or small_dataset(0, 8, 4))

    def retain(self, topic: str, message: Message) -> None:
        self.worker.transport.publish(topic, serialize(message), retain=True)

    def announce(self, manifest: Manifest | None = None) -> None:
        manifest = manifest or self.manifest
        for chunk in cut_model(tokenizer_file()):
            self.retain(model_chunk(manifest.tokenizers.digest, chunk.index), chunk)
        self.retain(RUN, RunManifest(manifest.to_bytes()))
        digest = bytes.fromhex(manifest.digest())
        self.retain(WORKER.state, WorkerState(True, "w0", 1, digest, RunPhase.TRAINING, agents=0, version=0, reason=""))

    def all(self, kind: type[Message]) -> list[Message]:
        messages = [parse(packet.payload) for packet in self.worker.seen if packet.payload]
        return [message for message in messages if isinstance(message, kind)]

    def until(self, kind: type[Message], count: int = 1) -> Message:
        self.network.run(lambda: len(self.all(kind)) >= count, max_virtual_s=60.0)
        return self.all(kind)[count - 1]

    def say(self, topic: str, message: Message) -> None:
        self.worker.say(topic, message)
        self.settle()

    def settle(self) -> None:
        now = self.network.clock()
        self.network.run(lambda: self.network.clock() > now)

    def welcome(self) -> None:
        hello = self.until(Hello)
        assert isinstance(hello, Hello)
        self.say(TOPICS.down_control, Welcome("w0", hello.incarnation, LEASE, 1, EXACT, (), RunPhase.TRAINING, 30.0))

    def enter(self) -> None:
        self.announce()
        self.welcome()

    def answer(self, activations: Message, **changes: object) -> None:
        assert isinstance(activations, Activations)
        zeros = EncodedTensor("identity", (activations.num_samples, 3), bytes(12 * activations.num_samples))
        outputs = Outputs(LEASE, activations.step, activations.mode, 0, 0.0, zeros)
        self.say(TOPICS.down_outputs, replace(outputs, **changes))  # type: ignore[arg-type]

    def commit(self, step: int) -> None:
        self.say(TOPICS.down_gradients, ActivationGradients(LEASE, step, step, 0.0, ()))

    def tell_ledger(self, *committed: tuple[int, int]) -> None:
        """Say Welcome again, under the same lease."""
        hello = hellos(self)[-1]
        welcome = Welcome("w0", hello.incarnation, LEASE, 1, EXACT, committed, RunPhase.TRAINING, 30.0)
        self.say(TOPICS.down_control, welcome)

    def ask_again(self) -> None:
        """Wait until the agent says Hello again."""
        self.until(Hello, len(hellos(self)) + 1)

    def is_finished(self) -> bool:
        return self.agent.is_finished

    def online(self) -> bool | None:
        packet = self.network.broker.retained.get(TOPICS.state)
        state = parse(packet.payload) if packet else None
        return state.online if isinstance(state, AgentState) else None


def hellos(scene: Scene) -> list[Hello]:
    return [message for message in scene.all(Hello) if isinstance(message, Hello)]
