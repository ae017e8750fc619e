"""Bytes a sample of the digits run's activations, and of their change, under some codecs.

One microbatch after the other, as an agent sends them; then their change after the tokenizers' weights have changed.
Prints a Markdown table. The relative error is the root mean square error over the root mean square of the tensor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression import codec_from_name
from cutlayer.compression.delta import encode_change
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import load_run_settings

CODECS = (
    "int8+zstd",
    "int4+zstd",
    "int2+zstd",
    "lowrank:error=0.01",
    "lowrank:error=0.03",
    "lowrank:error=0.03+zstd",
    "lowrank:error=0.05",
    "lowrank:error=0.1",
    "lowrank:error=0.2",
)
DRIFTS = (0.1, 0.03)
Floats = NDArray[np.float32]


def patches_and_weights(run: Path, num_samples: int) -> dict[str, tuple[Floats, Floats]]:
    """Return each modality's patches (S, N, P) of random train samples, and its tokenizer's weights (P, D)."""
    settings = load_run_settings(run)
    tokenizers = load_tokenizers(settings.modalities, build(settings, settings.run.seed).tokenizer_file)
    data = open_dataset("demo:digits", seed=settings.run.seed)
    indices = np.random.default_rng(settings.run.seed).permutation(data.num_samples("train"))[:num_samples]
    inputs = data.batch("train", indices).inputs
    result = {}
    for name, tokenizer in tokenizers.items():
        patches_SNP = tokenizer.features(inputs[name])
        num_values = patches_SNP.shape[-1]
        # The tokens of unit patches, less that of none.
        weight_PD = tokenizer.project(np.eye(num_values, dtype=np.float32)[None])[0]
        result[name] = patches_SNP, weight_PD - tokenizer.project(np.zeros((1, 1, num_values), np.float32))[0]
    return result


def relative_error(decoded: NDArray[np.float32 | np.float16], exact: Floats) -> float:
    """Return the root mean square error over the root mean square."""
    difference = decoded.astype(np.float64) - exact
    return float(np.sqrt(np.square(difference).mean() / np.square(exact, dtype=np.float64).mean()))


def shortest_ms(call: Callable[[], object], repeats: int = 9) -> float:
    """Return the shortest time of some calls, milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def print_activations(name: str, activations_SND: Floats, microbatch: int) -> None:
    """Print a row for each codec."""
    batches = [activations_SND[start : start + microbatch] for start in range(0, len(activations_SND), microbatch)]
    for codec in map(codec_from_name, CODECS):
        encoded = [codec.encode(batch) for batch in batches]
        decoded = [codec.decode(data, batch.shape) for data, batch in zip(encoded, batches, strict=True)]
        num_bytes = sum(map(len, encoded)) / len(activations_SND)
        first = batches[0], encoded[0]
        milliseconds = (
            shortest_ms(lambda codec=codec, first=first: codec.encode(first[0])),  # type: ignore[misc]
            shortest_ms(lambda codec=codec, first=first: codec.decode(first[1], first[0].shape)),  # type: ignore[misc]
        )
        error = relative_error(np.concatenate(decoded), activations_SND)
        print(
            f"| {name} | {microbatch} | `{codec.name}` | {num_bytes:.1f} | {error:.4f} "
            f"| {milliseconds[0]:.2f}, {milliseconds[1]:.2f} |"
        )


def print_changes(name: str, patches_SNP: Floats, weight_PD: Floats, microbatch: int) -> None:
    """Print a row for each size of change: bytes of the second visit, of samples that both ends have of the first."""
    codec = codec_from_name("lowrank:error=0.03")
    for drift in DRIFTS:
        noise_PD = np.random.default_rng(7).standard_normal(weight_PD.shape).astype(np.float32)
        changed_PD = weight_PD + np.float32(drift * weight_PD.std()) * noise_PD
        num_bytes, errors = 0, []
        for start in range(0, len(patches_SNP), microbatch):
            batch_BNP = patches_SNP[start : start + microbatch]
            before_BND, after_BND = batch_BNP @ weight_PD, batch_BNP @ changed_PD
            _, base_BND = encode_change(codec, before_BND, np.zeros(before_BND.shape, np.float16))
            data, decoded_BND = encode_change(codec, after_BND, base_BND)
            num_bytes += len(data)
            errors.append(relative_error(decoded_BND, after_BND))
        share = num_bytes / len(patches_SNP)
        print(f"| {name} | {microbatch} | change by {drift}, `{codec.name}` | {share:.1f} | {np.mean(errors):.4f} | |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("examples/digits.toml"))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--microbatch", type=int, nargs="+", default=[16, 32, 128])
    arguments = parser.parse_args()
    print("| modality | microbatch | codec | bytes a sample | relative error | encode, decode (ms) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (patches_SNP, weight_PD) in patches_and_weights(arguments.run, arguments.samples).items():
        for microbatch in arguments.microbatch:
            print_activations(name, patches_SNP @ weight_PD, microbatch)
            print_changes(name, patches_SNP, weight_PD, microbatch)


if __name__ == "__main__":
    main()
