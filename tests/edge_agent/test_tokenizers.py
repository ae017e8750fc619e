"""Tokenizers: equal to a convolution, and clear about what they cannot take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable, SettingsError
from cutlayer.broker.manifest import AudioSpec, ImageSpec, ModalitySpec
from cutlayer.edge_agent.audio_tokenizer import LogMelPatchTokenizer
from cutlayer.edge_agent.image_tokenizer import ImagePatchTokenizer
from cutlayer.edge_agent.log_mel import LogMel
from cutlayer.edge_agent.tokenizers import Tokenizer, load_tokenizers, tokenizer_from_spec

IMAGE = ImageSpec(height=12, width=8, channels=3, patch=4)
AUDIO = AudioSpec(sample_rate_hz=8_000, num_frames=8, hop_samples=64, fft_samples=128, num_mels=12, patch=4)
MODALITIES: dict[str, ModalitySpec] = {"camera": IMAGE, "microphone": AUDIO}
WIDTH = 24


def random_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    weights = {}
    for name, spec in MODALITIES.items():
        for part, shape in spec.parameter_shapes(WIDTH).items():
            weights[f"{name}.{part}"] = rng.normal(size=shape).astype(np.float32)
    return weights


def image_tokenizer() -> Tokenizer:
    return tokenizer_from_spec("camera", IMAGE, random_weights())


def audio_tokenizer() -> Tokenizer:
    return tokenizer_from_spec("microphone", AUDIO, random_weights())


def random_images(num: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, size=(num, 12, 8, 3)).astype(np.uint8)


def random_waveforms(num: int = 5, num_samples: int = AUDIO.num_samples) -> NDArray[np.float32]:
    return np.random.default_rng(2).uniform(-1, 1, size=(num, num_samples)).astype(np.float32)


def conv_tokens(planes_BCHW: NDArray[np.float32], name: str, patch: int) -> NDArray[np.float32]:
    """Tokens as a timm PatchEmbed makes them: a convolution, flattened row by row."""
    weights = random_weights()
    channels = planes_BCHW.shape[1]
    kernel = torch.from_numpy(weights[f"{name}.weight"].T.reshape(WIDTH, channels, patch, patch).copy())
    bias = torch.from_numpy(weights[f"{name}.bias"])
    out = torch.nn.functional.conv2d(torch.from_numpy(planes_BCHW), kernel, bias, stride=patch)
    tokens: NDArray[np.float32] = out.flatten(2).transpose(1, 2).numpy()
    return tokens


def test_image_tokens_equal_a_convolution() -> None:
    images_BHWC = random_images()
    pixels_BHWC = (images_BHWC / 255 - IMAGE.mean) / IMAGE.std
    planes_BCHW = pixels_BHWC.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    tokens_BND = image_tokenizer().tokenize(images_BHWC)
    assert tokens_BND.shape == (5, IMAGE.num_tokens, WIDTH)
    assert tokens_BND.dtype == np.float32
    np.testing.assert_allclose(tokens_BND, conv_tokens(planes_BCHW, "camera", 4), atol=1e-4)


def test_audio_tokens_equal_a_convolution_over_the_spectrogram() -> None:
    waveforms_BT = random_waveforms()
    tokens_BND = audio_tokenizer().tokenize(waveforms_BT)
    assert tokens_BND.shape == (5, AUDIO.num_tokens, WIDTH)
    np.testing.assert_allclose(
        tokens_BND, conv_tokens(LogMel(AUDIO)(waveforms_BT)[:, None], "microphone", 4), atol=1e-4
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_from_0_to_1_equal_8_bit_images(dtype: type[np.floating[Any]]) -> None:
    images_BHWC = random_images()
    floats_BHWC = (images_BHWC / 255).astype(dtype)
    tolerance = 4e-3 if dtype is np.float16 else 1e-5
    tokenizer = image_tokenizer()
    np.testing.assert_allclose(tokenizer.features(floats_BHWC), tokenizer.features(images_BHWC), atol=tolerance)


def test_tokenize_is_project_after_features() -> None:
    for tokenizer, raw in ((image_tokenizer(), random_images()), (audio_tokenizer(), random_waveforms())):
        np.testing.assert_array_equal(tokenizer.tokenize(raw), tokenizer.project(tokenizer.features(raw)))


def test_features_do_not_depend_on_the_batch_they_are_made_in() -> None:
    tokenizer, waveforms_BT = audio_tokenizer(), random_waveforms(40)
    one_by_one = np.concatenate([tokenizer.features(waveforms_BT[row : row + 1]) for row in range(40)])
    np.testing.assert_allclose(tokenizer.features(waveforms_BT), one_by_one, atol=1e-5)


def test_features_leave_the_raw_sample_as_it_was() -> None:
    for tokenizer, raw in ((image_tokenizer(), random_images() / 255), (audio_tokenizer(), random_waveforms())):
        before = raw.copy()
        tokenizer.features(raw)
        np.testing.assert_array_equal(raw, before)


def test_short_waveforms_are_padded_with_zeros_and_long_ones_cut() -> None:
    tokenizer = audio_tokenizer()
    short_BT = random_waveforms(num_samples=300)
    padded_BT = np.pad(short_BT, ((0, 0), (0, AUDIO.num_samples - 300)))
    np.testing.assert_array_equal(tokenizer.features(short_BT), tokenizer.features(padded_BT))
    long_BT = np.pad(padded_BT, ((0, 0), (0, 999)), constant_values=0.5)
    np.testing.assert_array_equal(tokenizer.features(long_BT), tokenizer.features(padded_BT))


def test_an_empty_batch_gives_no_tokens() -> None:
    assert image_tokenizer().tokenize(random_images(0)).shape == (0, IMAGE.num_tokens, WIDTH)
    assert audio_tokenizer().tokenize(random_waveforms(0)).shape == (0, AUDIO.num_tokens, WIDTH)


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (np.zeros((2, 8, 12, 3), np.uint8), r"\(2, 8, 12, 3\) uint8"),
        (np.zeros((12, 8, 3), np.uint8), r"\(12, 8, 3\)"),
        (np.zeros((2, 12, 8, 3), np.int64), "int64"),
        (np.full((2, 12, 8, 3), 255.0), "values 255 to 255"),
        (np.full((2, 12, 8, 3), -0.1), "values -0.1"),
        (np.full((2, 12, 8, 3), np.nan), "nan"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_was_expected(raw: NDArray[Any], got: str) -> None:
    with pytest.raises(SettingsError, match=got) as caught:
        image_tokenizer().features(raw)
    assert "camera" in str(caught.value)
    assert "expected (B, 12, 8, 3)" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (np.zeros(800, np.float32), r"\(800,\)"),
        (np.zeros((2, 800, 2), np.float32), r"\(2, 800, 2\)"),
        (np.zeros((2, 800), np.int16), "int16"),
        (np.full((2, 800), 12_000.0), "values 12000"),
        (np.full((2, 800), np.nan), "nan"),
        (np.full((2, 800), np.inf), "inf"),
    ],
)
def test_waveforms_that_do_not_fit_are_refused_with_what_was_expected(raw: NDArray[Any], got: str) -> None:
    with pytest.raises(SettingsError, match=got) as caught:
        audio_tokenizer().features(raw)
    assert "microphone" in str(caught.value)
    assert "mono at 8000 Hz" in str(caught.value)


def test_tokenizers_load_from_a_safetensors_file() -> None:
    tokenizers = load_tokenizers(MODALITIES, safetensors.numpy.save(random_weights()))
    assert list(tokenizers) == ["camera", "microphone"]
    assert isinstance(tokenizers["camera"], ImagePatchTokenizer)
    assert isinstance(tokenizers["microphone"], LogMelPatchTokenizer)
    assert (tokenizers["camera"].num_tokens, tokenizers["camera"].width) == (IMAGE.num_tokens, WIDTH)
    images_BHWC = random_images()
    np.testing.assert_array_equal(tokenizers["camera"].tokenize(images_BHWC), image_tokenizer().tokenize(images_BHWC))


def test_a_missing_weight_is_named_with_those_that_are_there() -> None:
    weights = random_weights()
    del weights["microphone.bias"]
    with pytest.raises(ManifestUnsatisfiable, match=r"lack 'microphone.bias' \(of it they have microphone.weight\)"):
        load_tokenizers(MODALITIES, safetensors.numpy.save(weights))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("camera.weight", np.zeros((WIDTH, 48), np.float32), r"camera.weight is \(24, 48\).*expected \(48, 24\)"),
        ("camera.bias", np.zeros((1, WIDTH), np.float32), r"camera.bias is \(1, 24\).*expected \(24,\)"),
        ("camera.weight", np.zeros((48, WIDTH), np.int32), "int32"),
        ("camera.weight", np.full((48, WIDTH), np.nan, np.float32), "finite"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused(name: str, tensor: NDArray[Any], message: str) -> None:
    with pytest.raises(ManifestUnsatisfiable, match=message):
        load_tokenizers(MODALITIES, safetensors.numpy.save({**random_weights(), name: tensor}))


def test_modalities_of_different_widths_are_refused() -> None:
    weights = random_weights()
    weights["camera.weight"], weights["camera.bias"] = weights["camera.weight"][:, :8], weights["camera.bias"][:8]
    with pytest.raises(ManifestUnsatisfiable, match="camera 8, microphone 24"):
        load_tokenizers(MODALITIES, safetensors.numpy.save({name: w.copy() for name, w in weights.items()}))


def test_half_precision_weights_are_taken_and_others_that_numpy_lacks_refused() -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in random_weights().items()}
    tokens_BND = load_tokenizers(MODALITIES, safetensors.numpy.save(halves))["camera"].tokenize(random_images())
    assert tokens_BND.dtype == np.float32
    np.testing.assert_allclose(tokens_BND, image_tokenizer().tokenize(random_images()), atol=0.05)
    brain_floats = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in random_weights().items()}
    with pytest.raises(ManifestUnsatisfiable):
        load_tokenizers(MODALITIES, safetensors.torch.save(brain_floats))


@pytest.mark.parametrize("document", [b"", b"garbage", b"\xff" * 64])
def test_bytes_that_are_no_safetensors_file_are_refused(document: bytes) -> None:
    with pytest.raises(ManifestUnsatisfiable, match="no readable safetensors file"):
        load_tokenizers(MODALITIES, document)
