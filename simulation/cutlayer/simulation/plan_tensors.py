"""Encoded tensors for a plan: those of the agent's own samples, or, without data, as large as a codec can make them.

Axes: B samples, F fresh ones, N tokens, K tokens that are left, D width, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.sample_refs import mask_bytes, pack_positions
from cutlayer.broker.tensors import encode_tensor
from cutlayer.compression import codec_from_name
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.simulation.plan_schedule import Alike, Example

__all__ = ["AgentSeconds", "BoundTensors", "Forward", "MeasuredTensors"]

Forward = Callable[[Mapping[str, NDArray[np.float32]], Mapping[str, NDArray[np.intp]]], NDArray[np.float32]]
"""The server side of the model: tokens (B, K, D) and positions (B, K) by modality to outputs (B, C)."""


@dataclass(slots=True)
class AgentSeconds:
    """Processor seconds of the agent's work on this machine.

    Attributes:
        tokenize: Of whole microbatches: raw samples to tokens.
        encode: Of the same: tokens to bytes.
        num_samples: Samples of each.
    """

    num_samples: int
    tokenize: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)


class MeasuredTensors:
    """What codecs make of an agent's own samples.

    Outputs and their gradients are those of the model as it is before training: where their codec's size depends on
    its input, later ones may be somewhat larger or smaller.

    Args:
        manifest: The run.
        client: The client side of its model, over the agent's data.
        forward: The server side.
    """

    def __init__(self, manifest: Manifest, client: ClientSide, forward: Forward) -> None:
        self._manifest = manifest
        self._client = client
        self._forward = forward
        self._outputs: dict[int, NDArray[np.float32]] = {}
        self.seconds = AgentSeconds(manifest.microbatch_samples)

    def activations(
        self, alike: Alike, example: Example
    ) -> tuple[tuple[tuple[str, EncodedTensor], ...], tuple[tuple[str, bytes], ...]]:
        """Return tensors and positions of the fresh samples."""
        fresh_F = example.indices_B[alike.num_samples - alike.num_fresh :]
        started_s = time.process_time()
        tokenized = self._client.tokenize(alike.split, fresh_F, alike.given)
        tokenized_s = time.process_time()
        codec = self._manifest.codecs.activations
        tensors = tuple((name, encode_tensor(codec, tokens_FKD)) for name, tokens_FKD in tokenized.tokens)
        if alike.num_fresh == self._manifest.microbatch_samples and len(alike.given) == len(self._manifest.modalities):
            self.seconds.tokenize.append(tokenized_s - started_s)
            self.seconds.encode.append(time.process_time() - tokenized_s)
        positions = tuple(
            (name, pack_positions(places_FK, self._manifest.modalities[name].num_tokens))
            for name, places_FK in tokenized.positions
        )
        return tensors, positions

    def outputs(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return the untrained model's outputs."""
        return encode_tensor(self._manifest.codecs.outputs, self._outputs_of(alike, example))

    def output_gradients(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return the gradient of the loss at these."""
        labels_B = self._client.labels(alike.split, example.indices_B)
        outputs = encode_tensor(self._manifest.codecs.outputs, self._outputs_of(alike, example))
        result = self._client.loss(outputs, labels_B, self._manifest.codecs.outputs)
        return encode_tensor(self._manifest.codecs.output_gradients, result.gradient_BC)

    def _outputs_of(self, alike: Alike, example: Example) -> NDArray[np.float32]:
        """Compute outputs once for each size of microbatch: their size, not their values, is what is asked for."""
        outputs_BC = self._outputs.get(alike.num_samples)
        if outputs_BC is None:
            tokenized = self._client.tokenize(alike.split, example.indices_B, tuple(sorted(self._manifest.modalities)))
            outputs_BC = self._forward(dict(tokenized.tokens), dict(tokenized.positions))
            self._outputs[alike.num_samples] = outputs_BC
        return outputs_BC


class BoundTensors:
    """The most that codecs can make of samples that nobody has seen.

    Args:
        manifest: The run.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def activations(
        self, alike: Alike, example: Example
    ) -> tuple[tuple[tuple[str, EncodedTensor], ...], tuple[tuple[str, bytes], ...]]:
        """Return tensors and positions of the fresh samples."""
        del example
        manifest, num_fresh = self._manifest, alike.num_fresh
        tensors = tuple(
            (name, _largest(manifest.codecs.activations, (num_fresh, manifest.num_tokens(name), manifest.width)))
            for name in alike.given
        )
        positions = tuple(
            (name, bytes(num_fresh * mask_bytes(manifest.modalities[name].num_tokens)))
            for name in alike.given
            if name in manifest.reduction
        )
        return tensors, positions

    def outputs(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return outputs."""
        del example
        return _largest(self._manifest.codecs.outputs, (alike.num_samples, len(self._manifest.task.classes)))

    def output_gradients(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return their gradients."""
        del example
        return _largest(self._manifest.codecs.output_gradients, (alike.num_samples, len(self._manifest.task.classes)))


def _largest(codec: str, shape: tuple[int, ...]) -> EncodedTensor:
    return EncodedTensor(codec, shape, bytes(codec_from_name(codec).max_encoded_bytes(shape)))
