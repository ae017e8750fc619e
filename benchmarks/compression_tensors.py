"""Every codec on real tensors at the cut: bytes, what a byte stage could still gain, speed, error.

The tensors are those of a digits model after some epochs (cut_tensors.py), microbatch by microbatch, as they would be
sent. Each result is a line of JSON; `python -m benchmarks.compression_page` makes the tables of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.codec_speed import MEGABYTE, best_s
from benchmarks.cut_tensors import MICROBATCH, CutTensors, Floats, Rows, train
from benchmarks.low_rank import relative_error
from numpy.typing import NDArray

from cutlayer.compression import Codec, codec_from_name
from cutlayer.compression.delta import SampleMemory, encode_change
from cutlayer.compression.error_feedback import ErrorFeedback

_EXACT = ("identity", "identity+shuffle+zstd")
_HALF = ("fp16", "fp16+shuffle+zstd", "bf16", "bf16+shuffle+zstd", "bf16+bitshuffle+lz4")
_SPARSE = ("topk", "topk:bits=8", "topk:bits=8+zstd", "randtopk", "randtopk:bits=8")
ACTIVATIONS = (
    *_EXACT,
    *_HALF,
    *("int8", "int8+zstd", "int8:block=token", "int8:block=all", "int8:block=all+zstd", "int8:round=stochastic"),
    *("int4", "int4+zstd", "int4:block=16", "int4:block=64", "int4:block=64+zstd", "int4:block=all+zstd"),
    *("int4:round=stochastic", "int2", "int2+zstd", "int2:block=16"),
    *_SPARSE,
    *("lowrank:error=0.05", "lowrank:error=0.1", "lowrank:error=0.2"),
)
ACTIVATION_GRADIENTS = (
    *_EXACT,
    *_HALF,
    *("int8", "int8+zstd", "int8:symmetric", "int8:block=all,symmetric+zstd", "int8:symmetric,round=stochastic"),
    *("int4", "int4:symmetric", "int4:symmetric+zstd", "int4:block=16,symmetric", "int4:block=64,symmetric"),
    *("int4:block=all,symmetric+zstd", "int4:symmetric,round=stochastic"),
    *("int2:symmetric", "int2:symmetric+zstd", "int2:symmetric,round=stochastic"),
    *_SPARSE,
    *("entropy:error=0.1", "entropy:error=0.3"),
    *("lowrank:error=0.05", "lowrank:error=0.1", "lowrank:error=0.2", "lowrank:error=0.3"),
)
OUTPUTS = (
    *_EXACT,
    *("fp16", "fp16+shuffle+zstd", "bf16", "bf16+shuffle+zstd"),
    *("int8", "int8:block=token", "int8:block=all", "int8:block=all+zstd", "int8:block=all,round=stochastic"),
    *("int4", "int4:block=16", "int4:block=64", "int4:block=all", "int4:block=all+zstd"),
    *("int4:block=all,round=stochastic", "int2", "int2:block=all", "int2:block=all+zstd"),
    *("topk", "topk:bits=8", "randtopk:bits=8"),
    *("entropy:error=0.03", "entropy:error=0.1", "entropy:error=0.2", "entropy:error=0.3", "lowrank:error=0.1"),
)
OUTPUT_GRADIENTS = (
    *_EXACT,
    *("fp16", "fp16+shuffle+zstd", "bf16", "bf16+shuffle+zstd"),
    *("int8", "int8:block=token", "int8:block=all", "int8:block=all+zstd", "int8:block=all,symmetric"),
    *("int8:block=all,symmetric,round=stochastic", "int4", "int4:symmetric", "int4:block=16,symmetric"),
    *("int4:block=all,symmetric", "int4:block=all,symmetric+zstd", "int4:block=all,symmetric,round=stochastic"),
    *("int2:block=all,symmetric", "int2:block=all,symmetric,round=stochastic"),
    *("topk", "topk:bits=8", "randtopk:bits=8"),
    *("entropy:error=0.03", "entropy:error=0.1", "entropy:error=0.2", "entropy:error=0.3", "lowrank:error=0.1"),
)
CODECS = {
    "activations": ACTIVATIONS,
    "outputs": OUTPUTS,
    "output gradients": OUTPUT_GRADIENTS,
    "activation gradients": ACTIVATION_GRADIENTS,
}
CHANGES = ("int8+zstd", "int4+zstd", "int2+zstd", "lowrank:error=0.05", "lowrank:error=0.1", "lowrank:error=0.2")
WEIGHT_GRADIENTS = (
    *("int8:symmetric", "int4:symmetric", "int4:symmetric,round=stochastic", "int2:symmetric"),
    *("int2:symmetric,round=stochastic", "topk:bits=8", "topk:ratio=0.02,bits=8", "entropy:error=0.3"),
)
Row = dict[str, Any]
GROUP_S = 2e-3


def byte_entropy(encoded: Sequence[bytes]) -> float:
    """Return the order-0 entropy of messages, in bits a byte: Shannon's, of the frequencies of the 256 values in all.

    A coder that takes byte by byte, and knows these frequencies, comes to this share of 8 bits at best. A stage that
    finds repetitions or sees order may come below.
    """
    counts = np.bincount(np.frombuffer(b"".join(encoded), np.uint8), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, -float((shares * np.log2(shares)).sum()))


def shortest_s(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest processor time of a call, in groups of calls that take two milliseconds.

    By groups, since single calls of some microseconds were now and then measured to take none at all.
    """
    num_calls = max(1, int(GROUP_S / max(best_s(call, 0.0), 1e-6)))

    def group() -> None:
        for _ in range(num_calls):
            call()

    return best_s(group, seconds) / num_calls


