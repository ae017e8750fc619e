"""The client side of the model: tokenizers before the cut, the loss behind the outputs. All private data stay here.

Axes: B samples, b those of them that have a modality, N tokens, K of them that go up, D width, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.tensors import check_tensor, decode_tensor
from cutlayer.edge_agent.batches import Dataset, Split, Targets
from cutlayer.edge_agent.losses import LossResult, task_from_spec
from cutlayer.edge_agent.own_tokenizers import open_own_tokenizers
from cutlayer.edge_agent.private_head import PrivateHead
from cutlayer.edge_agent.sample_features import Sample, SampleFeatures, stacked
from cutlayer.edge_agent.satisfiable import check_satisfiable
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.edge_agent.token_reduction import reduce_present_tokens, reduce_tokens
from cutlayer.edge_agent.tokenizers import load_tokenizers, parts_of

__all__ = ["ClientSide", "Tokenized"]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A microbatch at the cut.

    Attributes:
        tokens: (modality, float32 (B, K, D)) of each modality given.
        targets: What is true of them; it stays here.
        positions: (modality, intp (B, K)) of those whose tokens are reduced, or not all there: which of the N tokens
            each is, ascending, and N behind a sample's last one, where tokens are zeros.
    """

    tokens: tuple[tuple[str, NDArray[np.float32]], ...]
    targets: Targets
    positions: tuple[tuple[str, NDArray[np.intp]], ...] = ()


