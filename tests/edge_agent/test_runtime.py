"""The agent's driver, over the in-memory broker, against a worker that says what a test tells it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.errors import (
    BrokerUnreachable,
    CutlayerError,
    IdentityTaken,
    ManifestUnsatisfiable,
    Rejected,
    RunError,
    SettingsError,
)
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    AgentState,
    EncodedTensor,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    NegotiatedCodecs,
    OutputGradients,
    Outputs,
    Phase,
    Reject,
    RejectReason,
    RunManifest,
    RunPhase,
    Telemetry,
    TrainingDone,
    Welcome,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics, model_chunk
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.runtime import AgentOptions, AgentRuntime
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset
from support.small_side import small_manifest, tokenizer_file
from support.virtual_run import Client
from support.waiting import ends, until

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


def test_agent_does_its_part_and_says_goodbye() -> None:
    scene = Scene()
    scene.enter()
    for step in range(4):
        scene.answer(scene.until(Activations, step + 1))
        gradients = scene.until(OutputGradients, step + 1)
        assert isinstance(gradients, OutputGradients)
        assert (gradients.step, gradients.gradients.shape) == (step, (4, 3))
        scene.commit(step)
    scene.until(TrainingDone)
    scene.say(TOPICS.down_control, Phase(LEASE, RunPhase.EVALUATING, ""))
    for number in range(3):  # given both modalities, and each alone
        activations = scene.until(Activations, 5 + number)
        assert isinstance(activations, Activations)
        assert (activations.mode, len(activations.tensors)) == ("eval", 2 if number == 0 else 1)
        scene.answer(activations)
    goodbye = scene.until(Goodbye)
    assert isinstance(goodbye, Goodbye)
    assert (goodbye.reason, goodbye.telemetry.final, goodbye.telemetry.samples) == (GoodbyeReason.COMPLETED, True, 16)
    scene.say(TOPICS.down_control, Phase(LEASE, RunPhase.ENDED, "goodbye"))
    assert scene.is_finished()
    assert scene.online() is False


def test_steps_that_a_worker_has_lost_are_done_again_in_order() -> None:
    scene = Scene()
    scene.enter()
    for step in range(2):
        scene.answer(scene.until(Activations, step + 1))
        scene.until(OutputGradients, step + 1)
        scene.commit(step)
    assert trained(scene) == [0, 1, 2]
    scene.tell_ledger((0, 1))
    assert trained(scene) == [0, 1, 2], "the worker may not have heard of the commit yet"
    scene.ask_again()
    scene.tell_ledger((0, 1))
    assert trained(scene) == [0, 1, 2, 1]
    scene.commit(1)
    assert trained(scene) == [0, 1, 2, 1, 2]


def test_a_worker_that_hears_late_of_a_commit_has_lost_nothing() -> None:
    scene = Scene()
    scene.enter()
    for step in range(2):
        scene.answer(scene.until(Activations, step + 1))
        scene.commit(step)
    scene.tell_ledger((0, 1))
    scene.ask_again()
    scene.tell_ledger((0, 2))
    scene.commit(2)
    assert trained(scene) == [0, 1, 2, 3]


def test_training_is_told_done_anew_when_a_worker_lacked_a_step() -> None:
    scene = Scene()
    scene.enter()
    for step in range(4):
        scene.answer(scene.until(Activations, step + 1))
        scene.commit(step)
    scene.until(TrainingDone)
    scene.tell_ledger((0, 3))
    scene.ask_again()
    scene.tell_ledger((0, 3))
    assert trained(scene) == [0, 1, 2, 3, 3]
    num_told = len(scene.all(TrainingDone))
    scene.commit(3)
    scene.until(TrainingDone, num_told + 1)


def trained(scene: Scene) -> list[int]:
    """Return the steps whose activations have gone up, but copies that were sent by the clock."""
    scene.settle()
    return [message.step for message in scene.all(Activations) if isinstance(message, Activations)]


def test_agent_reports_while_it_works() -> None:
    scene = Scene()
    scene.enter()
    first, second = scene.until(Telemetry), scene.until(Telemetry, 2)
    assert isinstance(first, Telemetry)
    assert isinstance(second, Telemetry)
    assert (first.sequence, second.sequence) == (1, 2)


def test_agent_says_that_it_is_there_and_its_will_that_it_is_not() -> None:
    scene = Scene()
    scene.until(AgentState)
    assert scene.online()
    scene.network.kill(TOPICS.root)
    scene.settle()
    assert scene.online() is False


def test_agent_that_is_asked_to_leave_before_it_was_served_leaves_at_once() -> None:
    scene = Scene()
    scene.announce()
    scene.until(Hello)
    scene.agent.leave(GoodbyeReason.LEFT, scene.network.clock())
    assert scene.is_finished()
    scene.settle()
    assert scene.online() is False
    assert not scene.all(Goodbye)


def test_agent_that_is_asked_to_leave_waits_for_the_answer() -> None:
    scene = Scene()
    scene.enter()
    scene.agent.leave(GoodbyeReason.LEFT, scene.network.clock())
    goodbye = scene.until(Goodbye)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.reason is GoodbyeReason.LEFT
    assert not scene.is_finished()
    num_activations = len(scene.all(Activations))
    scene.say(TOPICS.down_control, Phase(LEASE, RunPhase.ENDED, "goodbye"))
    assert scene.is_finished()
    assert len(scene.all(Activations)) == num_activations


def test_goodbye_that_nobody_answers_is_said_a_few_times() -> None:
    scene = Scene()
    scene.enter()
    scene.agent.leave(GoodbyeReason.LEFT, scene.network.clock())
    scene.network.run(scene.is_finished, max_virtual_s=120.0)
    assert 1 < len(scene.all(Goodbye)) < 10


def test_agent_leaves_although_its_worker_is_gone() -> None:
    scene = Scene()
    scene.enter()
    digest = bytes.fromhex(scene.manifest.digest())
    gone = WorkerState(False, "w0", 1, digest, RunPhase.TRAINING, agents=0, version=0, reason="")
    scene.say(WORKER.state, gone)
    assert not scene.agent.is_leased
    scene.agent.leave(GoodbyeReason.LEFT, scene.network.clock())
    scene.network.run(scene.is_finished, max_virtual_s=10.0)


def test_no_broker_is_an_error_that_names_it_and_what_it_said() -> None:
    now = [0.0]
    broker = MemoryBroker(lambda: now[0])
    broker.stop()
    agent = AgentRuntime(
        MemoryTransport(broker, "agent"),
        TOPICS.root,
        1,
        lambda _: small_dataset(0),
        url="mqtt://hub:1883",
        options=AgentOptions(connect_timeout_s=5.0),
        clock=lambda: now[0],
    )
    agent.start()
    for now[0] in (0.5, 1.5, 4.9):
        agent.pump(now[0])
    now[0] = 5.1
    with pytest.raises(BrokerUnreachable, match=r"mqtt://hub:1883: no connection within 5 s \(.*refused\)\n.*--broker"):
        agent.pump(now[0])


def test_agent_is_not_busy_while_the_broker_is_away() -> None:
    scene = Scene()
    scene.enter()
    scene.until(Activations)
    scene.network.broker.stop()
    gone_at = scene.network.clock()
    num_pumps = 0

    def count() -> bool:
        nonlocal num_pumps
        num_pumps += 1
        return scene.network.clock() > gone_at + 100.0

    scene.network.run(count)
    assert num_pumps < 500


def add_second(scene: Scene) -> AgentRuntime:
    """Start a second process of the agent's topic, with a client identifier of its own."""
    network = scene.network
    transport = network.transport("second")
    second = AgentRuntime(
        transport, TOPICS.root, network.next_incarnation(), lambda _: small_dataset(0, 8, 4), clock=network.clock
    )
    network.add("second", second, transport, lambda: second.is_finished)
    return second


