"""A trial: the first windows of a run with trainable tokenizers, trained here, where sizes depend on how training goes.

The run's engine, optimizer and learning rates train the model on the microbatches that the plan is for, all agents in
turn. Two things are learned from it: how large gradients are once encoded, which changes as the loss falls, and how far
the tokenizers' weights move, which decides how large changes of activations are. Activations reach the engine as they
are, without their codec.

Beyond the trial, gradients are taken to be as large as in its last third, and weights to move on as in its last epoch,
epoch for epoch, by the ratio of the learning rates. Where the trial is shorter than an epoch, what it has moved is
extended by a power of the windows, between 1/2 (a random walk) and 1 (a straight line), which it shows itself.

Axes: B samples, M modalities, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.ragged_tokens import pack_rows, unpack_rows
from cutlayer.broker.tensors import decode_tensor, encode_tensor
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.tokenizer_gradients import TokenizerGradients
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.settings import RunSettings

__all__ = ["Member", "Trial", "Weights", "train"]

Weights = Mapping[str, NDArray[np.float32]]
SNAPSHOT_BYTES = 64 << 20
SCHEDULE_POINTS = 64
"""Moments of an epoch at which the learning rate is looked at."""


@dataclass(frozen=True, slots=True)
class Member:
    """An agent of a trial.

    Attributes:
        plan: Its samples.
        client: Its side of the model.
    """

    plan: EpochPlan
    client: ClientSide


@dataclass(slots=True)
class Trial:
    """What a trial has shown.

    Attributes:
        settings: The run.
        num_windows: Windows of the trial.
        run_windows: Windows of the run.
        snapshots: Windows done and the tokenizers' weights then, from the beginning to the end of the trial.
        cut_bytes: Modality and samples of a microbatch to windows and bytes of its gradient, for each sample that had
            the modality.
        tokenizer_bytes: Parameter of a tokenizer to the bytes of its gradients.
    """

    settings: RunSettings
    num_windows: int
    run_windows: float
    snapshots: list[tuple[int, Weights]]
    cut_bytes: dict[tuple[str, int], list[tuple[int, float]]] = field(default_factory=dict)
    tokenizer_bytes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def epoch_windows(self) -> float:
        """Windows of one epoch."""
        return self.run_windows / self.settings.run.epochs

    @property
    def moved(self) -> float:
        """How far the weights have moved, as a share of their root mean square."""
        first, last = self.snapshots[0][1], self.snapshots[-1][1]
        return _rms({name: last[name] - first[name] for name in first}) / max(_rms(first), 1e-30)

    def cut_bytes_between(self, modality: str, num_samples: int, epochs: tuple[float, float]) -> float:
        """Return the bytes of a gradient at the cut for each of its samples that had the modality, a mean.

        Args:
            modality: The modality.
            num_samples: Samples of the microbatch.
            epochs: From when to when.
        """
        found = self.cut_bytes.get((modality, num_samples))
        if not found:
            nearest = min(
                (size for name, size in self.cut_bytes if name == modality), key=lambda n: abs(n - num_samples)
            )
            found = self.cut_bytes[modality, nearest]
        start, stop = (epoch * self.epoch_windows for epoch in epochs)
        inside = [size for window, size in found if start <= window < stop]
        tail = [size for _, size in found[-max(len(found) // 3, 1) :]]
        beyond = min(max(stop - max(start, self.num_windows), 0.0) / (stop - start), 1.0)
        if not inside:
            return float(np.mean(tail))
        return float((1 - beyond) * np.mean(inside) + beyond * np.mean(tail))

    def weights_at(self, epochs: float) -> Weights:
        """Return the tokenizers' weights after so many epochs."""
        window = epochs * self.epoch_windows
        if window <= self.num_windows:
            return min(self.snapshots, key=lambda snapshot: abs(snapshot[0] - window))[1]
        (before, old), (now, new) = self._last_epoch()
        epochs_done = self.num_windows / self.epoch_windows
        rate = self._mean_rate(before / self.epoch_windows, epochs_done)
        times = self._mean_rate(epochs_done, epochs) / max(rate, 1e-30) * (epochs - epochs_done)
        times *= self._extension(now - before)
        return {name: new[name] + np.float32(times) * (new[name] - old[name]) for name in new}

    def _last_epoch(self) -> tuple[tuple[int, Weights], tuple[int, Weights]]:
        """Return the snapshots between which the weights moved as they are taken to move on."""
        start = max(self.num_windows - self.epoch_windows, 0.0)
        return min(self.snapshots[:-1], key=lambda snapshot: abs(snapshot[0] - start)), self.snapshots[-1]

    def _extension(self, num_windows: int) -> float:
        """Return how much farther the weights move in an epoch than in so many windows."""
        return float((self.epoch_windows / num_windows) ** self._exponent(num_windows))

    def _exponent(self, num_windows: int) -> float:
        now, new = self.snapshots[-1]
        half, middle = min(self.snapshots, key=lambda snapshot: abs(snapshot[0] - (now - num_windows / 2)))
        if not 0 < now - half < num_windows:
            return 0.5
        old = self._last_epoch()[0][1]
        far, near = (_rms({name: new[name] - base[name] for name in new}) for base in (old, middle))
        if not 0 < near < far:
            return 0.5
        return min(max(math.log(far / near) / math.log(num_windows / (now - half)), 0.5), 1.0)

    def _mean_rate(self, start: float, stop: float) -> float:
        optimizer, epochs = self.settings.optimizer, self.settings.run.epochs
        return float(
            np.mean(
                [
                    learning_rate_factor(
                        moment / epochs, warmup_ratio=optimizer.warmup_ratio, min_lr_ratio=optimizer.min_lr_ratio
                    )
                    for moment in np.linspace(start, stop, SCHEDULE_POINTS)
                ]
            )
        )


