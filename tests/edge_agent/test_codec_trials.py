"""Codecs tried on the agent's own activations: sizes, errors, and how seldom."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cutlayer.compression import codec_from_name
from cutlayer.edge_agent.codec_trials import MAX_SAMPLES, TRIAL_EVERY, CodecTrials

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(8, 4, 16)).astype(np.float32)


def test_sizes_and_errors_are_those_of_the_codecs() -> None:
    trials = CodecTrials(("identity", "int8", "int4"))
    assert not CodecTrials(("identity",)).has_any
    trials.take([TOKENS, 3 * TOKENS])
    assert trials.has_any
    assert trials.sample_bytes(0) == 2 * 4 * 16 * 4
    assert trials.error(0) == 0.0
    codec = codec_from_name("int4")
    decoded = codec.decode(codec.encode(TOKENS), TOKENS.shape)
    assert trials.sample_bytes(2) == 2 * len(codec.encode(TOKENS)) / 8
    assert trials.error(2) == pytest.approx(np.sqrt(np.mean((decoded - TOKENS) ** 2) / np.mean(TOKENS**2)), rel=1e-2)
    assert 0.0 < trials.error(1) < trials.error(2)


def test_no_modality_hides_behind_a_louder_one() -> None:
    quiet = np.zeros((8, 4, 16), np.float32)
    quiet[:, :, 0], quiet[:, :, 1:] = 1.0, RNG.normal(size=(8, 4, 15)) * 0.01  # all but one value is lost in the steps
    alone, loud = CodecTrials(("identity", "int2")), CodecTrials(("identity", "int2"))
    alone.take([quiet])
    loud.take([1_000 * TOKENS, quiet])
    assert loud.error(1) >= alone.error(1) > 0.0


def test_a_microbatch_is_tried_now_and_then_only() -> None:
    trials = CodecTrials(("identity", "int4"))
    trials.take([TOKENS])
    before = trials.error(1)
    other = np.full_like(TOKENS, 1 / 30)  # half of one of 15 steps
    other[:, :, 0], other[:, :, 1] = 0.0, 1.0
    for _ in range(TRIAL_EVERY - 1):
        trials.take([other])
    assert trials.error(1) == before
    trials.take([other])
    assert trials.error(1) > before, "the largest error lately counts"
    for _ in range(TRIAL_EVERY):
        trials.take([TOKENS])
    assert trials.error(1) > before


def test_no_more_samples_are_tried_than_are_needed() -> None:
    trials = CodecTrials(("identity",))
    large = np.zeros((MAX_SAMPLES + 50, 2, 4), np.float32)
    large[MAX_SAMPLES:] = np.nan  # what is not tried does no harm
    trials.take([large])
    assert trials.sample_bytes(0) == 2 * 4 * 4


def test_a_codec_that_cannot_carry_them_is_no_choice() -> None:
    trials = CodecTrials(("identity", "int4"))
    trials.take([np.full((2, 2, 4), np.inf, np.float32)])
    assert trials.error(1) == math.inf


def test_zeros_have_no_error() -> None:
    trials = CodecTrials(("identity", "int4"))
    trials.take([np.zeros((2, 2, 4), np.float32)])
    assert trials.error(1) == 0.0