def test_second_agent_of_the_same_topic_ends_and_the_first_goes_on() -> None:
    scene = Scene()
    scene.enter()
    scene.network.run(lambda: scene.network.clock() > 5.0)
    second = add_second(scene)
    with pytest.raises(IdentityTaken, match="clinic/07") as caught:
        scene.network.run(lambda: False, max_virtual_s=30.0)
    assert caught.value.exit_code == 5
    assert len({hello.incarnation for hello in hellos(scene)}) == 1, (
        "it is told before it asks for the first one's lease"
    )
    second._transport.close(graceful=True)
    scene.network.kill("second")
    scene.network.run(lambda: scene.network.clock() > 20.0)
    assert scene.online() is True
    scene.answer(scene.until(Activations))
    scene.until(OutputGradients)


def test_agent_that_was_killed_is_started_again_at_once_although_its_will_comes_late() -> None:
    scene = Scene()
    scene.enter()
    offline = AgentState(online=False, incarnation=scene.agent._incarnation)
    scene.network.run(lambda: scene.network.clock() > 5.0)
    scene.network.kill(TOPICS.root)
    scene.network.add_agent(TOPICS.root, small_dataset(0, 8, 4))
    scene.until(Hello, len(scene.all(Hello)) + 1)
    scene.retain(TOPICS.state, offline)
    scene.network.run(lambda: scene.network.clock() > 30.0)
    assert scene.online() is True