def measure(codec: Codec, tensors: Sequence[Floats]) -> Row:
    """Measure bytes and errors of one codec on tensors of one kind."""
    encoded = [codec.encode(tensor) for tensor in tensors]
    decoded = [codec.decode(data, tensor.shape) for data, tensor in zip(encoded, tensors, strict=True)]
    return {
        "codec": codec.name,
        "bytes_per_element": sum(map(len, encoded)) / sum(tensor.size for tensor in tensors),
        "entropy_bits": byte_entropy(encoded),
        "relative_error": relative_error(np.concatenate(decoded), np.concatenate(tensors)),
    }


def speeds(codec: Codec, tensor: Floats, seconds: float) -> dict[str, float]:
    """Measure how fast one codec encodes and decodes a tensor, in MB of float32 a second of processor time."""
    data, megabytes = codec.encode(tensor), tensor.nbytes / MEGABYTE
    return {
        "encode_mb_s": megabytes / shortest_s(lambda: codec.encode(tensor), seconds),
        "decode_mb_s": megabytes / shortest_s(lambda: codec.decode(data, tensor.shape), seconds),
    }


def measure_changes(codec: Codec, visits: Sequence[Sequence[tuple[Rows, Floats]]]) -> Row:
    """Measure what a codec makes of activations, epoch by epoch, whole and as changes since the last visit."""
    memory = SampleMemory()
    whole, changes, error = [], [], 0.0
    for epoch in visits:
        whole.append(sum(len(codec.encode(tokens_BND)) for _, tokens_BND in epoch))
        num_bytes, decoded = 0, []
        for rows_B, tokens_BND in epoch:
            known = memory.recall(rows_B, tokens_BND.shape[1:])
            data, reconstruction_BND = encode_change(codec, tokens_BND, known.base_BND)
            memory.keep(rows_B, reconstruction_BND)
            num_bytes += len(data)
            decoded.append(reconstruction_BND)
        changes.append(num_bytes)
        error = relative_error(np.concatenate(decoded), np.concatenate([tokens_BND for _, tokens_BND in epoch]))
    num_elements = sum(tokens_BND.size for _, tokens_BND in visits[0])
    return {
        "codec": codec.name,
        "whole_bytes_per_element": [num_bytes / num_elements for num_bytes in whole],
        "change_bytes_per_element": [num_bytes / num_elements for num_bytes in changes],
        "relative_error": error,
    }


