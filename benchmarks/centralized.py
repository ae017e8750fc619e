"""The reference that needs all data in one place: the same model, epochs and batch, trained on the pooled samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import Dataset, Split
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.losses import CrossEntropy
from cutlayer.edge_agent.tokenizers import Tokenizer, load_tokenizers
from cutlayer.server_worker.engine import Engine, ForwardItem
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_engine, num_threads
from cutlayer.server_worker.settings import RunSettings, load_run_settings

Tokens = dict[str, NDArray[np.float32]]


def tokenize_all(data: Dataset, split: Split, tokenizers: dict[str, Tokenizer]) -> tuple[Tokens, NDArray[np.int64]]:
    """Return the tokens (S, N, D) of each modality and the labels (S,) of a whole split."""
    indices = np.arange(data.num_samples(split))
    batches = [data.batch(split, part) for part in np.array_split(indices, max(len(indices) // 256, 1))]
    tokens = {
        name: np.concatenate([tokenizers[name].tokenize(batch.inputs[name]) for batch in batches])
        for name in tokenizers
    }
    return tokens, np.concatenate([batch.targets for batch in batches])


def train(settings: RunSettings, names: tuple[str, ...]) -> dict[str, float]:
    """Train on the pooled samples given the named modalities; return test accuracy given all, and given each alone."""
    built = build(settings, settings.run.seed)
    if len(names) == 1:
        model = settings.model.model_copy(update={"modality_dropout": 0.0})
        settings = settings.model_copy(update={"model": model})
    engine = make_engine(settings, built)
    tokenizers = load_tokenizers(settings.modalities, built.tokenizer_file)
    data = open_dataset("demo:digits", seed=settings.run.seed)
    tokens, labels_S = tokenize_all(data, "train", tokenizers)
    loss = CrossEntropy()
    rng = np.random.default_rng(settings.run.seed)
    batch_samples, step = settings.window.samples, 0
    planned = settings.run.epochs * len(labels_S)
    done = 0
    for _ in range(settings.run.epochs):
        order = rng.permutation(len(labels_S))
        for start in range(0, len(order), batch_samples):
            rows = order[start : start + batch_samples]
            key = ("pooled", "train", step)
            forwarded = engine.forward([ForwardItem(key, "train", {name: tokens[name][rows] for name in names})])
            assert forwarded.group_id is not None
            gradient_BC = loss.loss_and_gradient(forwarded.outputs[key], labels_S[rows]).gradient_BC
            engine.backward(forwarded.group_id, {key: gradient_BC}, last=True)
            done += len(rows)
            step += 1
            engine.commit(len(rows), done / planned)
    test_tokens, test_labels_S = tokenize_all(data, "test", tokenizers)
    choices = {"joint": names} if len(names) == 1 else {"joint": names} | {name: (name,) for name in names}
    return {
        given: accuracy(engine, {name: test_tokens[name] for name in chosen}, test_labels_S)
        for given, chosen in choices.items()
    }


def accuracy(engine: Engine, tokens: Tokens, labels_S: NDArray[np.int64]) -> float:
    """Return the share of samples whose largest output is their label."""
    num_correct = 0
    for start in range(0, len(labels_S), 256):
        rows = slice(start, start + 256)
        outputs = engine.forward([ForwardItem("test", "eval", {name: tokens[name][rows] for name in tokens})]).outputs
        num_correct += int((outputs["test"].argmax(axis=1) == labels_S[rows]).sum())
    return num_correct / len(labels_S)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("examples/digits.toml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--modality", default=None, help="train on this modality only")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for one less than cores, as a worker")
    arguments = parser.parse_args()
    settings = load_run_settings(arguments.run, {"run.seed": arguments.seed, "run.epochs": arguments.epochs})
    torch.set_num_threads(arguments.threads or num_threads(settings))
    names = (arguments.modality,) if arguments.modality else tuple(sorted(settings.modalities))
    print(json.dumps(train(settings, names)))


if __name__ == "__main__":
    main()