class ClientSide:
    """Tokenizes this agent's samples and computes their loss.

    Args:
        manifest: The run.
        tokenizer_file: Weights of the tokenizers, safetensors.
        dataset: The agent's samples.
        site: What the site has of the model by itself.
        is_visit: Whether nothing is trained on them: there need be none for training, and some may have nothing at all.

    Raises:
        ManifestUnsatisfiable: When the data have no modality of the run or other classes, or a codec is unknown here.
        SettingsError: When what the site has of the model does not fit the run.

    Attributes:
        modalities: Those of the run that this agent's data have, sorted.
        head: The agent's own head; None where the worker has the only one.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer_file: bytes,
        dataset: Dataset,
        site: SiteParts | None = None,
        *,
        is_visit: bool = False,
    ) -> None:
        site = site or SiteParts()
        check_satisfiable(manifest, dataset, is_visit=is_visit)
        self.modalities = tuple(sorted(manifest.modalities.keys() & dataset.modalities.keys()))
        self._seed = manifest.seed
        self._reduction = manifest.reduction
        self._task = task_from_spec(manifest.task)
        self._num_outputs, self._num_train_outputs = manifest.num_outputs, manifest.num_train_outputs
        self.head: PrivateHead | None = None
        planned = manifest.epochs * dataset.num_samples("train")
        if manifest.head is not None:
            self.head = PrivateHead(manifest, site.agent, planned, site.head, is_visit=is_visit)
        self._own = open_own_tokenizers(manifest, self.modalities, site, planned, is_visit=is_visit)
        self._tokenizers = {**load_tokenizers(manifest.modalities, tokenizer_file), **self._own}
        self._samples = SampleFeatures(
            dataset, {name: self._tokenizers[name] for name in self.modalities}, is_visit=is_visit
        )
        # What they are put back to after a moment with a candidate's.
        is_trained = manifest.tokenizers.mode == "trainable"
        self._weights: Mapping[str, NDArray[Any]] = safetensors.numpy.load(tokenizer_file) if is_trained else {}

    def tokenize(self, split: Split, indices: NDArray[np.int64], given: tuple[str, ...]) -> Tokenized:
        """Turn samples into activations.

        Args:
            split: `train` or `test`.
            indices: Sample numbers, int64 (B).
            given: Modalities to give.
        """
        samples = self._samples.read(split, indices)
        tokens, positions = [], []
        for name in given:
            tokens_BND, present_BN = self._tokens(name, samples)
            spec = self._reduction.get(name)
            # Without the agent's name: whoever holds a sample drops the same of its tokens.
            draws = [f"{self._seed}/{name}/{split}/{index}" for index in indices]
            if present_BN is not None:
                tokens_BND, positions_BK = reduce_present_tokens(spec, tokens_BND, present_BN, draws)
                positions.append((name, positions_BK))
            elif spec is not None:
                tokens_BND, positions_BK = reduce_tokens(spec, tokens_BND, draws)
                positions.append((name, positions_BK))
            tokens.append((name, tokens_BND))
        targets = self._task.batch([sample.target for sample in samples])
        return Tokenized(tuple(tokens), targets, tuple(positions))

    def tokenizer_gradients(
        self,
        split: Split,
        indices: NDArray[np.int64],
        positions: Mapping[str, NDArray[np.intp]],
        gradients: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, NDArray[np.float32]]:
        """Return the gradients of the tokenizers' parameters, by name, for those at the cut.

        Tokenizers of the site's own learn from theirs at once, and are not among them.

        Args:
            split: `train` or `test`.
            indices: Sample numbers, int64 (B).
            positions: Which tokens went up, (B, K), by modality, where they are reduced or not all there.
            gradients: The gradients at the cut, float32 (B, K, D), by modality.
        """
        samples = self._samples.read(split, indices)
        found: dict[str, NDArray[np.float32]] = {}
        for name, gradient_BKD in gradients.items():
            tokenizer = self._tokenizers[name]
            has_B, features = stacked(samples, name)
            if features is None:
                continue
            gradient_BND = gradient_BKD
            if name in positions:
                gradient_BND = _spread(gradient_BKD, positions[name], tokenizer.num_tokens)
            of_parts = tokenizer.gradients(features, gradient_BND[has_B])
            if name in self._own:
                self._own[name].learn(of_parts, len(samples))
                continue
            found |= {f"{name}.{part}": gradient for part, gradient in of_parts.items()}
        return found

    def take_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Tokenize with other weights from now on: all parameters of all tokenizers, in their shapes."""
        self._weights = weights
        self._use(weights)

    @contextmanager
    def using(self, weights: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
        """Tokenize with other weights for a moment; of tokenizers that are trained."""
        self._use(weights)
        try:
            yield
        finally:
            self._use(self._weights)

    def _use(self, weights: Mapping[str, NDArray[Any]]) -> None:
        for name, tokenizer in self._tokenizers.items():
            tokenizer.take_weights(parts_of(name, weights))

    def save(self) -> None:
        """Write what was learned here to the site's own files.

        Raises:
            SettingsError: When one cannot be written.
        """
        if self.head is not None:
            self.head.save()
        for tokenizer in self._own.values():
            tokenizer.save()

    def targets(self, split: Split, indices: NDArray[np.int64]) -> Targets:
        """Return what is true of samples; those seen before cost nothing to look up."""
        return self._task.batch(self._samples.targets(split, indices))

    def has_some(self, split: Split, indices: NDArray[np.int64], given: tuple[str, ...]) -> NDArray[np.bool_]:
        """Return which samples have at least one of some modalities, bool (B)."""
        samples = self._samples.read(split, indices)
        return np.array([any(name in sample.features for name in given) for sample in samples], np.bool_)

    def loss(
        self,
        outputs: EncodedTensor,
        targets: Targets,
        codec: str,
        *,
        is_training: bool = True,
        step: int | None = None,
    ) -> LossResult:
        """Compute loss and gradient of some samples from their outputs, or from their features with a head of its own.

        Args:
            outputs: What came down.
            targets: What is true of the samples.
            codec: What the outputs have to be encoded as.
            is_training: Whether they are a training step's.
            step: The training step that the agent's own head learns from; None for none.

        Raises:
            WireError: When the outputs are no (B, C) tensor under the agreed codec.
        """
        num_outputs = self._num_train_outputs if is_training else self._num_outputs
        check_tensor(outputs, shape=(len(targets), num_outputs), codec=codec, what="outputs")
        values = decode_tensor(outputs, what="outputs")
        if self.head is None:
            return self._task.loss_and_gradient(values, targets)
        return self.head.loss(values, lambda outputs_BC: self._task.loss_and_gradient(outputs_BC, targets), step)

    def outputs(self, outputs: EncodedTensor, num_samples: int, codec: str) -> NDArray[np.float32]:
        """Return outputs outside training, (B, C): what came down, or what the agent's own head makes of it.

        Args:
            outputs: What came down.
            num_samples: Samples B that they are of.
            codec: What they have to be encoded as.

        Raises:
            WireError: When they are no tensor of the agreed shape under the agreed codec.
        """
        check_tensor(outputs, shape=(num_samples, self._num_outputs), codec=codec, what="outputs")
        values = decode_tensor(outputs, what="outputs")
        return values if self.head is None else self.head.outputs(values)

    def _tokens(self, name: str, samples: Sequence[Sample]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Return tokens (B, N, D), and which of them are there, bool (B, N); None for all."""
        tokenizer = self._tokenizers[name]
        has_B, features = stacked(samples, name)
        if features is not None and has_B.all():
            present_BN = tokenizer.presence(features)
            return tokenizer.project(features), None if present_BN is None or present_BN.all() else present_BN
        tokens_BND = np.zeros((len(samples), tokenizer.num_tokens, tokenizer.width), np.float32)
        present_BN = np.zeros(tokens_BND.shape[:2], np.bool_)
        if features is not None:
            tokens_BND[has_B] = tokenizer.project(features)
            present_bN = tokenizer.presence(features)
            present_BN[has_B] = True if present_bN is None else present_bN
        return tokens_BND, present_BN


def _spread(gradient_BKD: NDArray[np.float32], positions_BK: NDArray[np.intp], num_tokens: int) -> NDArray[np.float32]:
    """Return the gradient at all N tokens, (B, N, D), of that at K of them: none at the others."""
    batch, _, width = gradient_BKD.shape
    gradient_BSD = np.zeros((batch, num_tokens + 1, width), np.float32)
    np.put_along_axis(gradient_BSD, positions_BK[:, :, None], gradient_BKD, axis=1)
    return gradient_BSD[:, :num_tokens]
