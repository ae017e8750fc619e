"""The trainings of compression_training.py, by scheme, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compression_statistics import Mean, mean_of, paired_difference
from benchmarks.compression_training import EPOCHS, SCHEMES

Row = dict[str, Any]
SAMPLE_BYTES = 2 * 16 * 128 * 4
"""A sample's activations as float32: two modalities of 16 tokens of width 128."""
PUBLISHED_BYTES = 2 * SAMPLE_BYTES * EPOCHS
"""What a training sample costs as the paper's scheme is published (arXiv 2502.06355): its activations in each epoch up,
their gradients down. Nothing else is counted."""
RAW_BYTES = 2 * 7_332 + 64
"""What a training sample costs to upload as it is: 16-bit sound and 8 x 8 grey values."""
FROZEN_REFERENCE, TRAINED_REFERENCE = "paper", "trained-fp32"


@dataclass(frozen=True)
class Trainings:
    """Results, by scheme and seed."""

    rows: Mapping[str, Mapping[int, Row]]

    @property
    def names(self) -> list[str]:
        """Schemes that there are results of, in the order of `SCHEMES`."""
        return [name for name in SCHEMES if name in self.rows]

    def of_common_seeds(self) -> Trainings:
        """Return the results of the seeds that all schemes have: means of different seeds do not compare.

        Where they have none in common, all results.
        """
        seeds = set.intersection(*(set(by_seed) for by_seed in self.rows.values())) if self.rows else set()
        if not seeds:
            return self
        return Trainings({name: {seed: by_seed[seed] for seed in sorted(seeds)} for name, by_seed in self.rows.items()})

    def title(self, name: str) -> str:
        """Return a scheme's title, for people."""
        return SCHEMES[name].title

    def is_trained(self, name: str) -> bool:
        """Return whether a scheme trains tokenizers."""
        return SCHEMES[name].settings.get("tokenizers.mode") == "trainable"

    def mode(self, name: str) -> str:
        """Return how a scheme's activations go up: `once`, `every-step` or `delta`."""
        return str(SCHEMES[name].settings["activations.mode"])

    def setting(self, name: str) -> str:
        """Return what a scheme does with tokenizers and activations, for people."""
        how = {"once": "once", "every-step": "every step", "delta": "changes"}[self.mode(name)]
        return f"{'trained' if self.is_trained(name) else 'frozen'}, {how}"

    def reference(self, name: str) -> str:
        """Return the float32 scheme that a scheme is compared with."""
        return TRAINED_REFERENCE if self.is_trained(name) else FROZEN_REFERENCE

    def accuracy(self, name: str) -> Mean:
        """Return a scheme's accuracy on all test samples, given both modalities."""
        return mean_of(self._accuracies(name).values())

    def difference(self, name: str, reference: str) -> Mean | None:
        """Return a scheme's accuracy minus another one's, seed by seed; None without common seeds."""
        if reference not in self.rows:
            return None
        return paired_difference(self._accuracies(name), self._accuracies(reference))

    def num_bytes(self, name: str) -> Mean:
        """Return all bytes of all agents, both ways."""
        return mean_of(self._totals(name).values())

    def bytes_a_sample(self, name: str) -> float:
        """Return all bytes over training samples."""
        rows = self.rows[name].values()
        return sum(self._totals(name).values()) / sum(int(row["num_train"]) for row in rows)

    def published_ratio(self, name: str) -> float:
        """Return how many times fewer these are than the paper's scheme takes as published."""
        return PUBLISHED_BYTES / self.bytes_a_sample(name)

    def measured_ratio(self, name: str) -> float | None:
        """Return how many times fewer these are than float32 took with the same seeds; None without common ones."""
        reference = self._totals(self.reference(name)) if self.reference(name) in self.rows else {}
        own = self._totals(name)
        common = own.keys() & reference.keys()
        return sum(reference[seed] for seed in common) / sum(own[seed] for seed in common) if common else None

    def share_of_raw(self, name: str) -> float:
        """Return all bytes over those of uploading the training samples once, as they are."""
        return self.bytes_a_sample(name) / RAW_BYTES

    def _accuracies(self, name: str) -> dict[int, float]:
        return {seed: float(row["accuracy"]) for seed, row in self.rows[name].items()}

    def _totals(self, name: str) -> dict[int, int]:
        return {seed: int(row["up_bytes"]) + int(row["down_bytes"]) for seed, row in self.rows[name].items()}


def read_trainings(rows: Sequence[Row]) -> Trainings:
    """Sort results by scheme and seed.

    Raises:
        ValueError: One is of a scheme that does not exist.
    """
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["scheme"] not in SCHEMES:
            raise ValueError(
                f"there is no scheme {row['scheme']!r}; there are {', '.join(SCHEMES)}\n"
                "  fix: take its lines out of the file of results"
            )
        found.setdefault(row["scheme"], {})[int(row["seed"])] = row
    return Trainings(found)
