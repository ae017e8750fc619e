"""A small modality of every kind, raw samples of it as a site would have them, and random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.modalities import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec, TextSpec
from cutlayer.broker.modality_spec import SpecOfModality

__all__ = ["AUDIO", "EVERY_KIND", "IMAGE", "RAGGED", "SERIES", "TABLE", "TEXT", "WORDS", "random_parts", "raw_samples"]

IMAGE = ImageSpec(height=4, width=4, channels=1, patch=2)
AUDIO = AudioSpec(sample_rate_hz=1_000, num_frames=4, hop_samples=8, fft_samples=16, num_mels=4, patch=2)
TEXT = TextSpec(num_tokens=6)
SERIES = SeriesSpec(rate_hz=50.0, num_steps=20, channels=2, patch=4, mean=(1.0, -2.0), std=(2.0, 0.5))
TABLE = TableSpec.model_validate(
    {
        "columns": ["age", "pulse"],
        "mean": [50.0, 70.0],
        "std": [20.0, 15.0],
        "categories": [{"name": "sex", "values": ["f", "m"]}, {"name": "ward", "values": ["icu", "er", "home"]}],
    }
)
EVERY_KIND: Mapping[str, ModalitySpec] = {
    "audio": AUDIO,
    "image": IMAGE,
    "series": SERIES,
    "table": TABLE,
    "text": TEXT,
}
RAGGED = tuple(name for name, spec in EVERY_KIND.items() if spec.is_ragged)
WORDS = ("", "a", "cough", "no cough at night", "ä", "fever!", "x" * 50)


def raw_samples(name: str, num_samples: int, seed: int = 0, *, whole: bool = False) -> NDArray[Any]:
    """Return samples of a kind of `EVERY_KIND`.

    Args:
        name: Its name there.
        num_samples: How many.
        seed: Of the draws.
        whole: Whether all have all their tokens.
    """
    rng = np.random.default_rng(seed)
    if name == "image":
        return rng.integers(0, 256, size=(num_samples, 4, 4, 1)).astype(np.uint8)
    if name == "audio":
        return rng.uniform(-1, 1, size=(num_samples, AUDIO.num_samples)).astype(np.float32)
    if name == "text":
        return np.array(["no cough" if whole else WORDS[rng.integers(len(WORDS))] for _ in range(num_samples)], object)
    if name == "series":
        series_BTC = rng.normal(size=(num_samples, 20, 2)).astype(np.float32)
        if not whole:
            for row, length in enumerate(rng.integers(0, 21, size=num_samples)):
                series_BTC[row, length:] = np.nan
            series_BTC[rng.random(series_BTC.shape) < 0.1] = np.nan
        return series_BTC
    cells_BF = rng.normal(size=(num_samples, 4)) * 10 + 60
    cells_BF[:, 2] = rng.integers(2, size=num_samples)
    cells_BF[:, 3] = rng.integers(3, size=num_samples)
    if not whole:
        cells_BF[rng.random(cells_BF.shape) < 0.3] = np.nan
    return cells_BF


def random_parts(spec: SpecOfModality, width: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random parameters of a modality's tokenizer."""
    rng = np.random.default_rng(seed)
    return {
        part: rng.normal(size=shape).astype(np.float32) for part, shape in sorted(spec.parameter_shapes(width).items())
    }