def train(
    settings: RunSettings,
    manifest: Manifest,
    engine: Engine,
    members: Sequence[Member],
    *,
    num_windows: int,
    run_windows: float,
) -> Trial:
    """Train the first windows of a run; all clients have the weights that the run begins with afterwards.

    Args:
        settings: The run.
        manifest: The same.
        engine: Its arithmetic, which is used up.
        members: Its agents.
        num_windows: Windows of the trial; it ends earlier with the first agent that has no step left.
        run_windows: Windows of the run.
    """
    first = engine.tokenizer_weights()
    trial = Trial(settings, 0, run_windows, [(0, first)])
    runner = _Runner(settings, manifest, engine, members, trial)
    stride = -(-num_windows * sum(array.nbytes for array in first.values()) // SNAPSHOT_BYTES)
    while trial.num_windows < num_windows and runner.window():
        if trial.num_windows % stride == 0 or trial.num_windows == num_windows:
            trial.snapshots.append((trial.num_windows, engine.tokenizer_weights()))
    if trial.snapshots[-1][0] != trial.num_windows:
        trial.snapshots.append((trial.num_windows, engine.tokenizer_weights()))
    for member in members:
        member.client.take_weights(first)
    return trial


class _Runner:
    def __init__(
        self, settings: RunSettings, manifest: Manifest, engine: Engine, members: Sequence[Member], trial: Trial
    ) -> None:
        self._settings, self._manifest, self._engine, self._trial = settings, manifest, engine, trial
        self._members = [(member, TokenizerGradients(manifest.tokenizers.every_steps)) for member in members]
        self._names = tuple(sorted(manifest.modalities))
        self._steps = [0] * len(members)
        self._next = 0
        self._num_samples = 0
        self._planned = manifest.epochs * sum(member.plan.num_train for member in members)

    def window(self) -> bool:
        """Train one window; return whether there was one."""
        taken = self._take()
        if not taken:
            return False
        num_samples = 0
        for place, step in taken:
            num_samples += self._microbatch(place, step)
        self._num_samples += num_samples
        self._engine.commit(num_samples, min(self._num_samples / self._planned, 1.0))
        self._trial.num_windows += 1
        if self._trial.num_windows % self._manifest.tokenizers.every_windows == 0:
            weights = self._engine.tokenizer_weights()
            for member, _ in self._members:
                member.client.take_weights(weights)
        return True

    def _take(self) -> list[tuple[int, int]]:
        """Return the microbatches of the next window: one of each agent, or as many in turn as its samples make."""
        spec, batch = self._manifest.window, self._manifest.microbatch_samples
        # A window is full, too, once it has all that agents may have out.
        most = len(self._members) * self._settings.worker.credits
        count = len(self._members) if spec.mode == "synchronous" else min(max(spec.samples // batch, 1), most)
        taken: list[tuple[int, int]] = []
        for _ in range(count + len(self._members)):
            place = self._next % len(self._members)
            self._next += 1
            if self._steps[place] < self._members[place][0].plan.total_steps and len(taken) < count:
                taken.append((place, self._steps[place]))
                self._steps[place] += 1
            elif len(taken) == count:
                self._next -= 1
                break
        return taken

    def _microbatch(self, place: int, step: int) -> int:
        member, sums = self._members[place]
        manifest, indices_B = self._manifest, member.plan.train_indices(step)
        codecs = manifest.codecs
        tokenized = member.client.tokenize("train", indices_B, self._names)
        key, positions = (member.plan.agent, "train", step), dict(tokenized.positions)
        forwarded = self._engine.forward([ForwardItem(key, "train", dict(tokenized.tokens), positions)])
        assert forwarded.group_id is not None
        outputs = encode_tensor(codecs.outputs, forwarded.outputs[key])
        result = member.client.loss(outputs, tokenized.targets, codecs.outputs)
        attached = sums.attach(step, codecs.output_gradients)
        for name, tensor in attached:
            self._trial.tokenizer_bytes.setdefault(name, []).append(len(tensor.data))
        of_tokenizers = {name: decode_tensor(tensor, what=name) for name, tensor in attached}
        done = self._engine.backward(
            forwarded.group_id, {key: result.gradient_BC}, last=True, tokenizer_gradients={key: of_tokenizers}
        )
        cut = {}
        for name, gradient_BKD in done.cut_gradients[key].items():
            # As it travels: where samples lack tokens, without them.
            places, num_tokens = positions.get(name), manifest.modalities[name].num_tokens
            rows = gradient_BKD if places is None else pack_rows(gradient_BKD, places, num_tokens)
            tensor = encode_tensor(codecs.activation_gradients, rows)
            num_given = int(gradient_BKD.any(axis=(1, 2)).sum())
            if num_given:
                found = self._trial.cut_bytes.setdefault((name, len(indices_B)), [])
                found.append((self._trial.num_windows, len(tensor.data) / num_given))
            decoded = decode_tensor(tensor, what=name)
            cut[name] = decoded if places is None else unpack_rows(decoded, places, num_tokens)
        sums.committed(step)
        sums.add(member.client.tokenizer_gradients("train", indices_B, positions, cut))
        return len(indices_B)


def _rms(weights: Weights) -> float:
    flat = np.concatenate([array.ravel() for array in weights.values()])
    return float(np.sqrt(np.mean(np.square(flat, dtype=np.float64))))
