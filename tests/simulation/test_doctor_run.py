from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import ModelChunk, RunManifest, RunPhase, WorkerState, serialize
from cutlayer.broker.model_chunks import cut_model, describe_model
from cutlayer.broker.probe import RoundTrip
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics, model_chunk
from cutlayer.simulation.doctor_client import Answer
from cutlayer.simulation.doctor_report import Verdict
from cutlayer.simulation.doctor_run import check_clock, check_manifest, check_weights, check_workers
from cutlayer.simulation.doctor_scene import Scene, WorkerProof
from support.brokers import mqtt_client, running_broker, unique
from support.doctor_visits import AGENT, visit, worker_online
from support.synthetic_run import synthetic_manifest

pytestmark = pytest.mark.judges_by_silence

WEIGHTS = bytes(range(256)) * 1_000
MANIFEST = synthetic_manifest().model_copy(update={"tokenizers": describe_model(WEIGHTS)})
W0 = WorkerState(True, "w0", 1_000, bytes.fromhex(MANIFEST.digest()), RunPhase.TRAINING, 3, 17, "")


def scene(manifest: Manifest | None = MANIFEST, *workers: WorkerState) -> Scene:
    return Scene(AgentTopics(AGENT), manifest=manifest, workers={state.worker: state for state in workers})


@contextmanager
def retaining(*messages: tuple[str, bytes]) -> Iterator[str]:
    """Run a broker that keeps some messages."""
    with running_broker("amqtt") as broker, mqtt_client(broker.url, unique("keeper")) as keeper:
        keeper.connect()
        for topic, payload in messages:
            keeper.transport.publish(topic, payload, retain=True)
        keeper.delivered()
        yield broker.url


def pieces(weights: bytes) -> list[tuple[str, bytes]]:
    return [(model_chunk(MANIFEST.tokenizers.digest, chunk.index), serialize(chunk)) for chunk in cut_model(weights)]


ANNOUNCED = (RUN, serialize(RunManifest(MANIFEST.to_bytes())))
ONLINE = (WorkerTopics("w0").state, serialize(W0))


# Whole visits --------------------------------------------------------------------------------------------------


def test_a_visit_to_a_run_with_a_worker_finds_everything() -> None:
    with running_broker("amqtt") as broker, worker_online(broker.url):
        seen = visit(broker.url)
    assert {finding.verdict for finding in seen.findings} == {Verdict.OK}
    assert seen.one("workers").values["online"] == ["w0"]
    clock = seen.one("clock").values
    assert abs(clock["ahead_s"]) <= clock["uncertainty_s"]  # type: ignore[operator, arg-type]
    assert "worker_median_s" in seen.one("round-trip").values
    assert "32 samples" in seen.one("up").fact
    assert "the model's" in seen.one("down").fact


def test_a_broker_without_a_run_is_warned_of_and_no_failure() -> None:
    with running_broker("amqtt") as broker:
        seen = visit(broker.url)
    assert not seen.checks(Verdict.PROBLEM)
    assert seen.one("manifest").verdict is seen.one("workers").verdict is Verdict.WARNING
    assert "server-worker start" in seen.one("manifest").fix
    assert seen.checks(Verdict.SKIPPED) == ["clock", "weights"]
    assert "no run is there" in seen.one("up").fact


def test_without_a_topic_the_run_is_looked_at_and_the_rest_skipped() -> None:
    with retaining(ANNOUNCED, *pieces(WEIGHTS)) as url:
        seen = visit(url, topic=None)
    assert seen.one("manifest").verdict is seen.one("weights").verdict is Verdict.OK
    assert seen.checks(Verdict.SKIPPED) == ["rights", "packets", "round-trip", "up", "down", "clock"]
    assert "--topic" in seen.one("rights").fact


def test_a_worker_that_says_it_is_online_and_does_not_answer_is_warned_of() -> None:
    with retaining(ANNOUNCED, ONLINE, *pieces(WEIGHTS)) as url:
        seen = visit(url, timeout_s=0.5)
    assert seen.right(f"read {AGENT}/down/#").verdict is Verdict.OK  # proven without it: this broker has no ACL
    assert seen.one("clock").verdict is Verdict.SKIPPED
    assert seen.one("workers").verdict is Verdict.WARNING
    assert "w0 did not answer" in seen.one("workers").fact


