"""How large changes of activations are: some of an agent's samples, followed through all their visits.

The agent's own `SampleChanges` encodes them, each against the reconstruction that the worker would have, so that what
codecs leave behind is in it. The followed samples are shuffled anew in each epoch, so that a microbatch's samples were
last seen at different times, as in the run. What their tokenizers' weights are at each moment comes from a trial; with
frozen ones changes are what codecs leave behind, and nothing else.

Axes: B samples, K tokens that are left, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.work import NamedTensors
from cutlayer.compression.delta import DEFAULT_MAX_BYTES
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.sample_changes import SampleChanges
from cutlayer.simulation.plan_evaluations import Visit, change_batches, evaluations, order_of
from cutlayer.simulation.plan_trial import Weights

__all__ = ["Changes", "follow"]

MAX_VISITS, MOST_FOLLOWED = 160, 16
"""Microbatches of training that are encoded, about: so many in each epoch, in a long run fewer. With few of them, the
samples of one were last seen at few moments, and `lowrank` finds fewer dimensions in their changes than in a run."""
STORE = "store"
_EVALUATED: Final[tuple[Split, ...]] = ("test", "val")


@dataclass(frozen=True, slots=True)
class _Kind:
    split: Split
    visit: Visit
    num_samples: int


class Changes:
    """Sizes of changes, by visit.

    Attributes:
        encode_s: Processor seconds of each whole microbatch of training.
    """

    def __init__(self) -> None:
        self.encode_s: list[float] = []
        self._found: dict[_Kind, list[tuple[NamedTensors, bytes]]] = {}

    def add(self, split: Split, visit: Visit, tensors: NamedTensors, bases: bytes) -> None:
        """Take a microbatch."""
        kind = _Kind(split, visit, tensors[0][1].shape[0])
        self._found.setdefault(kind, []).append((tensors, bases))

    def of(self, split: Split, visit: Visit, num_samples: int) -> tuple[NamedTensors, bytes]:
        """Return tensors of the mean size, whose bytes mean nothing, and bases."""
        found = self._found[_Kind(split, visit, num_samples)]
        tensors = tuple(
            (name, replace(tensor, data=bytes(round(np.mean([len(row[place][1].data) for row, _ in found])))))
            for place, (name, tensor) in enumerate(found[0][0])
        )
        return tensors, found[0][1]


def follow(
    manifest: Manifest, client: ClientSide, plan: EpochPlan, weights_at: Callable[[float], Weights] | None
) -> Changes:
    """Follow some samples of an agent.

    Args:
        manifest: The run.
        client: The agent's side of the model; it has the weights of the run's end afterwards.
        plan: The agent's samples.
        weights_at: The tokenizers' weights after so many epochs; None where they are frozen.
    """
    return _Follower(manifest, client, plan, weights_at).run()


class _Follower:
    def __init__(
        self, manifest: Manifest, client: ClientSide, plan: EpochPlan, weights_at: Callable[[float], Weights] | None
    ) -> None:
        self._manifest, self._client, self._weights_at = manifest, client, weights_at
        self._names = tuple(sorted(manifest.modalities))
        batch = plan.microbatch_samples
        num_followed = batch * max(1, min(MOST_FOLLOWED, MAX_VISITS // plan.epochs))
        num_rest = plan.num_train % batch
        self._plan = replace(plan, num_train=min(plan.num_train, num_followed + num_rest))
        # Not the first ones: data may be sorted by class.
        rng = np.random.default_rng(manifest.seed)
        self._followed_N = np.sort(rng.choice(plan.num_train, self._plan.num_train, replace=False))
        self._orders = {split: order_of(plan, split) for split in _EVALUATED}
        # Numbers of samples for testing, and then for validation, come after those for training.
        self._first = {"train": 0, "test": plan.num_train, "val": plan.num_train + plan.num_test}
        self._slots = {split: self._followed_slots(plan, split) for split in _EVALUATED}
        # As large a share of memory as the followed samples are of all.
        num_all = plan.num_train + plan.num_test + plan.num_val
        share = (self._plan.num_train + sum(map(len, self._slots.values())) * batch) / num_all
        self._changes = SampleChanges(num_all, round(min(share, 1.0) * DEFAULT_MAX_BYTES))
        self._found = Changes()

    def _followed_slots(self, plan: EpochPlan, split: Split) -> set[int]:
        """Return which batches of evaluations are followed: some, and those where a number of samples ends."""
        batch = plan.microbatch_samples
        found = [each for each in evaluations(self._manifest, plan, self._names) if each.split == split]
        ends = {each.num_samples for each in found}
        around = {end // batch + offset for end in ends for offset in (-1, 0, 1)}
        return {slot for slot in {0, 1} | around if 0 <= slot * batch < max(ends, default=0)}

    def run(self) -> Changes:
        plan, batches = self._plan, list(change_batches(self._manifest, self._plan, self._names))
        for epoch in range(plan.epochs):
            for place in range(plan.steps_per_epoch):
                indices_B = self._followed_N[plan.train_indices(epoch * plan.steps_per_epoch + place)]
                self._use_weights(epoch + (place + 0.5) / plan.steps_per_epoch)
                self._send("train", indices_B, Visit(epoch, len(indices_B) if epoch else 0))
            self._use_weights(epoch + 1)
            for evaluation, places, visit in batches:
                slot, split = places.start // plan.microbatch_samples, evaluation.split
                if evaluation.moment == epoch + 1 and visit is not None and slot in self._slots[split]:
                    self._send(split, self._orders[split][places.start : places.stop], visit)
        return self._found

    def _use_weights(self, moment: float) -> None:
        if self._weights_at is not None:
            self._client.take_weights(self._weights_at(moment))

    def _send(self, split: Split, indices_B: NDArray[np.int64], visit: Visit) -> None:
        numbers_B = indices_B + self._first[split]
        tokenized = self._client.tokenize(split, indices_B, self._names)
        started_s = time.process_time()
        tensors, bases, sent = self._changes.encode(
            STORE, numbers_B, tokenized.tokens, self._manifest.codecs.activations, ()
        )
        if split == "train" and len(indices_B) == self._plan.microbatch_samples:
            self._found.encode_s.append(time.process_time() - started_s)
        self._changes.answered(sent, STORE, np.zeros(len(indices_B), bool))
        self._found.add(split, visit, tensors, bases)
