"""Raw samples to features in PyTorch: the same as the agents' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cutlayer.broker.manifest import AudioSpec, ImageSpec
from cutlayer.edge_agent.tokenizers import tokenizer_from_spec
from cutlayer.server_worker.raw_features import raw_features
from support.modalities import EVERY_KIND, random_parts, raw_samples

WIDTH, NUM_SAMPLES = 7, 6


def agents_features(name: str, raw: np.ndarray) -> np.ndarray:
    spec = EVERY_KIND[name]
    weights = {f"{name}.{part}": array for part, array in random_parts(spec, WIDTH).items()}
    return tokenizer_from_spec(name, spec, weights).features(raw)


@pytest.mark.parametrize("whole", [False, True], ids=["with gaps", "whole"])
@pytest.mark.parametrize("name", [name for name, spec in EVERY_KIND.items() if spec.kind != "text"])
def test_features_are_those_of_the_agent(name: str, whole: bool) -> None:
    raw = raw_samples(name, NUM_SAMPLES, whole=whole)
    own = raw_features(EVERY_KIND[name])(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(own, agents_features(name, raw), atol=2e-5)


def test_a_quiet_band_beside_a_loud_one_is_not_lost() -> None:
    spec = AudioSpec(sample_rate_hz=8_000, num_frames=8, hop_samples=128, fft_samples=512, num_mels=16, patch=4)
    time_T = np.arange(spec.num_samples) / spec.sample_rate_hz
    loud = 0.9 * np.sin(2 * np.pi * 250 * time_T) + 1e-5 * np.sin(2 * np.pi * 3_100 * time_T)
    raw = loud[None].astype(np.float32)
    weights = {f"audio.{part}": np.zeros(shape, np.float32) for part, shape in spec.parameter_shapes(WIDTH).items()}
    agents = tokenizer_from_spec("audio", spec, weights).features(raw)
    np.testing.assert_allclose(raw_features(spec)(torch.from_numpy(raw)).numpy(), agents, atol=2e-4)


def test_waveforms_and_series_of_any_length_are_cut_and_padded() -> None:
    for name in (name for name, spec in EVERY_KIND.items() if spec.kind in ("audio", "series")):
        raw = raw_samples(name, 3, whole=True)
        for changed in (raw[:, : raw.shape[1] // 2], np.concatenate([raw, raw], axis=1)):
            own = raw_features(EVERY_KIND[name])(torch.from_numpy(np.ascontiguousarray(changed))).numpy()
            np.testing.assert_allclose(own, agents_features(name, changed), atol=2e-5)


def test_whole_numbers_of_pixels_are_scaled() -> None:
    spec = ImageSpec(height=2, width=4, channels=2, patch=2, mean=(0.5, 0.25), std=(1.0, 0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 2)).astype(np.uint8)
    scaled = torch.from_numpy(pixels).double() / 255
    features = raw_features(spec)
    torch.testing.assert_close(features(torch.from_numpy(pixels)), features(scaled), rtol=1e-5, atol=1e-6)
