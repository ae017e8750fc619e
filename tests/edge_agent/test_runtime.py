"""The agent's driver, over the in-memory broker, against a worker that says what a test tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from cutlayer.broker.errors import BrokerUnreachable, CutlayerError, IdentityTaken, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import (
    Activations,
    AgentState,
    Goodbye,
    GoodbyeReason,
    Hello,
    OutputGradients,
    Phase,
    RunManifest,
    RunPhase,
    Telemetry,
    TrainingDone,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.topics import RUN
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.simulation.virtual import VirtualNetwork
from support.agent_scene import LEASE, TOPICS, WORKER, Scene, hellos
from support.small_run import small_dataset
from support.small_side import small_manifest
from support.waiting import ends, until


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
    manifest = small_manifest()
    scene.observer.publish(RUN, serialize(RunManifest(manifest.to_bytes())), retain=True)
    digest = bytes.fromhex(manifest.digest())
    serving = WorkerState(True, "w0", 1, digest, RunPhase.TRAINING, agents=0, version=0, reason="")
    scene.observer.publish(WORKER.state, serialize(serving), retain=True)
    assert ends(scene.thread.join)
    scene.until(lambda: scene.online() is False)
    assert isinstance(scene.error, SettingsError)
