"""The doctor's stopwatch: round trips of small messages, and how long what a microbatch sends takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import JsonValue

from cutlayer.broker.chunking import split
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Activations, Mode, serialize
from cutlayer.broker.mqtt_packets import largest_payload
from cutlayer.broker.tensors import encode_tensor
from cutlayer.broker.topics import model_chunks
from cutlayer.simulation.doctor_client import DoctorClient
from cutlayer.simulation.doctor_report import Finding, found, seconds, skipped, warning
from cutlayer.simulation.doctor_scene import Scene

__all__ = ["Sample", "check_down", "check_round_trip", "check_up", "make_sample"]

SMALL_BYTES: Final = 64
NUM_ROUND_TRIPS: Final = 40
LONG_ROUND_TRIP_S: Final = 0.5
DEFAULT_BYTES: Final = 500_000
"""What is sent where no run says how large a microbatch is."""
MOST_BYTES: Final = 8_000_000
MEASURE_S: Final = 1.0
LONG_MICROBATCH_S: Final = 10.0
LARGEST_ARRAY: Final = 4_000_000
"""Numbers that are encoded at most to learn a microbatch's size; beyond that a part of it is, and multiplied."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What goes up for one microbatch.

    Attributes:
        message: As many bytes as it has, or fewer where it is very large.
        microbatch_bytes: Its size.
        description: What it stands for.
    """

    message: bytes
    microbatch_bytes: int
    description: str


def make_sample(manifest: Manifest | None) -> Sample:
    """Make a message as large as a microbatch of the run, of random activations; of a stated size without a run."""
    if manifest is None:
        message = np.random.default_rng(0).bytes(DEFAULT_BYTES)
        return Sample(message, DEFAULT_BYTES, f"{DEFAULT_BYTES:,} B, as no run is there that says more,")
    num_tokens = sum(spec.num_tokens for spec in manifest.modalities.values())
    numbers = num_tokens * manifest.width
    samples = min(manifest.microbatch_samples, max(1, LARGEST_ARRAY // numbers))
    rng = np.random.default_rng(0)
    tensors = tuple(
        (
            name,
            encode_tensor(
                manifest.codecs.activations,
                rng.standard_normal((samples, spec.num_tokens, manifest.width), dtype=np.float32),
            ),
        )
        for name, spec in sorted(manifest.modalities.items())
    )
    message = serialize(Activations(0, 0, Mode.TRAIN, samples, tensors))
    whole = len(message) * manifest.microbatch_samples // samples
    what = f"a microbatch of {manifest.microbatch_samples} samples ({whole:,} B as {manifest.codecs.activations})"
    return Sample(message, whole, what)


def check_round_trip(client: DoctorClient, scene: Scene, quiet_topic: str) -> Finding:
    """Time small messages: to the broker and back (PUBACK), and to a worker and back where one answers."""
    times_s: list[float] = []
    for _ in range(NUM_ROUND_TRIPS):
        started_s = time.perf_counter()
        answer = client.publish(quiet_topic, bytes(SMALL_BYTES)) if client.ensure_open() else None
        if answer is None or answer.code is None:
            return skipped("round-trip", f"small messages are not acknowledged: {client.end or 'no answer'}")
        times_s.append(time.perf_counter() - started_s)
    median_s = statistics.median(times_s)
    values: dict[str, JsonValue] = {"broker_median_s": median_s, "broker_p95_s": _p95(times_s)}
    fact = f"to the broker and back: {_spread(times_s)}"
    for name, proof in scene.proofs.items():
        if proof.round_trips:
            worker_s = [trip.round_trip_s for trip in proof.round_trips]
            values |= {"worker_median_s": statistics.median(worker_s), "worker_p95_s": _p95(worker_s)}
            fact += f"; to worker {name}: {_spread(worker_s)}"
            break
    if median_s > LONG_ROUND_TRIP_S:
        fix = "each training step waits for two of these: use a nearer broker, or larger microbatches"
        return warning("round-trip", fact, fix, values)
    return found("round-trip", fact, values)


def check_up(client: DoctorClient, sample: Sample, quiet_topic: str, max_packet_bytes: int) -> Finding:
    """Time what a microbatch sends, again and again for a while."""
    packets = list(split(sample.message, largest_payload(quiet_topic, max_packet_bytes)))
    patience_s = 4 * client.timeout_s
    sent_bytes = acknowledged_bytes = 0
    started_s = time.perf_counter()
    while True:
        if not client.ensure_open():
            return skipped("up", f"the connection ended: {client.end}")
        sent_bytes += sum(map(len, packets))
        acknowledged_bytes += client.publish_all(quiet_topic, packets, patience_s)
        duration_s = time.perf_counter() - started_s
        if duration_s > MEASURE_S or sent_bytes >= MOST_BYTES or acknowledged_bytes < sent_bytes:
            break
    if not client.is_open:
        fix = "see the line `packets`; else look into the broker's log"
        return warning("up", f"the broker ended the connection after {acknowledged_bytes:,} B: {client.end}", fix)
    if acknowledged_bytes < sent_bytes:
        client.close()  # what is still on its way would be in the way of the next check
    rate = acknowledged_bytes / duration_s
    if not rate:
        fix = f"try --timeout {2 * client.timeout_s:g}; the link may be too slow for this run"
        return warning("up", f"nothing of {sent_bytes:,} B was acknowledged within {patience_s:g} s", fix)
    microbatch_s = sample.microbatch_bytes / rate
    fact = f"{_rate(rate)}: {sample.description} in {seconds(microbatch_s)}"
    values: dict[str, JsonValue] = {
        "bytes_per_s": rate,
        "microbatch_bytes": sample.microbatch_bytes,
        "microbatch_s": microbatch_s,
    }
    if microbatch_s > LONG_MICROBATCH_S:
        fix = "choose fewer run.microbatch_samples or a stronger codec for this run, or a faster link"
        return warning("up", fact, fix, values)
    return found("up", fact, values)


def check_down(client: DoctorClient, scene: Scene, echo_topic: str | None, max_packet_bytes: int) -> Finding:
    """Time what comes down: the run's model, or our own messages where the broker sends them back.

    Args:
        client: An open connection.
        scene: What is there.
        echo_topic: A topic that nobody else listens to and that this user may publish on and read; None if none.
        max_packet_bytes: The packet limit.
    """
    if scene.is_model_whole and scene.manifest is not None:
        return _time_model(client, scene, model_chunks(scene.manifest.tokenizers.digest))
    if echo_topic is None:
        return skipped("down", "nothing comes down while no run is there; start one and run the doctor again")
    if not client.ensure_open():
        return skipped("down", f"the connection ended: {client.end}")
    payload = bytes(min(DEFAULT_BYTES, largest_payload(echo_topic, max_packet_bytes)))
    client.subscribe(echo_topic)
    client.take(echo_topic)
    started_s = time.perf_counter()
    client.publish(echo_topic, payload)
    came = client.pump(lambda: any(heard.topic == echo_topic for heard in client.heard), 4 * client.timeout_s)
    duration_s = time.perf_counter() - started_s
    client.take(echo_topic)
    client.unsubscribe(echo_topic)
    if not came:
        return warning("down", f"{len(payload):,} B do not come back", "look into the broker's log and its limits")
    rate = len(payload) / duration_s
    fact = f"{_rate(rate)} at least ({len(payload):,} B up and down again in {seconds(duration_s)})"
    return found("down", fact, {"bytes_per_s": rate, "num_bytes": len(payload)})


def _time_model(client: DoctorClient, scene: Scene, topic_filter: str) -> Finding:
    """Read the model again and again for a while: a small one's first reading is mostly the round trip."""
    prefix = topic_filter.removesuffix("+")
    num_bytes, duration_s, times = scene.model_bytes, scene.model_s, 1
    while duration_s < MEASURE_S / 2 and num_bytes < MOST_BYTES and times < 20 and client.ensure_open():
        started_s = time.perf_counter()
        client.heard.clear()
        client.subscribe(topic_filter)
        came = client.pump(lambda: sum(heard.topic.startswith(prefix) for heard in client.heard) >= scene.num_pieces)
        if not came:
            break
        num_bytes += sum(len(heard.payload) for heard in client.heard if heard.topic.startswith(prefix))
        duration_s += time.perf_counter() - started_s
        times += 1
    client.unsubscribe(topic_filter)
    client.heard.clear()
    rate = num_bytes / max(duration_s, 1e-9)
    fact = f"{_rate(rate)}; the model's {scene.model_bytes:,} B came {times} times in {seconds(duration_s)}"
    return found("down", fact, {"bytes_per_s": rate, "num_bytes": num_bytes})


def _p95(times_s: Sequence[float]) -> float:
    return sorted(times_s)[math.ceil(0.95 * len(times_s)) - 1]


def _spread(times_s: Sequence[float]) -> str:
    return f"median {seconds(statistics.median(times_s))}, p95 {seconds(_p95(times_s))} of {len(times_s)}"


def _rate(bytes_per_s: float) -> str:
    if bytes_per_s >= 1e8:
        return f"{bytes_per_s / 1e6:,.0f} MB/s"
    return f"{bytes_per_s / 1e6:.3g} MB/s" if bytes_per_s >= 1e5 else f"{bytes_per_s / 1e3:.3g} kB/s"
