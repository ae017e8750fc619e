"""The tensors at the cut, from a training of the digits model on the pooled samples in one process.

Tokenizers are trained as well, since only then are there activation gradients; their gradients reach them one step
late, as an agent's do. So all tensors are those of one real training, in the sizes in which an agent sends them.

Axes: S samples, B samples of a microbatch, N tokens, P values of a patch, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.pooled_tokens import accuracy, tokenize_all
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.losses import CrossEntropy
from cutlayer.edge_agent.tokenizers import Tokenizer, load_tokenizers, parts_of
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.run_parts import make_engine
from cutlayer.server_worker.settings import load_run_settings

Floats = NDArray[np.float32]
Named = dict[str, Floats]
Rows = NDArray[np.int64]
RUN = Path("examples/digits.toml")
MICROBATCH = 32
OUTPUTS = "outputs"
"""In place of a modality: outputs have none."""


@dataclass(frozen=True)
class CutTensors:
    """What a training has left.

    Attributes:
        tensors: By kind, then by modality: of the trained model, one array a microbatch.
        visits: By modality: of each epoch, the sample numbers (B) and activations (B, N, D) of each microbatch.
        weight_gradients: By modality: gradients (P, D) of the tokenizer's weights in the last epoch, one a step.
        num_train: Training samples.
        accuracy: Of the trained model on the test samples.
    """

    tensors: dict[str, dict[str, list[Floats]]]
    visits: dict[str, list[list[tuple[Rows, Floats]]]]
    weight_gradients: dict[str, list[Floats]]
    num_train: int
    accuracy: float


@dataclass
class _Training:
    """A training on pooled samples; `late` are the tokenizers' gradients on their way."""

    engine: Engine
    tokenizers: dict[str, Tokenizer]
    patches: Named
    labels_S: Rows
    loss: CrossEntropy = field(default_factory=CrossEntropy)
    late: Named = field(default_factory=dict)

    def microbatches(self, order_S: Rows) -> Iterator[Rows]:
        for start in range(0, len(order_S), MICROBATCH):
            yield order_S[start : start + MICROBATCH]

    def tokens(self, rows_B: Rows) -> Named:
        return {name: tokenizer.project(self.patches[name][rows_B]) for name, tokenizer in self.tokenizers.items()}

    def step(self, key: tuple[str, int], rows_B: Rows, tokens: Named) -> tuple[Floats, Floats, Named]:
        """Add a microbatch to the window; return outputs, output gradients and activation gradients."""
        forwarded = self.engine.forward([ForwardItem(key, "train", tokens)])
        assert forwarded.group_id is not None
        outputs_BC = forwarded.outputs[key]
        gradient_BC = self.loss.loss_and_gradient(outputs_BC, self.labels_S[rows_B]).gradient_BC
        backwarded = self.engine.backward(
            forwarded.group_id, {key: gradient_BC}, last=True, tokenizer_gradients={key: self.late}
        )
        activation_gradients = dict(backwarded.cut_gradients[key])
        self.late = {}
        for name, gradient_BND in activation_gradients.items():
            of_parts = self.tokenizers[name].gradients(self.patches[name][rows_B], gradient_BND)
            self.late |= {f"{name}.{part}": gradient for part, gradient in of_parts.items()}
        return outputs_BC, gradient_BC, activation_gradients

    def commit(self, num_samples: int, progress: float) -> None:
        self.engine.commit(num_samples, progress)
        weights = self.engine.tokenizer_weights()
        for name, tokenizer in self.tokenizers.items():
            tokenizer.take_weights(parts_of(name, weights))


def train(seed: int, epochs: int, num_microbatches: int) -> CutTensors:
    """Train, and take the tensors of so many microbatches of the trained model.

    Args:
        seed: Of data, weights and order.
        epochs: At least one.
        num_microbatches: Of `MICROBATCH` training samples.
    """
    choices = {
        "run.seed": seed,
        "run.epochs": epochs,
        "run.microbatch_samples": MICROBATCH,
        "tokenizers.mode": "trainable",
        "activations.mode": "every-step",
    }
    settings = load_run_settings(RUN, choices)
    built = build(settings, seed)
    data = open_dataset("demo:digits", seed=seed)
    tokenizers = load_tokenizers(settings.modalities, built.tokenizer_file)
    training = _Training(make_engine(settings, built), tokenizers, *_patches(data, tokenizers))
    num_train = len(training.labels_S)
    rng = np.random.default_rng(seed)
    visits: dict[str, list[list[tuple[Rows, Floats]]]] = {name: [] for name in tokenizers}
    weight_gradients: dict[str, list[Floats]] = {name: [] for name in tokenizers}
    step = num_open = num_done = 0
    for epoch in range(epochs):
        for name in tokenizers:
            visits[name].append([])
        for rows_B in training.microbatches(rng.permutation(num_train)):
            tokens = training.tokens(rows_B)
            training.step(("pooled", step), rows_B, tokens)
            for name in tokenizers:
                visits[name][-1].append((rows_B, tokens[name]))
                if epoch == epochs - 1:
                    weight_gradients[name].append(training.late[f"{name}.weight"])
            step += 1
            num_open += len(rows_B)
            if num_open >= settings.window.samples:
                num_done += num_open
                training.commit(num_open, num_done / (epochs * num_train))
                num_open = 0
    tensors = _tensors(training, num_microbatches, step)
    test_tokens, test_labels_S = tokenize_all(data, "test", tokenizers)
    return CutTensors(
        tensors, visits, weight_gradients, num_train, accuracy(training.engine, test_tokens, test_labels_S)
    )


def _patches(data: Dataset, tokenizers: dict[str, Tokenizer]) -> tuple[Named, Rows]:
    """Return the patches (S, N, P) of each modality and the labels (S,) of all training samples."""
    batch = data.batch("train", np.arange(data.num_samples("train")))
    patches = {name: tokenizer.features(batch.inputs[name]) for name, tokenizer in tokenizers.items()}
    return patches, batch.targets.astype(np.int64)


def _tensors(training: _Training, num_microbatches: int, step: int) -> dict[str, dict[str, list[Floats]]]:
    """Run training samples through the trained model, and commit nothing."""
    found: dict[str, dict[str, list[Floats]]] = {
        "activations": {name: [] for name in training.tokenizers},
        "outputs": {OUTPUTS: []},
        "output gradients": {OUTPUTS: []},
        "activation gradients": {name: [] for name in training.tokenizers},
    }
    rows_S = np.random.default_rng(step).permutation(len(training.labels_S))[: num_microbatches * MICROBATCH]
    for rows_B in training.microbatches(rows_S):
        tokens = training.tokens(rows_B)
        outputs_BC, gradient_BC, activation_gradients = training.step(("pooled", step), rows_B, tokens)
        step += 1
        found["outputs"][OUTPUTS].append(outputs_BC)
        found["output gradients"][OUTPUTS].append(gradient_BC)
        for name in training.tokenizers:
            found["activations"][name].append(tokens[name])
            found["activation gradients"][name].append(activation_gradients[name])
    training.engine.drop_gradients()
    return found