def measure_error_feedback(codec: Codec, gradients: Sequence[Floats]) -> Row:
    """Measure how far the sum of decoded gradients is from their sum, without and with error feedback."""
    feedback = ErrorFeedback(codec)
    plain = [codec.encode(gradient_PD) for gradient_PD in gradients]
    fed = [feedback.encode("weight", gradient_PD) for gradient_PD in gradients]
    exact_PD = _sum(gradients)
    shape = gradients[0].shape
    decoded = [codec.decode(data, shape) for data in plain]
    return {
        "codec": codec.name,
        "num_steps": len(gradients),
        "bytes_per_element": sum(map(len, plain)) / sum(gradient_PD.size for gradient_PD in gradients),
        "feedback_bytes_per_element": sum(map(len, fed)) / sum(gradient_PD.size for gradient_PD in gradients),
        "relative_error": relative_error(np.stack(decoded), np.stack(gradients)),
        "sum_relative_error": relative_error(_sum(decoded), exact_PD),
        "feedback_sum_relative_error": relative_error(_sum([codec.decode(data, shape) for data in fed]), exact_PD),
    }


def _sum(arrays: Sequence[Floats]) -> NDArray[np.float32]:
    total: Floats = np.sum([array.astype(np.float64) for array in arrays], axis=0).astype(np.float32)
    return total


def codec_rows(taken: CutTensors, seconds: float, rounds: int) -> list[Row]:
    """Measure every codec on its kinds of tensors.

    Speeds are the best of some rounds, minutes apart: what else a machine does shall not fall on one codec alone.
    """
    measured = [
        ({"kind": kind, "modality": modality, "shape": tensors[0].shape, "messages": len(tensors)}, codec, tensors)
        for kind, by_modality in taken.tensors.items()
        for modality, tensors in by_modality.items()
        for codec in map(codec_from_name, CODECS[kind])
    ]
    rows: list[Row] = [{**row, **measure(codec, tensors)} for row, codec, tensors in measured]
    for _ in range(rounds):
        for row, (_, codec, tensors) in zip(rows, measured, strict=True):
            for key, speed in speeds(codec, tensors[0], seconds / rounds).items():
                row[key] = max(row.get(key, 0.0), speed)
    return rows


def measurements(taken: CutTensors, seconds: float, rounds: int) -> Iterator[Row]:
    """Measure everything, a row each."""
    yield from codec_rows(taken, seconds, rounds)
    for modality, visits in taken.visits.items():
        for name in CHANGES:
            yield {"kind": "changes", "modality": modality, **measure_changes(codec_from_name(name), visits)}
    for modality, gradients in taken.weight_gradients.items():
        for name in WEIGHT_GRADIENTS:
            row = measure_error_feedback(codec_from_name(name), gradients)
            yield {"kind": "weight gradients", "modality": modality, "shape": gradients[0].shape, **row}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--microbatches", type=int, default=64, help=f"of {MICROBATCH} samples, of the trained model")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure of speed, all rounds together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/compression/tensors.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    taken = train(arguments.seed, arguments.epochs, arguments.microbatches)
    run = {
        "kind": "run",
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "microbatch": MICROBATCH,
        "microbatches": arguments.microbatches,
        "accuracy": taken.accuracy,
        "processor": _processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", encoding="utf-8") as file:
        for row in itertools.chain([run], measurements(taken, arguments.seconds, arguments.rounds)):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row["kind"], row.get("modality", ""), row.get("codec", f"accuracy {taken.accuracy:.4f}"), flush=True)


def _processor() -> str:
    """Return the processor's name, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