def test_agent_that_finds_its_topic_offline_while_it_is_there_says_so() -> None:
    scene = Scene()
    scene.enter()
    scene.retain(TOPICS.state, AgentState(online=False, incarnation=scene.agent._incarnation))
    scene.settle()
    scene.network.run(lambda: scene.online() is True, max_virtual_s=5.0)


def test_agent_whose_clock_was_put_back_is_not_taken_for_the_older_of_two() -> None:
    network = VirtualNetwork()
    for _ in range(2):
        network.next_incarnation()
    network.add_agent(TOPICS.root, small_dataset(0))
    network.run(lambda: TOPICS.state in network.broker.retained)
    network.kill(TOPICS.root)
    network._incarnation = 0
    network.add_agent(TOPICS.root, small_dataset(0))
    started_at = network.clock()
    network.run(lambda: network.clock() > started_at + 10.0)


def classes(*names: str) -> Manifest:
    manifest = small_manifest()
    return manifest.model_copy(update={"task": manifest.task.model_copy(update={"classes": names})})


def test_run_that_the_data_do_not_fit_is_refused() -> None:
    scene = Scene(manifest=classes("cat", "dog"))
    scene.announce()
    with pytest.raises(ManifestUnsatisfiable, match="its classes are cat, dog"):
        scene.settle()
    assert not scene.all(Hello)


def test_refusal_of_a_worker_ends_the_agent_with_its_reason() -> None:
    scene = Scene()
    scene.announce()
    hello = scene.until(Hello)
    assert isinstance(hello, Hello)
    with pytest.raises(Rejected, match="no such codec") as caught:
        scene.say(TOPICS.down_control, Reject("w0", hello.incarnation, RejectReason.CODEC, "no such codec"))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "outputs",
    [EncodedTensor("identity", (4, 4), bytes(64)), EncodedTensor("identity", (4, 3), bytes(4_800))],
    ids=["another shape", "too many bytes"],
)
def test_outputs_that_cannot_be_used_end_the_agent(outputs: EncodedTensor) -> None:
    scene = Scene()
    scene.enter()
    with pytest.raises(RunError, match="outputs cannot be used") as caught:
        scene.answer(scene.until(Activations), outputs=outputs)
    assert caught.value.exit_code == 4


def test_other_run_before_the_first_lease_takes_the_place_of_the_first() -> None:
    scene = Scene()
    scene.announce()
    scene.until(Hello)
    other = small_manifest(run_id="other-1")
    scene.announce(other)
    scene.network.run(lambda: bytes.fromhex(other.digest()) in {hello.manifest_digest for hello in hellos(scene)})


def hellos(scene: Scene) -> list[Hello]:
    return [message for message in scene.all(Hello) if isinstance(message, Hello)]


def test_other_run_after_the_first_lease_ends_the_agent() -> None:
    scene = Scene()
    scene.enter()
    scene.retain(RUN, RunManifest(small_manifest(run_id="other-1").to_bytes()))
    with pytest.raises(RunError, match=r"another run \(other-1\) has taken the place of small-0"):
        scene.settle()


def test_same_manifest_again_is_no_news() -> None:
    scene = Scene()
    scene.enter()
    scene.announce()
    scene.settle()
    assert scene.agent.is_leased


