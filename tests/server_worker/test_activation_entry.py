from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.compression import codec_from_name
from cutlayer.server_worker.activation_entry import DIGEST_BYTES, SampleEncoder, decode_sample, seal
from cutlayer.server_worker.stored_sample import StoredSample


def tokens(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(16, 128)).astype(np.float32)


def through(codec_name: str, tokens_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    codec = codec_from_name(codec_name)
    return codec.decode(codec.encode(tokens_KD), tokens_KD.shape)


def sample(tokens_KD: NDArray[np.float32]) -> StoredSample:
    return StoredSample({"image": tokens_KD}, {}, 1)


@pytest.mark.parametrize("codec", ["identity", "identity+lz4", "identity+zstd:1"])
def test_a_sample_comes_back_bit_for_bit(codec: str) -> None:
    positions = np.array([0, 5, *range(70_000, 70_014)], np.intp)
    put = StoredSample({"image": tokens(), "audio": tokens(1)[:3]}, {"image": positions}, 200)
    body = SampleEncoder([codec]).encode(put)
    got = decode_sample(body, 200, ["image", "audio"])
    assert got is not None
    assert {name: values.tobytes() for name, values in got.tokens.items()} == {
        "image": tokens().tobytes(),
        "audio": tokens(1)[:3].tobytes(),
    }
    assert np.array_equal(got.positions["image"], positions)
    assert got.positions.keys() == {"image"}
    assert got.visits == 200


def test_only_wanted_modalities_are_decoded() -> None:
    body = SampleEncoder(["identity"]).encode(StoredSample({"image": tokens(), "audio": tokens(1)}, {}, 0))
    got = decode_sample(body, 0, ["audio"])
    assert got is not None
    assert got.tokens.keys() == {"audio"}


def test_a_coarse_codec_is_used_where_it_is_exact_and_only_there() -> None:
    encoder = SampleEncoder(["fp16", "identity"])
    exact, inexact = encoder.encode(sample(through("fp16", tokens()))), encoder.encode(sample(tokens()))
    assert len(exact) < 0.51 * len(inexact)
    for body, put in ((exact, through("fp16", tokens())), (inexact, tokens())):
        got = decode_sample(body, 1, ["image"])
        assert got is not None
        assert got.tokens["image"].tobytes() == put.tobytes()


def test_minus_zero_is_not_zero() -> None:
    put = np.zeros((16, 128), np.float32)
    put[3, 3] = -0.0
    body = SampleEncoder(["int8", "identity"]).encode(sample(put))
    got = decode_sample(body, 1, ["image"])
    assert got is not None
    assert got.tokens["image"].tobytes() == put.tobytes()


def test_a_codec_that_is_never_exact_is_not_tried_for_ever() -> None:
    hopeless, hopeful = SampleEncoder(["fp16", "identity"]), SampleEncoder(["fp16", "identity"])
    hopeful.encode(sample(through("fp16", tokens())))
    for seed in range(100):
        hopeless.encode(sample(tokens(seed)))
        hopeful.encode(sample(tokens(seed)))
    put = sample(through("fp16", tokens()))
    assert len(hopeful.encode(put)) < 0.51 * len(hopeless.encode(put))


def test_without_a_lossless_codec_there_is_no_encoder() -> None:
    with pytest.raises(ValueError, match="lossless"):
        SampleEncoder(["fp16"])


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xc1", b"\x91\x90", b"\x91\xc0", b"\x92\x01\x02"])
def test_bytes_of_another_format_are_no_sample(body: bytes) -> None:
    assert decode_sample(body, 0, ["image"]) is None


def test_a_seal_covers_whose_the_sample_is() -> None:
    right = ("store", "agent", 1, 2, b"body")
    seals = {
        seal(*right),
        seal("other", "agent", 1, 2, b"body"),
        seal("store", "other", 1, 2, b"body"),
        seal("store", "agent", 2, 2, b"body"),
        seal("store", "agent", 1, 3, b"body"),
        seal("store", "agent", 1, 2, b"bodi"),
    }
    assert len(seals) == 6
    assert {len(one) for one in seals} == {DIGEST_BYTES}
    assert seal(*right) in seals
