"""All tokens of a data set at once, of a task with one class a sample: what benchmarks train on without agents.

Axes: S samples, N tokens, D width, C outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import Dataset, Split
from cutlayer.edge_agent.tokenizers import Tokenizer
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.passes import ForwardItem

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


def accuracy(engine: Engine, tokens: Tokens, labels_S: NDArray[np.int64]) -> float:
    """Return the share of samples whose largest output is their label."""
    num_correct = 0
    for start in range(0, len(labels_S), 256):
        rows = slice(start, start + 256)
        outputs = engine.forward([ForwardItem("test", "eval", {name: tokens[name][rows] for name in tokens})]).outputs
        num_correct += int((outputs["test"].argmax(axis=1) == labels_S[rows]).sum())
    return num_correct / len(labels_S)