def test_agent_that_waits_asks_again_ever_more_rarely() -> None:
    scene = Scene()
    asked = []
    subscribe = scene.network._members[TOPICS.root].transport.subscribe

    def note(topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        asked.append((scene.network.clock(), topic_filter))
        subscribe(topic_filter, qos=qos, is_optional=is_optional)

    scene.network._members[TOPICS.root].transport.subscribe = note  # type: ignore[method-assign]
    scene.settle()
    scene.network.run(lambda: scene.network.clock() > 600.0)
    times = [time_s for time_s, topic_filter in asked if topic_filter == RUN][1:]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] <= 5.0
    assert gaps == sorted(gaps)
    assert 30.0 <= gaps[-1] <= 120.0


def test_agent_that_is_served_asks_no_more() -> None:
    scene = Scene()
    scene.enter()
    wire = scene.network._members[TOPICS.root].transport.wire
    served_until = scene.network.clock() + 100.0
    scene.network.run(lambda: scene.network.clock() > served_until)
    received = scene.network._members[TOPICS.root].transport.wire.received_packets - wire.received_packets
    assert received == 0, "a broker would send manifest and states with each SUBSCRIBE"


def test_agent_that_loses_one_of_two_workers_goes_on_with_the_other_and_does_not_wait_for_a_run() -> None:
    scene = Scene()
    scene.enter()
    digest = bytes.fromhex(scene.manifest.digest())
    second = WorkerState(True, "w1", 1, digest, RunPhase.TRAINING, agents=0, version=0, reason="")
    scene.retain(WorkerTopics("w1").state, second)
    incarnation = hellos(scene)[0].incarnation
    scene.until(Hello, 2)
    scene.say(TOPICS.down_control, Welcome("w1", incarnation, LEASE + 1, 1, EXACT, (), RunPhase.TRAINING, 30.0))
    scene.retain(WORKER.state, replace(second, online=False, worker="w0"))
    num_activations = len(scene.all(Activations))
    scene.until(Hello, 3)
    assert scene.agent.is_leased
    assert scene.agent._enrolment.due_at is None
    activations = scene.all(Activations)[num_activations:]
    assert [message.lease for message in activations if isinstance(message, Activations)] == [LEASE + 1] * len(
        activations
    )


def test_agent_whose_lease_stands_after_another_connection_does_not_wait_for_a_run() -> None:
    scene = Scene()
    scene.enter()
    num_hellos = len(scene.all(Hello))
    scene.network.broker.cut(TOPICS.root)
    hello = scene.until(Hello, num_hellos + 1)
    assert isinstance(hello, Hello)
    scene.say(TOPICS.down_control, Welcome("w0", hello.incarnation, LEASE, 1, EXACT, (), RunPhase.TRAINING, 30.0))
    assert scene.agent._enrolment.due_at is None


class Threads:
    """An agent whose `run` is in a thread, over a memory broker in real time."""

    def __init__(self, open_data: Callable[[Manifest], ArrayDataset]) -> None:
        self.broker = MemoryBroker(time.monotonic)
        self.observer = MemoryTransport(self.broker, "observer")
        self.observer.connect(None)
        self.stop = threading.Event()
        self.error: CutlayerError | None = None
        self.agent = AgentRuntime(MemoryTransport(self.broker, "agent"), TOPICS.root, 1, open_data)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.agent.run(self.stop.is_set)
        except CutlayerError as error:
            self.error = error

    def online(self) -> bool | None:
        packet = self.broker.retained.get(TOPICS.state)
        state = parse(packet.payload) if packet else None
        return state.online if isinstance(state, AgentState) else None

    def until(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            self.observer.poll()
            return condition()

        until(holds, "such state")


def test_stopped_agent_says_that_it_is_gone() -> None:
    scene = Threads(lambda _: small_dataset(0))
    scene.thread.start()
    scene.until(lambda: scene.online() is True)
    scene.stop.set()
    assert ends(scene.thread.join)
    scene.until(lambda: scene.online() is False)
    assert scene.error is None
    assert scene.agent.is_finished


def test_agent_that_fails_leaves_its_will() -> None:
    def broken(_: Manifest) -> ArrayDataset:
        raise SettingsError("the disk is gone", "mount it")

    scene = Threads(broken)
    scene.thread.start()
    scene.until(lambda: scene.online() is True)
    scene.observer.publish(RUN, serialize(RunManifest(small_manifest().to_bytes())), retain=True)
    assert ends(scene.thread.join)
    scene.until(lambda: scene.online() is False)
    assert isinstance(scene.error, SettingsError)
