"""A few thousand damaged encodings for every decoder; `support.fuzz_decoders` runs for longer."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.compression import available_codecs
from cutlayer.compression.identity import IdentityCodec
from support.fuzz_decoders import codecs_to_fuzz, fuzz


def test_damaged_encodings_decode_to_finite_numbers_or_raise_codec_errors_within_bounded_memory() -> None:
    codecs = codecs_to_fuzz()
    outcomes = fuzz(codecs, seed=7, goes_on=lambda num_cases: num_cases < 40 * len(codecs))
    for codec in codecs:
        assert outcomes.decoded[codec.name] > 0
        assert outcomes.refused[codec.name] > 0
    assert {name.partition(":")[0].partition("+")[0] for name in outcomes.decoded} == set(available_codecs())


class NanCodec(IdentityCodec):
    """Lets NaN through."""

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return super().decode(data, shape) * np.float32(np.nan)


class CarelessCodec(IdentityCodec):
    """Trusts the length of the bytes."""

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.frombuffer(data, np.float32).reshape(shape)


class GreedyCodec(IdentityCodec):
    """Takes memory before it looks."""

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        np.empty(4_000_000, np.uint8)
        return super().decode(data, shape)


@pytest.mark.parametrize(
    ("codec", "complaint"),
    [(NanCodec(), "NaN or Inf from"), (CarelessCodec(), "ValueError"), (GreedyCodec(), "bytes taken by")],
)
def test_a_decoder_that_does_what_it_must_not_is_found(codec: IdentityCodec, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        fuzz([codec], seed=7, goes_on=lambda num_cases: num_cases < 500)
