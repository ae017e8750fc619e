"""What encoding costs an agent beside its tokenizers: processor time of one microbatch, one thread, by codec.

A sample's first visit computes its patches and spectrogram and projects them; a later one, where nothing is kept at the
worker, only projects. The codecs' times are ratios to the first and to the second, each the median of rounds in which
all of them take turns, so that a machine that is slow for a while is slow for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cutlayer.broker.manifest import CodecNames
from cutlayer.compression import codec_from_name
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import load_run_settings

DEFAULT = CodecNames().activations
CODECS = (DEFAULT, "int8", "int4+zstd", "lowrank:error=0.1")


def milliseconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    start = time.process_time_ns()
    call()
    return (time.process_time_ns() - start) / 1e6


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("examples/digits.toml"))
    parser.add_argument("--microbatch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    settings = load_run_settings(arguments.run)
    tokenizers = load_tokenizers(settings.modalities, build(settings, settings.run.seed).tokenizer_file)
    inputs = open_dataset("demo:digits", seed=settings.run.seed).batch("train", np.arange(arguments.microbatch)).inputs
    patches = {name: tokenizer.features(inputs[name]) for name, tokenizer in tokenizers.items()}
    tokens = {name: tokenizer.project(patches[name]) for name, tokenizer in tokenizers.items()}
    calls: dict[str, Callable[[], object]] = {
        "first visit": lambda: [tokenizer.tokenize(inputs[name]) for name, tokenizer in tokenizers.items()],
        "later visit": lambda: [tokenizer.project(patches[name]) for name, tokenizer in tokenizers.items()],
    }
    for name in CODECS:
        codec = codec_from_name(name)
        calls[name] = lambda codec=codec: [codec.encode(array) for array in tokens.values()]  # type: ignore[misc]
    rounds = [{name: milliseconds(call) for name, call in calls.items()} for _ in range(arguments.rounds)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in calls}
    print(f"tokenizers, {arguments.microbatch} samples: first visit {medians['first visit']:.2f} ms, later")
    print(f"{medians['later visit']:.2f} ms of processor time\n")
    print("| codec | encode (ms) | of a first visit | of a later visit |\n| --- | --- | --- | --- |")
    for name in CODECS:
        shares = [
            statistics.median(times[name] / times[visit] for times in rounds)
            for visit in ("first visit", "later visit")
        ]
        label = f"`{name}`, the default" if name == DEFAULT else f"`{name}`"
        print(f"| {label} | {medians[name]:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |")


if __name__ == "__main__":
    main()
