"""What keeping activations costs: milliseconds to put and to get a microbatch, and bytes on disk.

The activations are those of the digits run, and of photographs at ViT-B/16's size under a random patch projection, both
as they come out of the wire's codec. Samples are put in order and fetched in random order, twice: in the first epoch
with everything put just before, in the second after the store was opened again. The operating system's page cache is
warm, as it is in a run that fits into memory: a disk that must be read adds its own time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

from cutlayer.compression import codec_from_name
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.activation_store import ActivationStore, MemoryActivationStore
from cutlayer.server_worker.disk_store import DiskActivationStore
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import load_run_settings

Tokens = Mapping[str, NDArray[np.float32]]

MICROBATCH = 32
VIT_B_TOKENS, VIT_B_WIDTH, PATCH = 197, 768, 16


def digits_tokens(run: Path, num_samples: int) -> Tokens:
    """Return the demo's activations: 16 tokens of width 128 for each modality, (b, K, D)."""
    settings = load_run_settings(run, {})
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    data = open_dataset("demo:digits", shard=Shard(0, 8), seed=settings.run.seed)
    client = ClientSide(manifest, built.tokenizer_file, data)
    microbatch = client.tokenize("train", np.arange(num_samples), tuple(sorted(manifest.modalities)))
    return dict(microbatch.tokens)


def photo_tokens(num_samples: int) -> Tokens:
    """Return crops of photographs as ViT-B/16 would get them: a class token and 196 patches, (b, 197, 768)."""
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    rows = (VIT_B_TOKENS - 1) // 14
    side = rows * PATCH
    weight = rng.normal(size=(3 * PATCH * PATCH, VIT_B_WIDTH)).astype(np.float32) / 28
    tokens_bKD = np.empty((num_samples, VIT_B_TOKENS, VIT_B_WIDTH), np.float32)
    tokens_bKD[:, 0] = rng.normal(size=VIT_B_WIDTH) / 50
    for number in range(num_samples):
        photo = photos[number % len(photos)]
        top, left = rng.integers(0, photo.shape[0] - side), rng.integers(0, photo.shape[1] - side)
        crop = photo[top : top + side, left : left + side].astype(np.float32) / 127.5 - 1
        patches = crop.reshape(rows, PATCH, rows, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(rows * rows, -1)
        tokens_bKD[number, 1:] = patches @ weight
    return {"image": tokens_bKD}


def through(codec: str, tokens: Tokens) -> Tokens:
    """Return what a worker decodes."""
    coder = codec_from_name(codec)
    return {name: coder.decode(coder.encode(values), values.shape) for name, values in tokens.items()}


def put_ms(store: ActivationStore, tokens: Tokens, num_samples: int) -> list[float]:
    """Put all samples and return milliseconds a microbatch."""
    times = []
    distinct = len(next(iter(tokens.values())))
    for first in range(0, num_samples, MICROBATCH):
        rows = np.arange(first, first + MICROBATCH) % distinct
        microbatch = {name: values[rows] for name, values in tokens.items()}
        samples = np.arange(first, first + MICROBATCH)
        start = time.perf_counter()
        kept = store.put("a", samples, microbatch)
        times.append(1e3 * (time.perf_counter() - start))
        assert kept.all()
    return times


def get_ms(store: ActivationStore, tokens: Tokens, num_samples: int, seed: int) -> list[float]:
    """Get all samples in random order and return milliseconds a microbatch."""
    times = []
    distinct = len(next(iter(tokens.values())))
    order = np.random.default_rng(seed).permutation(num_samples).reshape(-1, MICROBATCH)
    for samples in order:
        start = time.perf_counter()
        fetched = store.get("a", samples, tuple(tokens))
        times.append(1e3 * (time.perf_counter() - start))
        for name, values in tokens.items():
            assert np.array_equal(fetched.tokens[name], values[samples % distinct])
    return times


def measure(label: str, codec: str | None, tokens: Tokens, num_samples: int, folder: Path) -> None:
    """Print a row of the table for one store."""

    def opened() -> ActivationStore:
        codecs = ("identity",) if codec is None else tuple(codec.split("|"))
        return DiskActivationStore(folder, "benchmark", max_bytes=1 << 40, codecs=codecs)

    store = MemoryActivationStore() if codec is None else opened()
    put = put_ms(store, tokens, num_samples)
    got = get_ms(store, tokens, num_samples, seed=1)
    if codec is not None:
        store.close()
        store = opened()
    again = get_ms(store, tokens, num_samples, seed=2)
    num_bytes = store.stored_bytes
    if codec is not None:
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    raw_bytes = sum(values[0].nbytes for values in tokens.values())
    raw_mb = raw_bytes * MICROBATCH / 1e6
    start = time.perf_counter()
    store.forget("a")
    forget_s = time.perf_counter() - start
    store.delete()
    print(
        f"{label:22} {codec or 'in memory':28}"
        f" {median(put):7.2f} {max(put):7.1f} {1e3 * raw_mb / median(put):7.0f}"
        f" {median(got):7.2f} {median(again):7.2f} {1e3 * raw_mb / median(again):7.0f}"
        f" {num_bytes / num_samples:9.0f} {raw_bytes:7} {forget_s:7.2f}",
        flush=True,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path(__file__).with_name("digits_int8.toml"))
    parser.add_argument("--wire", nargs="+", default=["int8+zstd:3"], help="codecs that the activations came through")
    parser.add_argument(
        "--codec",
        nargs="+",
        default=["identity", "identity+lz4", "identity+zstd:1", "identity+zstd:3"],
        help="how the store keeps them; A|B tries A first",
    )
    parser.add_argument("--samples", type=int, nargs=2, default=[3200, 640], help="of digits and of ViT-B's size")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the system's for temporary files if none")
    arguments = parser.parse_args()
    print(
        f"{'activations':22} {'kept as':28} put: ms     max    MB/s get: ms  again    MB/s  B/sample     raw forget: s"
    )
    sizes = [("digits", digits_tokens(arguments.run, 320)), ("ViT-B", photo_tokens(64))]
    for wire in arguments.wire:
        for (label, tokens), num_samples in zip(sizes, arguments.samples, strict=True):
            for codec in (None, *arguments.codec):
                with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                    measure(f"{label}, {wire}", codec, through(wire, tokens), num_samples, Path(folder) / "activations")


if __name__ == "__main__":
    main()
