"""Samples as features of the modalities that they have: decoded and cut once each, as far as memory goes.

Axes: B samples, b those of them that have a modality, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Batch, Dataset, Split, Targets
from cutlayer.edge_agent.tokenizers import Tokenizer

__all__ = ["CACHE_BYTES", "Sample", "SampleFeatures", "stacked"]

CACHE_BYTES = 32 << 20
"""Features kept, so that decoding and spectrograms are computed once a sample and not once an epoch."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, as far as it needs no weights.

    Attributes:
        features: Those of each modality that it has.
        target: What is true of it.
    """

    features: dict[str, NDArray[Any]]
    target: Targets

    @property
    def nbytes(self) -> int:
        """Bytes of its features."""
        return sum(array.nbytes for array in self.features.values())


class SampleFeatures:
    """Reads one agent's samples.

    Args:
        dataset: The samples.
        tokenizers: What makes features of each modality of the run that they have, by name.
        is_visit: Whether each sample is read once, in order, and some may have nothing at all.
    """

    def __init__(self, dataset: Dataset, tokenizers: Mapping[str, Tokenizer], *, is_visit: bool) -> None:
        self._dataset = dataset
        self._tokenizers = tokenizers
        self._is_visit = is_visit
        self._samples: dict[tuple[Split, int], Sample] = {}
        self._targets: dict[tuple[Split, int], Targets] = {}
        self._cached_bytes = 0

    def read(self, split: Split, indices: NDArray[np.int64]) -> list[Sample]:
        """Return samples as features of each modality that they have, from the cache where they are in it."""
        wanted = [int(index) for index in indices]
        missing = [index for index in wanted if (split, index) not in self._samples]
        # Looked up first: those that are missing may take their room.
        found = {index: self._samples[split, index] for index in wanted if (split, index) in self._samples}
        if missing:
            batch = self._dataset.batch(split, np.array(missing, dtype=np.int64))
            features = self._features(batch)
            for place, index in enumerate(missing):
                found[index] = Sample(features[place], np.array(batch.targets[place]))
                if not self._is_visit:
                    self._targets[split, index] = found[index].target
                self._keep(split, index, found[index])
        return [found[index] for index in wanted]

    def targets(self, split: Split, indices: NDArray[np.int64]) -> list[Targets]:
        """Return what is true of samples; those seen before cost nothing to look up."""
        if self._is_visit:
            return [sample.target for sample in self.read(split, indices)]
        unseen = [int(index) for index in indices if (split, int(index)) not in self._targets]
        if unseen:
            self.read(split, np.array(unseen, dtype=np.int64))
        return [self._targets[split, int(index)] for index in indices]

    def _features(self, batch: Batch) -> list[dict[str, NDArray[Any]]]:
        """Compute the features of each sample."""
        found: list[dict[str, NDArray[Any]]] = [{} for _ in batch.targets]
        for name, tokenizer in self._tokenizers.items():
            present_B = batch.present.get(name)
            if present_B is None:
                rows_b, raw = np.arange(len(found)), batch.inputs[name]
            elif present_B.any():
                rows_b = np.flatnonzero(present_B)
                raw = batch.inputs[name][rows_b]
            else:
                continue
            features = tokenizer.features(raw)
            present_bN = tokenizer.presence(features)
            for place, row in enumerate(rows_b):
                # An empty text is as good as none.
                if present_bN is None or present_bN[place].any():
                    # A copy each, or one sample kept would keep the whole batch.
                    found[row][name] = features[place].copy()
        if (num_empty := sum(not features for features in found)) > 0 and not self._is_visit:
            raise SettingsError(
                f"{self._dataset.name} has samples without any modality of the run: {num_empty} of {len(found)}",
                "leave such samples out of the data",
            )
        return found

    def _keep(self, split: Split, index: int, sample: Sample) -> None:
        while self._is_visit and self._samples and self._cached_bytes + sample.nbytes > CACHE_BYTES:
            # A visit reads its samples in order and comes back to none: the last ones are what is asked for again.
            oldest = next(iter(self._samples))
            self._cached_bytes -= self._samples.pop(oldest).nbytes
        if self._cached_bytes + sample.nbytes <= CACHE_BYTES:
            self._samples[split, index] = sample
            self._cached_bytes += sample.nbytes


def stacked(samples: Sequence[Sample], name: str) -> tuple[NDArray[np.bool_], NDArray[Any] | None]:
    """Return which samples have a modality, bool (B), and the features of these, (b, ...); None without any."""
    has_B = np.array([name in sample.features for sample in samples], np.bool_)
    features = [sample.features[name] for sample in samples if name in sample.features]
    return has_B, np.stack(features) if features else None
