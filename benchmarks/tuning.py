"""What each mode of [tuning] costs and reaches: the digits run, pooled in one process, from a checkpoint of a ViT.

The checkpoint is made first: the digits run's ViT, trained by timm's own forward pass on images of the digits 0 to 4.
Then each mode trains it for all ten digits, images and sounds together; sounds are new to it.

Time is the process's CPU time of windows that the modes do in turns, so that other work on the machine falls on all
alike. Memory is what autograd keeps of one window's graph, and the copies of what trains: gradient sums, optimizer,
version.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from benchmarks.pooled_tokens import Tokens, accuracy, tokenize_all
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.losses import CrossEntropy
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.run_parts import make_engine
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.server_worker.timm_import import VisionTransformer, create_model

Labels = NDArray[np.int64]
SOURCE_CLASSES = 5
PRETRAINING_EPOCHS = 20

# Learning rates: the run's own for full and last; for the others the best of three on a fifth of the training samples
# (--choose --epochs 2).
MODES: dict[str, tuple[dict[str, object], float]] = {
    "full": ({"mode": "full"}, 1e-3),
    "last 1": ({"mode": "last", "blocks": 1}, 1e-3),
    "last 1, no embeddings": ({"mode": "last", "blocks": 1, "embeddings": "none"}, 1e-3),
    "LoRA, rank 8": ({"mode": "lora", "rank": 8}, 1e-2),
    "LoRA, rank 8, all maps": ({"mode": "lora", "rank": 8, "targets": ["qkv", "proj", "fc1", "fc2"]}, 1e-2),
    "frozen": ({"mode": "frozen"}, 1e-2),
    "frozen, no embeddings": ({"mode": "frozen", "embeddings": "none"}, 1e-2),
}


def pretrain(settings: RunSettings, data: Dataset, path: Path) -> float:
    """Train a ViT on images of some classes and write it as timm reads it; return its accuracy on their test images."""
    options: dict[str, Any] = settings.model.options
    model = create_model(settings.model.name, num_classes=SOURCE_CLASSES, **options)
    assert isinstance(model, VisionTransformer)
    kernel, positions = model.patch_embed.proj.weight, model.pos_embed
    assert positions is not None
    # As a run without weights begins: tokens and positions of variance 1.
    torch.nn.init.normal_(kernel, std=kernel[0].numel() ** -0.5)
    torch.nn.init.normal_(positions, std=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    images, labels_S = source(settings, data, "train")
    rng = np.random.default_rng(0)
    for _ in range(PRETRAINING_EPOCHS):
        for rows in np.array_split(rng.permutation(len(labels_S)), max(len(labels_S) // 64, 1)):
            optimizer.zero_grad()
            noisy = images[rows] + 0.3 * torch.randn_like(images[rows])
            torch.autograd.backward(torch.nn.functional.cross_entropy(model(noisy), labels_S[rows]))
            optimizer.step()
    safetensors.torch.save_file(model.state_dict(), path)
    images, labels_S = source(settings, data, "test")
    with torch.no_grad():
        return float((model.eval()(images).argmax(dim=1) == labels_S).float().mean())


def source(settings: RunSettings, data: Dataset, split: str) -> tuple[Tensor, Tensor]:
    """Return the normalized images (S, 1, H, W) and labels (S,) of the first classes."""
    batch = data.batch(split, np.arange(data.num_samples(split)))  # type: ignore[arg-type]
    spec = settings.modalities["image"]
    assert spec.kind == "image"
    rows = np.flatnonzero(batch.targets < SOURCE_CLASSES)
    images = (batch.inputs["image"][rows].astype(np.float32) / 255 - spec.mean) / spec.std
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)), torch.from_numpy(batch.targets[rows])


@dataclass
class Contender:
    """One mode, and its state."""

    built: BuiltModel
    engine: Engine
    tokens: Tokens
    labels_S: Labels
    settings: RunSettings
    windows: Iterator[NDArray[np.intp]]
    step: int = 0

    def window(self) -> None:
        """Train one window."""
        rows = next(self.windows)
        key = ("pooled", "train", self.step)
        forwarded = self.engine.forward([ForwardItem(key, "train", {n: t[rows] for n, t in self.tokens.items()})])
        assert forwarded.group_id is not None
        gradient_BC = CrossEntropy().loss_and_gradient(forwarded.outputs[key], self.labels_S[rows]).gradient_BC
        self.engine.backward(forwarded.group_id, {key: gradient_BC}, last=True)
        self.step += 1
        progress = self.step * len(rows) / (self.settings.run.epochs * len(self.labels_S))
        self.engine.commit(len(rows), min(progress, 1.0))


def contender(settings: RunSettings, tokens: Tokens, labels_S: Labels) -> Contender:
    """Build one."""
    built = build(settings, settings.run.seed)
    size, epochs = settings.window.samples, settings.run.epochs

    def windows() -> Iterator[NDArray[np.intp]]:
        rng = np.random.default_rng(settings.run.seed)
        for _ in range(epochs):
            order = rng.permutation(len(labels_S))
            yield from (order[start : start + size] for start in range(0, len(order), size))

    return Contender(built, make_engine(settings, built), tokens, labels_S, settings, windows())


@contextmanager
def graph_bytes() -> Iterator[list[int]]:
    """Collect the bytes of what autograd keeps, each storage once, parameters apart."""
    sizes: list[int] = []
    seen: set[int] = set()

    def pack(value: Tensor) -> Tensor:
        if not value.is_leaf and value.untyped_storage().data_ptr() not in seen:
            seen.add(value.untyped_storage().data_ptr())
            sizes.append(value.untyped_storage().nbytes())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield sizes


def memory(one: Contender) -> tuple[int, int]:
    """Return the bytes of a window's graph, and of the copies of what trains (sums, two moments, a version)."""
    rows = np.arange(one.settings.window.samples)
    with graph_bytes() as sizes:
        forwarded = one.engine.forward([ForwardItem("memory", "train", {n: t[rows] for n, t in one.tokens.items()})])
    assert forwarded.group_id is not None
    one.engine.release(forwarded.group_id)
    return sum(sizes), 4 * 4 * one.built.num_trained_parameters


