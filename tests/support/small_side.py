"""The agent's half of the small run, made without torch: its manifest and its tokenizers' weights."""

from __future__ import annotations

import functools

import numpy as np
import safetensors.numpy

from cutlayer.broker.manifest import ClassificationSpec, CodecNames, EvaluationSpec, Manifest, WindowSpec
from cutlayer.broker.messages import RunPhase, WorkerState, serialize
from cutlayer.broker.model_chunks import describe_model
from cutlayer.broker.topics import WorkerTopics
from support.small_run import AUDIO, CLASSES, IMAGE

__all__ = ["WIDTH", "served", "small_manifest", "tokenizer_file"]

WIDTH = 16


@functools.cache
def tokenizer_file() -> bytes:
    """Return random weights of the two tokenizers, as a safetensors file."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, spec in (("audio", AUDIO), ("image", IMAGE)):
        weights[f"{name}.weight"] = rng.normal(size=(spec.patch_values, WIDTH)).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(WIDTH, np.float32)
    file: bytes = safetensors.numpy.save(weights)
    return file


def served(manifest: Manifest) -> tuple[str, bytes]:
    """Return topic and payload of a worker's state that says that it serves a run."""
    digest = bytes.fromhex(manifest.digest())
    state = WorkerState(True, "w0", 1, digest, RunPhase.TRAINING, agents=0, version=0, reason="")
    return WorkerTopics("w0").state, serialize(state)


def small_manifest(*, epochs: int = 2, every_epochs: int = 1, run_id: str = "small-0") -> Manifest:
    """Return the manifest of a small run."""
    return Manifest(
        run_id=run_id,
        seed=0,
        epochs=epochs,
        microbatch_samples=4,
        width=WIDTH,
        model="small",
        num_parameters=1_000,
        modalities={"audio": AUDIO, "image": IMAGE},
        fusion="early",
        task=ClassificationSpec(classes=CLASSES),
        codecs=CodecNames(activations="identity", outputs="identity", output_gradients="identity"),
        window=WindowSpec(),
        tokenizers=describe_model(tokenizer_file()),
        evaluation=EvaluationSpec(every_epochs=every_epochs, samples=8),
    )
