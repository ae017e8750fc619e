"""Feeds damaged encodings to every decoder and byte stage, for as long as a person likes.

    python tests/support/fuzz_decoders.py --seconds 600 --seed 1

Whatever the bytes, a decoder gives finite numbers of the shape that was asked for, or raises a `CodecError`, and
takes memory that the shape bounds. Anything else stops with the codec's name, the shape and the bytes.
"""

from __future__ import annotations

import argparse
import random
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression import (
    Codec,
    CodecError,
    available_byte_stages,
    available_codecs,
    available_shuffles,
    codec_from_name,
)

MAX_BYTES_PER_ELEMENT = 64
"""Most memory that a decoder takes for each element of the shape; compression/README.md names it."""
MAX_FIXED_BYTES = 300_000
"""What it takes beside that: tables, and objects that are made on first use and kept."""

_OPTIONS = (
    "int8:block=token",
    "int8:block=5",
    "int4:block=all,symmetric",
    "int4:block=16",
    "int2:symmetric",
    "int2:block=7,round=stochastic",
)
_SHAPES = ((), (1,), (7,), (3, 8), (16, 10), (2, 5, 16), (2, 16, 128), (0, 4), (64, 1))
_LARGEST = float(np.finfo(np.float32).max)
_TELLING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x80\x7f", b"\x00\xff", b"\xff\xff\xff\x7f", b"\x00\x00\xc0\x7f")
"""Bytes that are numbers at an edge: NaN, infinity, the largest, zero, minus one."""


@dataclass
class Outcomes:
    """What came of the cases, by codec."""

    decoded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def num_cases(self) -> int:
        """Return how many cases there were."""
        return self.decoded.total() + self.refused.total()


def codecs_to_fuzz() -> list[Codec]:
    """Return every tensor codec with every byte stage and with every shuffle before one."""
    stages = ["none", *available_byte_stages(), *(f"{shuffle}+zstd" for shuffle in available_shuffles())]
    names = [f"{tensor}+{stage}" for tensor in (*available_codecs(), *_OPTIONS) for stage in stages]
    return list(dict.fromkeys(codec_from_name(name) for name in names))


def fuzz(codecs: list[Codec], seed: int, goes_on: Callable[[int], bool]) -> Outcomes:
    """Decode damaged encodings.

    Args:
        codecs: Whose decoders.
        seed: The same seed gives the same cases.
        goes_on: Asked before each case, with the number of cases so far.

    Raises:
        AssertionError: A decoder did what it must not; the text repeats the case.
    """
    generator = random.Random(seed)
    outcomes = Outcomes()
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for codec, data, shape in _cases(codecs, generator):
                if not goes_on(outcomes.num_cases):
                    return outcomes
                is_decoded = _decode(codec, data, shape)
                (outcomes.decoded if is_decoded else outcomes.refused)[codec.name] += 1
    finally:
        tracemalloc.stop()
    return outcomes


def _decode(codec: Codec, data: bytes, shape: tuple[int, ...]) -> bool:
    """Decode one case and tell whether it is a tensor; check what holds for all."""
    case = f"codec_from_name({codec.name!r}).decode(bytes.fromhex({data.hex()!r}), {shape})"
    before_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    decoded: NDArray[np.float32] | None = None
    try:
        decoded = codec.decode(data, shape)
    except CodecError:
        pass
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} in {case}") from error
    _, peak_bytes = tracemalloc.get_traced_memory()
    limit_bytes = MAX_BYTES_PER_ELEMENT * int(np.prod(shape)) + MAX_FIXED_BYTES
    assert peak_bytes - before_bytes <= limit_bytes, f"{peak_bytes - before_bytes} bytes taken by {case}"
    if decoded is None:
        return False
    assert (decoded.shape, str(decoded.dtype)) == (shape, "float32"), f"{decoded.shape} {decoded.dtype} from {case}"
    assert np.isfinite(decoded).all(), f"NaN or Inf from {case}"
    return True


def _cases(codecs: list[Codec], generator: random.Random) -> Iterator[tuple[Codec, bytes, tuple[int, ...]]]:
    """Yield codecs in turn, each with a damaged encoding and mostly the shape of what was encoded."""
    while True:
        for codec in codecs:
            shape = generator.choice(_SHAPES)
            data = codec.encode(_tensor(shape, generator))
            for _ in range(generator.randrange(1, 4)):
                data = _damaged(data, generator)
            yield codec, data, shape if generator.random() < 0.9 else generator.choice(_SHAPES)


def _tensor(shape: tuple[int, ...], generator: random.Random) -> NDArray[np.float32]:
    """Make a tensor of one of several kinds: noise of any magnitude, constant, sparse, at float32's edges."""
    numbers = np.random.default_rng(generator.getrandbits(64))
    noise = numbers.standard_normal(shape)
    kind = generator.randrange(4)
    if kind == 0:
        return np.asarray(np.clip(noise * 10.0 ** generator.randrange(-45, 38), -_LARGEST, _LARGEST), np.float32)
    if kind == 1:
        return np.full(shape, generator.choice([0.0, -0.0, 1.0, 2.0**-149, _LARGEST, -_LARGEST]), np.float32)
    if kind == 2:
        return np.asarray(np.where(noise > 1, noise, 0), np.float32)
    return np.asarray(numbers.choice([0.0, 2.0**-149, -(2.0**-126), 1.0, -_LARGEST, _LARGEST], shape), np.float32)


def _damaged(data: bytes, generator: random.Random) -> bytes:
    """Damage bytes in one of several ways; most keep the length, as another is refused at once."""
    changed = bytearray(data)
    position = generator.randrange(len(data)) if data else 0
    kind = generator.randrange(10)
    if kind == 0:
        return data[:position]
    if kind == 1:
        return data[:position] + generator.randbytes(generator.randrange(1, 9)) + data[position:]
    if kind == 2:
        return generator.randbytes(len(data))
    if kind == 3:
        return data
    if not data:
        return data
    if kind < 6:
        changed[position] ^= 1 << generator.randrange(8)
    elif kind < 8:
        changed[position] = generator.randrange(256)
    else:
        telling = generator.choice(_TELLING)[: len(data) - position]
        changed[position : position + len(telling)] = telling
    return bytes(changed)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end_s = time.monotonic() + arguments.seconds
    outcomes = fuzz(codecs_to_fuzz(), arguments.seed, lambda _: time.monotonic() < end_s)
    print(f"{outcomes.num_cases} cases: {outcomes.decoded.total()} decoded, {outcomes.refused.total()} refused")


if __name__ == "__main__":
    main()
