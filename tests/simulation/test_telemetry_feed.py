import time
from collections.abc import Callable

import pytest

from cutlayer.broker.errors import IdentityTaken
from cutlayer.broker.memory import MemoryTransport
from cutlayer.broker.memory_broker import MemoryBroker
from cutlayer.broker.messages import Message, RunManifest, RunPhase, WorkerState, serialize
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics
from cutlayer.simulation.telemetry_feed import TelemetryFeed
from support.synthetic_run import synthetic_manifest, synthetic_telemetry
from support.waiting import until

TELEMETRY = AgentTopics("clinic/00").telemetry
STATE = WorkerTopics("worker-0").state


def worker_state(phase: RunPhase, incarnation: int = 1_000) -> WorkerState:
    return WorkerState(True, "worker-0", incarnation, bytes(32), phase, 2, 7, "")


class Stage:
    """A broker, a feed, and a client that speaks for worker and agents."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(time.monotonic)
        transport = MemoryTransport(self.broker, "demo")
        self.feed = TelemetryFeed(transport, ["clinic/00", "clinic/01"], "worker-0", since_ms=1_000)
        self._speaker = MemoryTransport(self.broker, "speaker")
        self._speaker.connect(None)

    def say(self, topic: str, message: Message, *, retain: bool = False) -> None:
        self.say_bytes(topic, serialize(message), retain=retain)

    def say_bytes(self, topic: str, packet: bytes, *, retain: bool = False) -> None:
        self._speaker.publish(topic, packet, retain=retain)

    def until(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            self._speaker.poll()
            self.feed.pump()
            return condition()

        until(holds, "such state")


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.say(RUN, RunManifest(synthetic_manifest().to_bytes()), retain=True)
    stage.say(STATE, worker_state(RunPhase.TRAINING), retain=True)
    return stage


def test_late_onlooker_learns_run_and_phase_from_what_is_retained(stage: Stage) -> None:
    stage.feed.start()
    status = stage.feed.status
    stage.until(lambda: status.manifest is not None and status.worker is not None)
    assert status.phase is RunPhase.TRAINING
    assert stage.feed.is_connected


def test_state_that_an_earlier_run_has_left_is_not_this_runs(stage: Stage) -> None:
    stage.say(STATE, worker_state(RunPhase.ENDED, incarnation=999), retain=True)
    stage.feed.start()
    stage.until(lambda: stage.feed.status.manifest is not None)
    assert stage.feed.status.phase is None
    stage.say(STATE, worker_state(RunPhase.WAITING, incarnation=1_001), retain=True)
    stage.until(lambda: stage.feed.status.phase is RunPhase.WAITING)


def test_counters_arrive_at_their_agent(stage: Stage) -> None:
    stage.feed.start()
    stage.until(lambda: stage.feed.status.manifest is not None)
    stage.say(TELEMETRY, synthetic_telemetry(3))
    stage.until(lambda: stage.feed.status.agents["clinic/00"].telemetry is not None)
    assert stage.feed.status.agents["clinic/01"].telemetry is None


def test_garbage_is_dropped_and_what_follows_is_read(stage: Stage) -> None:
    stage.feed.start()
    stage.until(lambda: stage.feed.status.manifest is not None)
    stage.say_bytes(TELEMETRY, b"\xc1 no message")
    stage.say(RUN, RunManifest(b"{}"))
    stage.say(TELEMETRY, synthetic_telemetry(3))
    stage.until(lambda: stage.feed.status.agents["clinic/00"].telemetry is not None)


def test_connection_that_is_lost_is_noticed_and_comes_back(stage: Stage) -> None:
    stage.feed.start()
    stage.until(lambda: stage.feed.is_connected)
    stage.broker.stop()
    stage.until(lambda: not stage.feed.is_connected)
    assert stage.feed.problem
    stage.broker.start()
    stage.until(lambda: stage.feed.is_connected)


def test_onlooker_whose_identity_is_taken_says_so(stage: Stage) -> None:
    stage.feed.start()
    stage.until(lambda: stage.feed.is_connected)
    MemoryTransport(stage.broker, "demo").connect(None)
    with pytest.raises(IdentityTaken):
        stage.until(lambda: False)