def settings_of(
    path: Path, weights: Path, mode: str, learning_rate: float | None, epochs: int, seed: int
) -> RunSettings:
    """Return the digits run from a checkpoint in one mode."""
    tuning, chosen = MODES[mode]
    overrides = {f"tuning.{key}": value for key, value in tuning.items()}
    rate = chosen if learning_rate is None else learning_rate
    overrides |= {"model.weights": str(weights), "optimizer.lr": rate, "run.epochs": epochs, "run.seed": seed}
    return load_run_settings(path, overrides)


def tokens_of(settings: RunSettings, data: Dataset) -> dict[str, tuple[Tokens, Labels]]:
    """Return tokens and labels of both splits: the same for all modes, whose tokenizers are the checkpoint's."""
    tokenizers = load_tokenizers(settings.modalities, build(settings, settings.run.seed).tokenizer_file)
    return {"train": tokenize_all(data, "train", tokenizers), "test": tokenize_all(data, "test", tokenizers)}


def choose(path: Path, weights: Path, epochs: int, data: Dataset) -> None:
    """Print each mode's accuracy on a fifth of the training samples, for each learning rate."""
    tokens, labels_S = tokens_of(settings_of(path, weights, "full", None, epochs, 0), data)["train"]
    is_held = np.arange(len(labels_S)) % 5 == 0
    for mode in ("LoRA, rank 8", "frozen"):
        found = []
        for rate in (1e-3, 3e-3, 1e-2):
            settings = settings_of(path, weights, mode, rate, epochs, 0)
            one = contender(settings, {n: t[~is_held] for n, t in tokens.items()}, labels_S[~is_held])
            for _ in range(epochs * -(-int((~is_held).sum()) // settings.window.samples)):
                one.window()
            held = {name: part[is_held] for name, part in tokens.items()}
            found.append(f"{rate:g}: {accuracy(one.engine, held, labels_S[is_held]):.3f}")
        print(f"{mode:24s} {'  '.join(found)}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("examples/digits.toml"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--choose", action="store_true", help="try learning rates on held-out training samples instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    data = open_dataset("demo:digits", seed=arguments.seed, options={"views": 1, "test_views": 2})
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vit.safetensors"
        reached = pretrain(load_run_settings(arguments.run), data, weights)
        print(f"checkpoint: {reached:.3f} on test images of {SOURCE_CLASSES} classes", flush=True)
        if arguments.choose:
            choose(arguments.run, weights, arguments.epochs, data)
        else:
            compare(arguments.run, weights, arguments.epochs, arguments.seed, data)


def compare(path: Path, weights: Path, epochs: int, seed: int, data: Dataset) -> None:
    """Train all modes in turns, a window each, and print what they cost and reach."""
    settings = {mode: settings_of(path, weights, mode, None, epochs, seed) for mode in MODES}
    splits = tokens_of(settings["full"], data)
    contenders = {mode: contender(settings[mode], *splits["train"]) for mode in MODES}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    held = {mode: memory(one) for mode, one in contenders.items()}
    for _ in range(epochs * -(-len(splits["train"][1]) // settings["full"].window.samples)):
        for mode, one in contenders.items():
            began = time.process_time()
            one.window()
            seconds[mode].append(time.process_time() - began)
    whole = contenders["full"].built
    print(f"{'mode':24s} trained   share   time  graph  copies  accuracy  audio  image")
    for mode, one in contenders.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[mode], seconds["full"], strict=True))
        graph, copies = (mine / full for mine, full in zip(held[mode], held["full"], strict=True))
        tokens, labels_S = splits["test"]
        alone = [accuracy(one.engine, {name: tokens[name]}, labels_S) for name in ("audio", "image")]
        num_trained = one.built.num_trained_parameters
        print(
            f"{mode:24s} {num_trained:7d}  {num_trained / whole.num_parameters:6.1%}"
            f"  {ratio:5.2f}  {graph:5.2f}  {copies:6.2f}  {accuracy(one.engine, tokens, labels_S):8.3f}"
            f"  {alone[0]:.3f}  {alone[1]:.3f}",
            flush=True,
        )
    print(f"full: {statistics.median(seconds['full']):.3f} s a window, {held['full'][0] / 1e6:.1f} MB of graph")


if __name__ == "__main__":
    main()
