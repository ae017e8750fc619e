"""An agent's part in training its tokenizers: what comes down, the gradients at the cut and new weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import WeightsReceived
from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.ragged_tokens import tensor_shape, unpack_rows
from cutlayer.broker.tensors import WEIGHTS_CODEC, check_tensor, decode_tensor
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.tokenizer_gradients import TokenizerGradients
from cutlayer.edge_agent.weights_wait import WeightsWait
from cutlayer.edge_agent.work_items import WorkItem

__all__ = ["WEIGHTS_WAIT_S", "TokenizerTrainer"]

WEIGHTS_WAIT_S = 5.0
"""How long weights are waited for before a worker is asked."""


class TokenizerTrainer:
    """Trains the tokenizers of one agent.

    Args:
        client: Has the tokenizers and the samples.
        manifest: The run.

    Attributes:
        gradients: Sums of gradients on their way up.
        weights: Which weights there are.
    """

    def __init__(self, client: ClientSide, manifest: Manifest) -> None:
        self.gradients = TokenizerGradients(manifest.tokenizers.every_steps)
        self.weights = WeightsWait(manifest, WEIGHTS_WAIT_S)
        self._client = client
        self._manifest = manifest

    def learn(
        self,
        item: WorkItem,
        positions: Mapping[str, NDArray[np.intp]],
        tensors: tuple[tuple[str, EncodedTensor], ...],
        codec: str,
    ) -> None:
        """Take the gradients at the cut of a committed step.

        Args:
            item: The step's samples.
            positions: Which tokens of them went up, by modality, where they are reduced or ragged.
            tensors: The gradients (B, K, D), by modality; (1, R, D) where they are ragged.
            codec: What they have to be encoded as.

        Raises:
            WireError: When they are not what the manifest says.
        """
        names = [name for name, _ in tensors]
        if len(set(names)) != len(names) or not set(names) <= set(item.given):
            raise MalformedMessage(f"gradients at the cut of {names}, the step has {list(item.given)}")
        gradients = {}
        for name, tensor in tensors:
            shape = (len(item.indices), self._manifest.num_tokens(name), self._manifest.width)
            places_BK, num_tokens = positions.get(name), self._manifest.modalities[name].num_tokens
            if places_BK is not None:
                shape = tensor_shape(places_BK, num_tokens, self._manifest.width)
            check_tensor(tensor, shape=shape, codec=codec, what=f"gradient at the cut of {name}")
            gradient = decode_tensor(tensor, what=f"gradient at the cut of {name}")
            gradients[name] = gradient if places_BK is None else unpack_rows(gradient, places_BK, num_tokens)
        self.gradients.add(self._client.tokenizer_gradients(item.split, item.indices, positions, gradients))

    def forget(self) -> None:
        """Forget gradients of steps that are no part of the model any more."""
        self.gradients.forget()

    def take_weights(self, received: WeightsReceived) -> None:
        """Take weights, if they are newer.

        Raises:
            WireError: When they are not what the manifest says.
        """
        weights = self.check_weights(received.tensors)
        if self.weights.take(received.lease, received.version):
            self._client.take_weights(weights)

    def check_weights(self, tensors: tuple[tuple[str, EncodedTensor], ...]) -> dict[str, NDArray[np.float32]]:
        """Return weights of all tokenizers, decoded.

        Raises:
            WireError: When they are not what the manifest says.
        """
        shapes = self._manifest.parameter_shapes()
        given = dict(tensors)
        if given.keys() != shapes.keys() or len(given) != len(tensors):
            raise MalformedMessage(f"weights of {sorted(given)}, needed are {sorted(shapes)}")
        for name, tensor in given.items():
            check_tensor(tensor, shape=shapes[name], codec=WEIGHTS_CODEC, what=f"weights {name}")
        return {name: decode_tensor(tensor, what=f"weights {name}") for name, tensor in given.items()}

    @contextmanager
    def using(self, tensors: tuple[tuple[str, EncodedTensor], ...]) -> Iterator[None]:
        """Tokenize with other weights for a moment, those of a candidate."""
        with self._client.using(self.check_weights(tensors)):
            yield
