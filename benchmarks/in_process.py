"""The arithmetic of the digits run in one process: same data, same codecs, same engine, no broker and no messages.

Prints training steps (microbatches) a second. `benchmarks/network.py` alternates it with the real thing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cutlayer.broker.tensors import decode_tensor, encode_tensor
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.run_parts import make_engine, make_manifest, num_threads
from cutlayer.server_worker.settings import load_run_settings


def steps_per_second(run: Path, num_sites: int, epochs: int) -> float:
    """Train for some epochs over all sites and return microbatches a second.

    The first epoch is not timed: it makes the samples and warms the allocator, as in the networked run.
    """
    settings = load_run_settings(
        run, {"run.epochs": epochs + 1, "run.microbatch_samples": 32, "window.samples": 32 * num_sites}
    )
    torch.set_num_threads(num_threads(settings))  # as the worker has it
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    engine = make_engine(settings, built)
    sites: dict[str, tuple[ClientSide, EpochPlan]] = {}
    for index in range(num_sites):
        topic = f"site/{index}"
        data = open_dataset("demo:digits", shard=Shard(index, num_sites), seed=settings.run.seed)
        plan = EpochPlan(
            settings.run.seed,
            topic,
            settings.run.epochs,
            data.num_samples("train"),
            data.num_samples("test"),
            settings.run.microbatch_samples,
        )
        sites[topic] = ClientSide(manifest, built.tokenizer_file, data), plan
    planned = settings.run.epochs * sum(plan.num_train for _, plan in sites.values())
    names = tuple(sorted(manifest.modalities))
    codecs = manifest.codecs
    done = num_steps = 0
    first_timed_step = min(plan.steps_per_epoch for _, plan in sites.values())
    start = time.perf_counter()
    for step in range(max(plan.total_steps for _, plan in sites.values())):
        if step == first_timed_step:
            start, num_steps = time.perf_counter(), 0
        items, labels = [], {}
        for topic, (client, plan) in sites.items():
            if step >= plan.total_steps:
                continue
            microbatch = client.tokenize("train", plan.train_indices(step), names)
            tokens = {
                name: decode_tensor(encode_tensor(codecs.activations, tokens_BND), what=name)
                for name, tokens_BND in microbatch.tokens
            }
            items.append(ForwardItem((topic, "train", step), "train", tokens))
            labels[topic, "train", step] = client, microbatch.targets
        forwarded = engine.forward(items)
        assert forwarded.group_id is not None
        gradients: dict[Hashable, NDArray[np.float32]] = {}
        for key, (client, labels_B) in labels.items():
            outputs = encode_tensor(codecs.outputs, forwarded.outputs[key])
            result = client.loss(outputs, labels_B, codecs.outputs)
            gradients[key] = decode_tensor(encode_tensor(codecs.output_gradients, result.gradient_BC), what="gradients")
        engine.backward(forwarded.group_id, gradients, last=True)
        num_samples = sum(item.num_samples for item in items)
        done += num_samples
        engine.commit(num_samples, done / planned)
        num_steps += len(items)
    return num_steps / (time.perf_counter() - start)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path(__file__).with_name("digits_int8.toml"))
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    print(f"{steps_per_second(arguments.run, arguments.sites, arguments.epochs):.4f}")


if __name__ == "__main__":
    main()
