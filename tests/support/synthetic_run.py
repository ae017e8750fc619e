"""A made-up run: its manifest, its agents' counters, and the `run.json` that the real run book makes of them."""

from __future__ import annotations

import json
from typing import Any

from cutlayer.broker.manifest import (
    AudioSpec,
    ClassificationSpec,
    CodecNames,
    ImageSpec,
    Manifest,
    TokenizerWeights,
    WindowSpec,
)
from cutlayer.broker.messages import Direction, Evaluation, MetricSums, StageTime, Telemetry, Traffic
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_json import run_json

NUM_EPOCHS = 8
STEPS_PER_EPOCH = 25
GIVEN = ("audio+image", "audio", "image")
FINAL_ACCURACY = {"audio+image": 0.904, "audio": 0.812, "image": 0.736}


def synthetic_manifest(num_parameters: int = 812_042) -> Manifest:
    """Return the manifest of a made-up digits run."""
    return Manifest(
        run_id="digits-4f1c22aa",
        seed=3,
        epochs=NUM_EPOCHS,
        microbatch_samples=32,
        width=128,
        model="vit_tiny_patch16_224",
        num_parameters=num_parameters,
        modalities={
            "audio": AudioSpec(
                sample_rate_hz=11_025, num_frames=32, hop_samples=220, fft_samples=512, num_mels=32, patch=8
            ),
            "image": ImageSpec(height=8, width=8, channels=1, patch=2),
        },
        fusion="early",
        task=ClassificationSpec(classes=tuple(f"digit {number}" for number in range(10))),
        codecs=CodecNames(),
        window=WindowSpec(),
        tokenizers=TokenizerWeights(digest="0" * 64, num_bytes=8_192, num_chunks=1),
    )


def synthetic_telemetry(
    epoch: int = NUM_EPOCHS, *, incarnation: int = 1_000, sequence: int = 1, slowness: float = 1.0
) -> Telemetry:
    """Return what an agent says after some epochs; the more of them, the better the model."""
    steps = epoch * STEPS_PER_EPOCH
    samples = steps * 32
    raw_bytes = samples * 32 * 128 * 4
    round_trips = LogHistogram()
    for step in range(steps):
        round_trips.add(0.030 * slowness * (1 + step % 10 / 5))
    traffic = (
        Traffic(
            Direction.UP, "Activations", "int8+zstd:3", steps, raw_bytes, raw_bytes * 10 // 41, raw_bytes * 10 // 40
        ),
        Traffic(Direction.UP, "OutputGradients", "fp16", steps, samples * 40, samples * 22, samples * 24),
        Traffic(Direction.UP, "Hello", "", 1, 0, 180, 220),
        Traffic(Direction.DOWN, "Outputs", "fp16", steps, samples * 40, samples * 23, samples * 25),
        Traffic(Direction.DOWN, "ActivationGradients", "", steps, 0, steps * 20, steps * 60),
        Traffic(Direction.DOWN, "ModelChunk", "", 1, 0, 8_200, 8_260),
    )
    evaluations = [_evaluation(done, GIVEN[0], _accuracy_after(done), final=False) for done in range(1, epoch + 1)]
    if epoch == NUM_EPOCHS:
        evaluations += [_evaluation(epoch, given, share, final=True) for given, share in FINAL_ACCURACY.items()]
    loss = 2.3 * 0.7**epoch
    return Telemetry(
        incarnation=incarnation,
        sequence=sequence,
        final=epoch == NUM_EPOCHS,
        epoch=epoch,
        steps=steps,
        total_steps=NUM_EPOCHS * STEPS_PER_EPOCH,
        samples=samples,
        train=MetricSums(samples * loss, int(samples * _accuracy_after(epoch)), samples),
        recent=MetricSums(320 * loss, int(320 * _accuracy_after(epoch)), 320),
        evaluations=tuple(evaluations),
        traffic=traffic,
        wire_sent_bytes=sum(row.wire_bytes for row in traffic if row.direction is Direction.UP) + 500,
        wire_received_bytes=sum(row.wire_bytes for row in traffic if row.direction is Direction.DOWN) + 300,
        round_trips=round_trips.counts(),
        stages=(StageTime("tokenize", steps, steps * 0.003), StageTime("encode", steps, steps * 0.001)),
        resends=1,
        duplicates=0,
        rejects=0,
        cpu_s=0.02 * steps,
        peak_rss_bytes=71_000_000,
    )


def synthetic_run(num_agents: int = 4, num_parameters: int = 812_042) -> dict[str, Any]:
    """Return the content of a made-up run's `run.json`, as read from a file."""
    book = RunBook(synthetic_manifest(num_parameters), num_client_parameters=11_000)
    for index in range(num_agents):
        book.take(f"clinic/{index:02d}", synthetic_telemetry(slowness=1 + index / 4))
    content = run_json(
        book,
        worker="worker-0",
        windows=NUM_EPOCHS * STEPS_PER_EPOCH,
        committed_samples=num_agents * NUM_EPOCHS * STEPS_PER_EPOCH * 32,
        duration_s=96.4,
        training_s=88.2,
        reason="all agents have done their epochs",
    )
    # The book has asked the kernel what this very process uses, which is never the same twice.
    content["processes"][0] |= {"peak_rss_bytes": 512_000_000, "cpu_s": 131.0}
    run: dict[str, Any] = json.loads(json.dumps(content))
    return run


def _accuracy_after(epoch: int) -> float:
    return 0.904 - 0.8 * 0.55**epoch


def _evaluation(epoch: int, given: str, share: float, *, final: bool) -> Evaluation:
    num_samples = 1_000 if final else 256
    wire_bytes = epoch * STEPS_PER_EPOCH * 32 * 4_200
    sums = MetricSums(num_samples * (1.5 - share), round(num_samples * share), num_samples)
    return Evaluation(epoch, given, final, sums, wire_bytes)
