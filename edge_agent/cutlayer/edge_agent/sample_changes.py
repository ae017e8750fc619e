"""Sends the change of each sample's activations since its last visit (AQ-SGD, arXiv 2206.01299, section 3).

The agent remembers what the worker's store has of a sample, bit for bit, and sends the change to that. It takes a new
reconstruction for the worker's when the worker has answered the message that brought it, and no earlier. A sample goes
up whole, as a change from zeros, where the agent does not remember it, where another store has it, where it is on its
way already, and at each 256th visit.

Both ends agree by two things that go with a microbatch (`broker/README.md`): each sample's count of visits, and a
checksum of all that the receiver is to have afterwards. Where either is another, the worker asks for the whole.

Axes: B samples, K tokens of a modality, T tokens of all modalities, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.sample_refs import pack_bases
from cutlayer.compression import codec_from_name
from cutlayer.compression.delta import DEFAULT_MAX_BYTES, Base, SampleMemory, encode_change
from cutlayer.edge_agent.kept_samples import KeptSamples

__all__ = ["SampleChanges", "SentChanges"]


@dataclass(frozen=True, slots=True)
class SentChanges:
    """What the worker will have of a microbatch once it has answered.

    Attributes:
        numbers_B: The samples.
        is_change_B: Whether each went as a change.
        reconstruction_BTD: What the worker's store will have.
    """

    numbers_B: NDArray[np.int64]
    is_change_B: NDArray[np.bool_]
    reconstruction_BTD: Base


class SampleChanges:
    """What one agent remembers.

    Args:
        num_samples: How many numbers of samples there are, from 0.
        max_bytes: Memory for reconstructions; samples beyond it go up whole.

    Attributes:
        memory: What the store that has a sample last has of it.
    """

    def __init__(self, num_samples: int, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.memory = SampleMemory(max_bytes)
        self._kept = KeptSamples(num_samples)

    def encode(
        self,
        store: str,
        numbers_B: NDArray[np.int64],
        tokens: Sequence[tuple[str, NDArray[np.float32]]],
        codec_name: str,
        under_way: Iterable[SentChanges],
    ) -> tuple[tuple[tuple[str, EncodedTensor], ...], bytes, SentChanges]:
        """Encode a microbatch as changes.

        Args:
            store: The store that it goes to.
            numbers_B: Its samples.
            tokens: (modality, float32 (B, K, D)), all modalities in a fixed order.
            codec_name: Of the changes.
            under_way: What else is unanswered.

        Returns:
            The tensors, `Activations.bases`, and what to give to `answered`.

        Raises:
            CodecError: When the codec cannot encode the changes.
        """
        width = tokens[0][1].shape[2]
        num_tokens = sum(tokens_BKD.shape[1] for _, tokens_BKD in tokens)
        recalled = self.memory.recall(numbers_B, (num_tokens, width))
        is_change_B = recalled.is_known_B & (recalled.visits_B != 0) & self._kept.known(store, numbers_B)
        for sent in under_way:
            is_change_B &= ~np.isin(numbers_B, sent.numbers_B)
        base_BTD = recalled.base_BND
        base_BTD[~is_change_B] = 0
        codec = codec_from_name(codec_name)
        tensors, parts, start = [], [], 0
        for name, tokens_BKD in tokens:
            stop = start + tokens_BKD.shape[1]
            data, part_BKD = encode_change(codec, tokens_BKD, np.ascontiguousarray(base_BTD[:, start:stop]))
            tensors.append((name, EncodedTensor(codec_name, tokens_BKD.shape, data)))
            parts.append(part_BKD)
            start = stop
        visits_B = np.where(is_change_B, recalled.visits_B, 0).astype(np.uint8)
        sent = SentChanges(numbers_B, is_change_B, np.concatenate(parts, axis=1))
        return tuple(tensors), pack_bases(visits_B, parts), sent

    def answered(self, sent: SentChanges, store: str, unkept_B: NDArray[np.bool_]) -> None:
        """Take notice that a worker has answered a microbatch.

        Args:
            sent: From `encode`.
            store: The worker's store; empty for none.
            unkept_B: Samples that it does not keep.
        """
        is_kept_B = ~unkept_B & bool(store)
        self._kept.remove_everywhere(sent.numbers_B)
        self.memory.forget(sent.numbers_B[~(is_kept_B & sent.is_change_B)])  # counting starts anew with the whole
        numbers_b = sent.numbers_B[is_kept_B]
        self.memory.keep(numbers_b, sent.reconstruction_BTD[is_kept_B])
        if store:
            self._kept.add(store, numbers_b)

    def lacks(self, store: str, numbers_B: NDArray[np.int64]) -> None:
        """Take notice that a store lacks samples."""
        self._kept.remove(store, numbers_B)
