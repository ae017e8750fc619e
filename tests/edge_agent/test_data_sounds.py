"""Sounds in files: what a run hears of them, at any rate, width and number of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.manifest import AudioSpec
from cutlayer.edge_agent.data_sounds import SoundReader
from cutlayer.edge_agent.data_unreadable import Unreadable
from support.user_data import write_sound

RATE_HZ = 8_000
SPEC = AudioSpec(sample_rate_hz=RATE_HZ, num_frames=60, hop_samples=64, fft_samples=128, num_mels=4, patch=2)
LENGTH = SPEC.num_samples


def tone(frequency_hz: float, rate_hz: int, seconds: float = 1.0, amplitude: float = 0.5) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)


def read(path: Path) -> NDArray[np.float32]:
    reader = SoundReader(SPEC)
    reader.check(path)
    waveform_T: NDArray[np.float32] = reader.read(path)
    assert waveform_T.dtype == np.float32
    assert waveform_T.shape == (LENGTH,)
    return waveform_T


@pytest.mark.parametrize(("sample_bytes", "error"), [(1, 1e-2), (2, 5e-5), (3, 2e-7), (4, 2e-7)])
def test_pcm_of_8_to_32_bits_is_read_to_its_own_precision(tmp_path: Path, sample_bytes: int, error: float) -> None:
    wave_T = tone(440, RATE_HZ)
    write_sound(tmp_path / "a.wav", wave_T[:, None], sample_bytes=sample_bytes)
    np.testing.assert_allclose(read(tmp_path / "a.wav"), wave_T[:LENGTH], atol=error)


def test_channels_are_mixed_to_their_mean(tmp_path: Path) -> None:
    left_T, right_T = tone(440, RATE_HZ), tone(660, RATE_HZ, amplitude=0.2)
    write_sound(tmp_path / "a.wav", np.stack([left_T, right_T], axis=1))
    np.testing.assert_allclose(read(tmp_path / "a.wav"), (left_T + right_T)[:LENGTH] / 2, atol=1e-4)


@pytest.mark.parametrize("rate_hz", [4_000, 11_025, 16_000, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate_hz: int) -> None:
    write_sound(tmp_path / "a.wav", tone(440, rate_hz)[:, None], rate_hz=rate_hz)
    waveform_T = read(tmp_path / "a.wav")
    inner = slice(200, LENGTH - 200)  # a filter has little to go by at a file's ends
    np.testing.assert_allclose(waveform_T[inner], tone(440, RATE_HZ)[:LENGTH][inner], atol=2e-3)


def test_what_the_rate_cannot_hold_is_filtered_out_and_not_folded_down(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", tone(6_000, 44_100)[:, None], rate_hz=44_100)
    assert np.abs(read(tmp_path / "a.wav")[200:-200]).max() < 2e-3


def test_short_sound_is_followed_by_silence(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", np.full((100, 1), 0.25))
    waveform_T = read(tmp_path / "a.wav")
    np.testing.assert_allclose(waveform_T[:100], 0.25, atol=1e-4)
    assert not waveform_T[100:].any()


def test_no_more_of_a_long_file_is_decoded_than_a_run_looks_at(tmp_path: Path) -> None:
    import tracemalloc

    write_sound(tmp_path / "long.wav", np.zeros((3_000_000, 1)))
    tracemalloc.start()
    try:
        read(tmp_path / "long.wav")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000  # as float32 the whole is 12 MB


@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_compressed_sounds_are_read(tmp_path: Path, suffix: str) -> None:
    import soundfile

    soundfile.write(tmp_path / f"a.{suffix}", tone(440, RATE_HZ), RATE_HZ)
    np.testing.assert_allclose(read(tmp_path / f"a.{suffix}"), tone(440, RATE_HZ)[:LENGTH], atol=0.05)


def test_array_is_a_waveform_at_the_runs_rate(tmp_path: Path) -> None:
    wave_T = tone(440, RATE_HZ)
    np.save(tmp_path / "a.npy", wave_T)
    np.testing.assert_allclose(read(tmp_path / "a.npy"), wave_T[:LENGTH], atol=1e-6)
    np.save(tmp_path / "b.npy", np.rint(wave_T * 32_768).astype(np.int16))
    np.testing.assert_allclose(read(tmp_path / "b.npy"), wave_T[:LENGTH], atol=1e-4)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 100)), r"an array \(2, 100\); expected \(any,\)"),
        (np.zeros(100, np.int32), "an array of int32"),
        (np.array(["a"]), "expected numbers"),
        (np.zeros(0), "no samples"),
        (np.full(10, np.nan), "not finite"),
    ],
)
def test_array_that_is_no_waveform_says_what_is_expected(
    tmp_path: Path, array: NDArray[np.generic], message: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(Unreadable, match=message):
        SoundReader(SPEC).read(tmp_path / "a.npy")


def test_broken_missing_and_empty_files_are_unreadable(tmp_path: Path) -> None:
    reader = SoundReader(SPEC)
    (tmp_path / "text.wav").write_text("not a sound")
    write_sound(tmp_path / "empty.wav", np.zeros((0, 1)))
    for look in (reader.check, reader.read):
        with pytest.raises(Unreadable, match=r"^Format not recogni[sz]ed\.$"):
            look(tmp_path / "text.wav")
        with pytest.raises(Unreadable, match=r"^No such file or directory$"):
            look(tmp_path / "missing.wav")
        with pytest.raises(Unreadable, match=r"^no samples$"):
            look(tmp_path / "empty.wav")


def test_damage_anywhere_in_a_file_is_unreadable_and_never_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_sound(tmp_path / "a.wav", tone(440, RATE_HZ, seconds=0.05)[:, None])
    whole = (tmp_path / "a.wav").read_bytes()
    reader, outcomes = SoundReader(SPEC), set()
    for _ in range(200):
        octets = bytearray(whole)
        octets[rng.integers(0, 60)] = rng.integers(256)
        (tmp_path / "b.wav").write_bytes(bytes(octets[: rng.integers(10, len(octets) + 1)]))
        try:
            reader.read(tmp_path / "b.wav")
            outcomes.add("read")
        except Unreadable:
            outcomes.add("unreadable")
    assert outcomes == {"read", "unreadable"}
