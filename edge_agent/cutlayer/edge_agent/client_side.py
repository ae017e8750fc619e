"""The client side of the model: tokenizers before the cut, the loss behind the outputs. All private data stay here.

Axes: B samples, N tokens, P values of a patch, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.tensors import check_tensor, decode_tensor
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.edge_agent.batches import Dataset, Split
from cutlayer.edge_agent.losses import LossResult, task_from_spec
from cutlayer.edge_agent.token_reduction import reduce_tokens
from cutlayer.edge_agent.tokenizer_gradients import projection_gradients
from cutlayer.edge_agent.tokenizers import load_tokenizers

__all__ = ["ClientSide", "Tokenized", "check_satisfiable"]

CACHE_BYTES = 32 << 20
"""Patches kept, so that decoding and spectrograms are computed once a sample and not once an epoch."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A microbatch at the cut.

    Attributes:
        tokens: (modality, float32 (B, K, D)) of each modality given.
        labels_B: Its labels, int64; they stay here.
        positions: (modality, intp (B, K)) of those whose tokens are reduced: where each token was.
    """

    tokens: tuple[tuple[str, NDArray[np.float32]], ...]
    labels_B: NDArray[np.int64]
    positions: tuple[tuple[str, NDArray[np.intp]], ...] = ()


@dataclass(frozen=True, slots=True)
class _Sample:
    patches: dict[str, NDArray[np.float32]]
    label: int

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.patches.values())


class ClientSide:
    """Tokenizes this agent's samples and computes their loss.

    Args:
        manifest: The run.
        tokenizer_file: Weights of the tokenizers, safetensors.
        dataset: The agent's samples.

    Raises:
        ManifestUnsatisfiable: When the data lack a modality or have other classes, or a codec is unknown here.
    """

    def __init__(self, manifest: Manifest, tokenizer_file: bytes, dataset: Dataset) -> None:
        check_satisfiable(manifest, dataset)
        self._dataset = dataset
        self._seed = manifest.seed
        self._reduction = manifest.reduction
        self._task = task_from_spec(manifest.task)
        self._num_classes = len(manifest.task.classes)
        self._tokenizers = load_tokenizers(manifest.modalities, tokenizer_file)
        self._samples: dict[tuple[Split, int], _Sample] = {}
        self._labels: dict[tuple[Split, int], int] = {}
        self._cached_bytes = 0

    def tokenize(self, split: Split, indices: NDArray[np.int64], given: tuple[str, ...]) -> Tokenized:
        """Turn samples into activations.

        Args:
            split: `train` or `test`.
            indices: Sample numbers, int64 (B).
            given: Modalities to give.
        """
        samples = self._read(split, indices)
        tokens, positions = [], []
        for name in given:
            patches_BNP = np.stack([sample.patches[name] for sample in samples])
            tokens_BKD = self._tokenizers[name].project(patches_BNP)
            if name in self._reduction:
                # Without the agent's name: whoever holds a sample drops the same of its tokens.
                draws = [f"{self._seed}/{name}/{split}/{index}" for index in indices]
                tokens_BKD, positions_BK = reduce_tokens(self._reduction[name], tokens_BKD, draws)
                positions.append((name, positions_BK))
            tokens.append((name, tokens_BKD))
        labels_B = np.array([sample.label for sample in samples], dtype=np.int64)
        return Tokenized(tuple(tokens), labels_B, tuple(positions))

    def tokenizer_gradients(
        self,
        split: Split,
        indices: NDArray[np.int64],
        positions: Mapping[str, NDArray[np.intp]],
        gradients: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, NDArray[np.float32]]:
        """Return the gradients of the tokenizers' parameters, by name, for those at the cut.

        Args:
            split: `train` or `test`.
            indices: Sample numbers, int64 (B).
            positions: Which tokens went up, (B, K), by modality, where they are reduced.
            gradients: The gradients at the cut, float32 (B, K, D), by modality.
        """
        samples = self._read(split, indices)
        found: dict[str, NDArray[np.float32]] = {}
        for name, gradient_BKD in gradients.items():
            patches_BKP = np.stack([sample.patches[name] for sample in samples])
            if name in positions:
                patches_BKP = np.take_along_axis(patches_BKP, positions[name][:, :, None], axis=1)
            found[f"{name}.weight"], found[f"{name}.bias"] = projection_gradients(patches_BKP, gradient_BKD)
        return found

    def take_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Tokenize with other weights from now on: all parameters of all tokenizers, in their shapes."""
        for name, tokenizer in self._tokenizers.items():
            tokenizer.take_weights(weights[f"{name}.weight"], weights[f"{name}.bias"])

    def labels(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return labels of samples, int64 (B); those seen before cost nothing to look up."""
        unseen = [int(index) for index in indices if (split, int(index)) not in self._labels]
        if unseen:
            self._read(split, np.array(unseen, dtype=np.int64))
        return np.array([self._labels[split, int(index)] for index in indices], dtype=np.int64)

    def loss(self, outputs: EncodedTensor, labels_B: NDArray[np.int64], codec: str) -> LossResult:
        """Compute loss and gradient of some samples from their outputs.

        Raises:
            WireError: When the outputs are no (B, C) tensor under the agreed codec.
        """
        check_tensor(outputs, shape=(len(labels_B), self._num_classes), codec=codec, what="outputs")
        return self._task.loss_and_gradient(decode_tensor(outputs, what="outputs"), labels_B)

    def _read(self, split: Split, indices: NDArray[np.int64]) -> list[_Sample]:
        """Return samples as patches (N, P) of each modality, from the cache where they are in it."""
        wanted = [int(index) for index in indices]
        missing = [index for index in wanted if (split, index) not in self._samples]
        fresh: dict[int, _Sample] = {}
        if missing:
            batch = self._dataset.batch(split, np.array(missing, dtype=np.int64))
            computed = {name: tokenizer.features(batch.inputs[name]) for name, tokenizer in self._tokenizers.items()}
            for place, index in enumerate(missing):
                # A copy each, or one sample kept would keep the whole batch.
                patches = {name: patches_BNP[place].copy() for name, patches_BNP in computed.items()}
                fresh[index] = _Sample(patches, int(batch.labels_B[place]))
                self._labels[split, index] = fresh[index].label
                self._keep(split, index, fresh[index])
        return [fresh.get(index) or self._samples[split, index] for index in wanted]

    def _keep(self, split: Split, index: int, sample: _Sample) -> None:
        if self._cached_bytes + sample.nbytes <= CACHE_BYTES:
            self._samples[split, index] = sample
            self._cached_bytes += sample.nbytes


def check_satisfiable(manifest: Manifest, dataset: Dataset) -> None:
    """Check that an agent with these data can take part in a run.

    Raises:
        ManifestUnsatisfiable: When it cannot; the text names the first thing that is missing and the fix.
    """
    for name, spec in manifest.modalities.items():
        have = dataset.modalities.get(name)
        if have is None:
            raise ManifestUnsatisfiable(
                f"it needs the modality {name!r}, and {dataset.name} has {', '.join(sorted(dataset.modalities))}",
                "give data with that modality (--data), or take part in another run",
            )
        if have != spec:
            raise ManifestUnsatisfiable(
                f"it needs {name} as {spec!r}, and {dataset.name} gives {have!r}",
                "prepare the data as the run asks, or change [modalities] in the run settings",
            )
    if dataset.classes != manifest.task.classes:
        raise ManifestUnsatisfiable(
            f"its classes are {', '.join(manifest.task.classes[:12])}, and {dataset.name} has "
            f"{', '.join(dataset.classes[:12])}",
            "use the class names of the run, in its order",
        )
    for kind, codec in manifest.codecs:
        try:
            codec_from_name(codec)
        except CodecError as error:
            raise ManifestUnsatisfiable(
                f"it encodes {kind} as {codec!r}: {error}", "install a newer release"
            ) from error
    if dataset.num_samples("train") < 1:
        raise ManifestUnsatisfiable(f"{dataset.name} has no training sample", "give data that have some (--data)")
