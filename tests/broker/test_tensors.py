"""Tensors in messages: what is checked before memory is taken, and what decoding refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.errors import MalformedMessage, OversizedMessage, WireError
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.tensors import check_tensor, decode_tensor, encode_tensor, raw_bytes
from cutlayer.compression import CodecError, available_codecs

SHAPE = (2, 3, 4)
CODEC_NAMES = ["identity", "fp16", "int8", "int8+zstd", "fp16+lz4", "identity+zstd:9"]


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_a_tensor_comes_back_in_its_shape(codec: str) -> None:
    array_BND = np.linspace(-1, 1, 24, dtype=np.float32).reshape(SHAPE)
    tensor = encode_tensor(codec, array_BND)
    check_tensor(tensor, shape=SHAPE, codec=codec, what="activations")
    decoded_BND = decode_tensor(tensor, what="activations")
    assert decoded_BND.dtype == np.float32
    assert decoded_BND.shape == SHAPE
    np.testing.assert_allclose(decoded_BND, array_BND, atol=0.01)
    assert raw_bytes(tensor) == 96


@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 3), (2, 3, 4, 1), (), (24,), (2, 3, 5)])
def test_another_shape_is_malformed_and_both_are_named(shape: tuple[int, ...]) -> None:
    tensor = EncodedTensor("identity", shape, bytes(96))
    with pytest.raises(MalformedMessage, match=r"activations has shape .*, \(2, 3, 4\) is needed"):
        check_tensor(tensor, shape=SHAPE, codec="identity", what="activations")


def test_another_codec_is_malformed_and_both_are_named() -> None:
    with pytest.raises(MalformedMessage, match="activations is encoded as 'fp16', the lease says 'int8'"):
        check_tensor(EncodedTensor("fp16", SHAPE, bytes(48)), shape=SHAPE, codec="int8", what="activations")


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_more_bytes_than_the_codec_can_write_are_oversized(codec: str) -> None:
    tensor = EncodedTensor(codec, SHAPE, bytes(1_000))
    with pytest.raises(OversizedMessage, match="activations: 1000 B is over"):
        check_tensor(tensor, shape=SHAPE, codec=codec, what="activations")


def test_a_shape_of_too_many_elements_is_oversized() -> None:
    shape = (65_536, 2_048)
    with pytest.raises(OversizedMessage):
        check_tensor(EncodedTensor("identity", shape, b""), shape=shape, codec="identity", what="activations")


@pytest.mark.parametrize("codec", CODEC_NAMES)
@given(data=st.binary(max_size=120))
def test_arbitrary_bytes_are_a_finite_tensor_or_a_wire_error(codec: str, data: bytes) -> None:
    tensor = EncodedTensor(codec, SHAPE, data)
    try:
        check_tensor(tensor, shape=SHAPE, codec=codec, what="outputs")
        decoded = decode_tensor(tensor, what="outputs")
    except WireError:
        return
    assert decoded.shape == SHAPE
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_do_not_get_in(value: float) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    with pytest.raises(MalformedMessage, match=r"outputs: .*NaN or Inf"):
        decode_tensor(EncodedTensor("identity", SHAPE, array.tobytes()), what="outputs")


@pytest.mark.parametrize("codec", available_codecs())
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_do_not_get_out(codec: str, value: float) -> None:
    with pytest.raises(CodecError):
        encode_tensor(codec, np.full(SHAPE, value, np.float32))


def test_an_unknown_codec_is_ours_when_sending_and_theirs_when_receiving() -> None:
    with pytest.raises(CodecError):
        encode_tensor("int9", np.zeros(SHAPE, np.float32))
    with pytest.raises(MalformedMessage, match="int9"):
        decode_tensor(EncodedTensor("int9", SHAPE, b""), what="outputs")
