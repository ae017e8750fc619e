"""Which run and which workers an agent goes by, against a worker that says what a test tells it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cutlayer.broker.errors import ManifestUnsatisfiable, Rejected, RunError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    Activations,
    Hello,
    Reject,
    RejectReason,
    RunManifest,
    RunPhase,
    Welcome,
    WorkerState,
)
from cutlayer.broker.topics import RUN, WorkerTopics
from support.agent_scene import EXACT, LEASE, TOPICS, WORKER, Scene, hellos
from support.small_side import small_manifest


def classes(*names: str) -> Manifest:
    manifest = small_manifest()
    return manifest.model_copy(update={"task": manifest.task.model_copy(update={"classes": names})})


def test_run_that_the_data_do_not_fit_is_refused() -> None:
    scene = Scene(manifest=classes("cat", "dog"))
    scene.announce()
    with pytest.raises(ManifestUnsatisfiable, match="its classes are cat, dog"):
        scene.settle()
    assert not scene.all(Hello)


def test_run_that_a_killed_worker_left_behind_is_waited_out_also_where_the_data_do_not_fit_it() -> None:
    scene, left = Scene(), classes("cat", "dog")
    scene.retain(RUN, RunManifest(left.to_bytes()))
    digest = bytes.fromhex(left.digest())
    scene.retain(WORKER.state, WorkerState(False, "w0", 0, digest, RunPhase.TRAINING, agents=0, version=0, reason=""))
    scene.settle()
    assert not scene.all(Hello)
    scene.announce()
    assert isinstance(scene.until(Hello), Hello)


def test_refusal_of_a_worker_ends_the_agent_with_its_reason() -> None:
    scene = Scene()
    scene.announce()
    hello = scene.until(Hello)
    assert isinstance(hello, Hello)
    with pytest.raises(Rejected, match="no such codec") as caught:
        scene.say(TOPICS.down_control, Reject("w0", hello.incarnation, RejectReason.CODEC, "no such codec"))
    assert caught.value.exit_code == 4


def test_other_run_before_the_first_lease_takes_the_place_of_the_first() -> None:
    scene = Scene()
    scene.announce()
    scene.until(Hello)
    other = small_manifest(run_id="other-1")
    scene.announce(other)
    scene.network.run(lambda: bytes.fromhex(other.digest()) in {hello.manifest_digest for hello in hellos(scene)})


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