def test_a_piece_that_is_missing_and_one_that_is_another_are_told() -> None:
    whole = pieces(WEIGHTS)
    with retaining(ANNOUNCED, ONLINE, *whole[:-1]) as url:
        missing = visit(url, topic=None).one("weights")
    assert (missing.verdict, missing.exit_code) == (Verdict.PROBLEM, 4)
    assert f"{len(whole) - 1} of {len(whole)} pieces" in missing.fact
    with retaining(ANNOUNCED, *pieces(WEIGHTS[1:] + b"x")) as url:
        other = visit(url, topic=None).one("weights")
    assert other.verdict is Verdict.PROBLEM
    assert "digest" in other.fact


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\x93\x02\x10\xc4\x00", "protocol version 2, this program speaks 1"),
        (serialize(RunManifest(b"{}")), "run_id"),
        (b"\xff\x00", "MessagePack"),
        (serialize(ModelChunk(0, 1, b"")), "ModelChunk"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_a_problem_of_the_run(payload: bytes, says: str) -> None:
    with retaining((RUN, payload)) as url:
        finding = visit(url, topic=None).one("manifest")
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 4)
    assert says in finding.fact
    assert "same release" in finding.fix


def test_a_worker_of_another_release_is_a_problem_of_the_run() -> None:
    with retaining((WorkerTopics("w0").state, b"\x93\x02\x0f\xc3")) as url:
        finding = visit(url, topic=None).one("workers")
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 4)
    assert "protocol version 2" in finding.fact


# Judgements ----------------------------------------------------------------------------------------------------


def test_a_worker_that_serves_another_run_than_the_announced_is_a_problem() -> None:
    finding = check_manifest(scene(MANIFEST, replace(W0, manifest_digest=bytes(32))))
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 4)
    assert "w0 serves another run" in finding.fact
    assert check_manifest(scene(MANIFEST, W0)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("state", "verdict", "says"),
    [
        (W0, Verdict.OK, "w0 is training with 3 agents"),
        (replace(W0, is_draining=True), Verdict.WARNING, "none takes anything new"),
        (replace(W0, phase=RunPhase.ENDED), Verdict.WARNING, "w0 is ended"),
        (replace(W0, online=False), Verdict.WARNING, "none is online, 1 known"),
        (
            replace(W0, online=False, phase=RunPhase.ENDED, reason="all have done their epochs"),
            Verdict.WARNING,
            "the last run has ended: all have done their epochs",
        ),
    ],
)
def test_what_workers_say_of_themselves_is_told(state: WorkerState, verdict: Verdict, says: str) -> None:
    finding = check_workers(scene(MANIFEST, state))
    assert finding.verdict is verdict
    assert says in finding.fact
    assert bool(finding.fix) is (verdict is Verdict.WARNING)


def test_missing_weights_are_a_warning_while_no_worker_is_there_to_publish_them() -> None:
    assert check_weights(scene(MANIFEST)).verdict is Verdict.WARNING
    assert check_weights(scene(None)).verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "says"),
    [
        (0.1, Verdict.OK, "w0's is 100 ms ahead, give or take 10 ms"),
        (-4.0, Verdict.OK, "4 s behind"),
        (-7_200.0, Verdict.WARNING, "7,200 s behind"),
        (60.0, Verdict.WARNING, "60 s ahead"),
    ],
)
def test_clocks_that_are_far_apart_are_warned_of(ahead_s: float, verdict: Verdict, says: str) -> None:
    probed = scene(MANIFEST, W0)
    probed.proofs["w0"] = WorkerProof(Answer(0, "success"), [RoundTrip(1e9, 1e9 + 0.01 + ahead_s, 0.02)])
    finding = check_clock(probed)
    assert finding.verdict is verdict
    assert says in finding.fact


def test_a_long_round_trip_leaves_the_clocks_undecided_rather_than_apart() -> None:
    probed = scene(MANIFEST, W0)
    probed.proofs["w0"] = WorkerProof(Answer(0, "success"), [RoundTrip(1e9, 1e9 + 8.0, 30.0)])
    assert check_clock(probed).verdict is Verdict.OK
