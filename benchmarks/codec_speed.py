"""How fast each codec encodes and decodes on one core, and its ratio; Gaussian noise, which compresses worst.

Prints the table in compression/README.md, in MB of float32 a second of processor time. The best of many calls: on a
machine that does other things as well, that is nearest to what the code can do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from cutlayer.compression import codec_from_name

NAMES = (
    "identity",
    "identity+shuffle+zstd:3",
    "identity+bitshuffle+zstd:3",
    "fp16",
    "fp16+zstd:3",
    "bf16",
    "bf16+zstd:3",
    "bf16+shuffle+zstd:3",
    "bf16+lz4",
    "bf16+bitshuffle+lz4",
    "int8",
    "int8+lz4",
    "int8+zstd:1",
    "int8+zstd:3",
    "int8:block=token",
    "int8:block=all",
    "int8:round=stochastic",
    "int4",
    "int4+zstd:3",
    "int4:block=64",
    "int4:block=16",
    "int4:block=all",
    "int4:round=stochastic",
    "int2",
    "int2+zstd:3",
    "int2:symmetric,round=stochastic",
    "topk",
    "topk:bits=8",
)
SHAPES = ((32, 16, 128), (32, 197, 768))
MEGABYTE = 1e6


def best_s(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest processor time of as many calls as fit into so many seconds, three at least."""
    best, end, num_calls = float("inf"), time.perf_counter() + seconds, 0
    while num_calls < 3 or time.perf_counter() < end:
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
        num_calls += 1
    return best


def cell(name: str, shape: tuple[int, ...], seconds: float) -> str:
    """Measure one codec on one shape: encode, decode, ratio."""
    codec = codec_from_name(name)
    array = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    encoded = codec.encode(array)
    megabytes = array.nbytes / MEGABYTE
    encode = megabytes / best_s(lambda: codec.encode(array), seconds)
    decode = megabytes / best_s(lambda: codec.decode(encoded, shape), seconds)
    return f"{float(f'{encode:.2g}'):,.0f}, {float(f'{decode:.2g}'):,.0f}, {array.nbytes / len(encoded):.2f}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codecs", nargs="*", default=NAMES, help="names; those of the table if none is given")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    arguments = parser.parse_args()
    print("| codec | " + " | ".join(f"{shape}: encode, decode, ratio" for shape in SHAPES) + " |")
    print("| --- |" + " --- |" * len(SHAPES))
    for name in arguments.codecs:
        print(
            f"| `{name}` | " + " | ".join(cell(name, shape, arguments.seconds) for shape in SHAPES) + " |", flush=True
        )


if __name__ == "__main__":
    main()
