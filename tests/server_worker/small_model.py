"""A model small enough for tests, and data for it.

Axes: b samples of a microbatch, B batch, N tokens, P values of a patch, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.passes import Forwarded, ForwardItem
from cutlayer.server_worker.settings import OptimizerSettings, RunSettings

torch.set_num_threads(1)

WIDTH = 32
CLASSES = 3
GRIDS = {"audio": (2, 4), "image": (4, 4)}
OPTIONS: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": WIDTH,
    "depth": 2,
    "num_heads": 4,
}

Arrays = dict[str, NDArray[np.float32]]


def small_settings(**sections: Mapping[str, object]) -> RunSettings:
    """Settings with an 8 x 8 image (16 tokens) and a spectrogram (8 tokens)."""
    document: dict[str, Any] = {
        "modalities": {
            "image": {"kind": "image", "height": 8, "width": 8, "channels": 1, "patch": 2},
            "audio": {
                "kind": "audio",
                "sample_rate_hz": 8_000,
                "num_frames": 16,
                "hop_samples": 64,
                "fft_samples": 128,
                "num_mels": 8,
                "patch": 4,
            },
        },
        "task": {"classes": ["one", "two", "three"]},
        **sections,
    }
    document["model"] = {"name": "vit_tiny_patch16_224", "options": OPTIONS} | dict(sections.get("model", {}))
    return RunSettings.model_validate(document)


def small_model(seed: int = 0, **model: object) -> BuiltModel:
    return build(small_settings(model=model), seed)


def small_engine(
    seed: int = 0, *, modality_dropout: float = 0.0, dtype: str = "float32", **optimizer: object
) -> Engine:
    return Engine(
        small_model(seed, dtype=dtype).encoder,
        OptimizerSettings.model_validate(optimizer),
        seed=seed,
        modality_dropout=modality_dropout,
    )


def random_tokens(num_samples: int, seed: int = 0, names: tuple[str, ...] = ("audio", "image")) -> Arrays:
    """(b, N, D) by modality."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal((num_samples, GRIDS[name][0] * GRIDS[name][1], WIDTH), dtype=np.float32)
        for name in names
    }


def train_item(key: str | int, num_samples: int = 4, *, mode: Literal["train", "eval"] = "train") -> ForwardItem:
    seed = key if isinstance(key, int) else sum(key.encode())
    return ForwardItem(key, mode, random_tokens(num_samples, seed))


def output_gradient(outputs_bC: NDArray[np.float32], labels_b: NDArray[np.int64]) -> NDArray[np.float32]:
    """Gradient of the summed cross-entropy at the outputs, as an agent computes it: float32, (b, C)."""
    shifted_bC = np.exp(outputs_bC.astype(np.float64) - outputs_bC.max(axis=1, keepdims=True))
    gradient_bC = shifted_bC / shifted_bC.sum(axis=1, keepdims=True)
    gradient_bC[np.arange(len(labels_b)), labels_b] -= 1.0
    return np.asarray(gradient_bC, np.float32)


def group_of(forwarded: Forwarded) -> int:
    assert forwarded.group_id is not None
    return forwarded.group_id


def labels_of(num_samples: int) -> NDArray[np.int64]:
    return np.arange(num_samples) % CLASSES


def gradients_of(forwarded: Forwarded) -> dict[Hashable, NDArray[np.float32]]:
    return {key: output_gradient(output, labels_of(len(output))) for key, output in forwarded.outputs.items()}


def run_window(engine: Engine, items: list[ForwardItem], progress: float | None = None) -> None:
    forwarded = engine.forward(items)
    engine.backward(group_of(forwarded), gradients_of(forwarded), last=True)
    engine.commit(sum(item.num_samples for item in items), progress)
