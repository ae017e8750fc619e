"""Spoken digits: voices apart between splits, the same clips everywhere, noise at the ratio asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cutlayer.edge_agent.speech import SAMPLE_RATE_HZ, VOICES, WORDS, noisy_speech, spoken_digits

DIGEST_OF_ALL_CLIPS = """
import hashlib
from cutlayer.edge_agent.speech import spoken_digits
digest = hashlib.sha256()
for digits in spoken_digits().values():
    for clips in digits:
        for clip in clips:
            digest.update(clip.tobytes())
print(digest.hexdigest())
"""


def test_train_and_test_share_no_accent_no_speaker_and_no_rate() -> None:
    train, test = VOICES["train"], VOICES["test"]
    assert not set(train.accents) & set(test.accents)
    assert not set(train.speakers) & set(test.speakers)
    assert not set(train.rates) & set(test.rates)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_digit_is_spoken_by_every_voice(split: str) -> None:
    voices = VOICES["train" if split == "train" else "test"]
    digits = spoken_digits()["train" if split == "train" else "test"]
    num_voices = len(voices.accents) * len(voices.speakers) * len(voices.rates)
    assert len(digits) == len(WORDS) == 10
    assert {len(clips) for clips in digits} == {num_voices}


def test_no_two_clips_are_the_same() -> None:
    clips = [clip.tobytes() for digits in spoken_digits().values() for clips in digits for clip in clips]
    assert len(set(clips)) == len(clips)


def test_clips_begin_and_end_with_speech_and_fit_a_spectrogram() -> None:
    for digits in spoken_digits().values():
        for clip_T in (clip for clips in digits for clip in clips):
            assert clip_T.dtype == np.int16
            assert 0.15 < clip_T.size / SAMPLE_RATE_HZ < 0.66


def test_every_process_synthesizes_the_same_clips() -> None:
    command = [sys.executable, "-c", DIGEST_OF_ALL_CLIPS]
    digests = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


@pytest.mark.parametrize("snr_db", [-12.0, 0.0, 12.0])
def test_noise_has_the_power_asked_for(snr_db: float) -> None:
    clip_T = spoken_digits()["train"][7][0]
    # The same draws, once with noise as asked for and once with none, scaled alike: their difference is noise.
    noisy_T = noisy_speech(clip_T, 7_332, snr_db, np.random.default_rng(4)).astype(np.float64)
    clean_T = noisy_speech(clip_T, 7_332, 300.0, np.random.default_rng(4)).astype(np.float64)
    clean_T /= np.hypot(1.0, 10 ** (-snr_db / 20))
    speech_power = np.square(clean_T).sum() / clip_T.size
    noise_power = np.square(noisy_T - clean_T).mean()
    assert 10 * np.log10(speech_power / noise_power) == pytest.approx(snr_db, abs=0.2)


def test_speech_in_noise_never_clips() -> None:
    clips = [clip for clips in spoken_digits()["train"] for clip in clips]
    for seed, snr_db in enumerate((-12.0, 0.0, 60.0) * 30):
        waveform_T = noisy_speech(clips[seed], 7_332, snr_db, np.random.default_rng(seed))
        assert waveform_T.dtype == np.float32
        assert np.abs(waveform_T).max() < 1.0


def test_a_clip_longer_than_the_window_is_cut() -> None:
    clip_T = spoken_digits()["train"][6][0]
    assert noisy_speech(clip_T, 1_000, 10.0, np.random.default_rng(0)).shape == (1_000,)
