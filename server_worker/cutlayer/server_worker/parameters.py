"""The encoder's parameters over a run: immutable versions, the open window's gradient sums, and the step.

The encoder's own parameters are the master copy, which the optimizer steps in place. A *version* is a clone of
them that nothing ever writes to. Forward passes run on the newest version, and a graph that waits for its output
gradients keeps the version that it was computed with alive; an in-place step under a live graph would not.

Not thread-safe: one thread owns them. Another one may take a snapshot while that runs the encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from cutlayer.server_worker.settings import OptimizerSettings

__all__ = ["CommitResult", "EngineState", "VersionedParameters"]

_LANES = 1_024
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by bytes of an element."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What an optimizer step did.

    Attributes:
        version: The newest parameter version.
        gradient_norm: Norm of the mean gradient, before clipping.
        learning_rate: Learning rate of the step.
        applied: False when the mean gradient was not finite: the window is then without effect, and the version
            is the old one.
    """

    version: int
    gradient_norm: float
    learning_rate: float
    applied: bool


@dataclass(frozen=True, slots=True)
class EngineState:
    """All that a worker needs to continue from a commit.

    Attributes:
        version: Parameter version.
        weights: The encoder's parameters and buffers, by name, frozen ones included.
        optimizer: The optimizer's state, as `<parameter>/<quantity>`.
    """

    version: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class VersionedParameters:
    """The encoder's trainable parameters, and everything that changes them.

    Args:
        encoder: The master copy, taken over.
        settings: The [optimizer] section.

    Attributes:
        version: Steps so far.
        newest: The newest version, by name; each tensor requires gradients and is never written to.
        held: Versions that are judged, by the name of the candidate: references, since a version never changes.
    """

    def __init__(self, encoder: SplitEncoder, settings: OptimizerSettings) -> None:
        self._encoder = encoder
        self._settings = settings
        self._optimizer = make_optimizer(encoder, settings)
        self._masters = {name: value for name, value in encoder.named_parameters() if value.requires_grad}
        self._sums: list[Tensor | None] = [None] * len(self._masters)
        self._frozen_lanes: bytes | None = None
        self.version = 0
        self.newest = self._clone_masters()
        self.held: dict[str, dict[str, Tensor]] = {}

    def hold(self) -> str:
        """Hold the newest version, and return the name that its weights give it."""
        name = self.fingerprint()
        self.held[name] = self.newest
        return name

    def keep(self, name: str) -> None:
        """Go on from a version that is held: it is the newest from now on, under a number of its own.

        Args:
            name: Of the version; empty to go on from the newest. The open window is dropped.
        """
        if name:
            self.newest = self.held[name]
            with torch.no_grad():
                for master, value in zip(self._masters.values(), self.newest.values(), strict=True):
                    master.copy_(value)
        self._sums = [None] * len(self._masters)
        self.version += 1

    def load_held(self, held: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Hold these versions instead, from a checkpoint.

        Raises:
            ValueError: When they are of another model.
        """
        loaded: dict[str, dict[str, Tensor]] = {}
        for name, values in held.items():
            if values.keys() != self._masters.keys():
                raise ValueError("candidates are of another model: their parameters have other names")
            loaded[name] = {
                key: values[key].detach().to(master).clone().requires_grad_() for key, master in self._masters.items()
            }
        self.held = loaded

    def place_of(self, name: str) -> int:
        """Return the place of a parameter among the gradients of `add`.

        Raises:
            ValueError: When there is no such parameter.
        """
        if name not in self._masters:
            raise ValueError(f"there is no trainable parameter {name!r}")
        return list(self._masters).index(name)

    def add(self, gradients: Sequence[Tensor | None]) -> bool:
        """Add gradients of a summed loss to the open window.

        Args:
            gradients: One for each parameter, in their order; None where the loss does not depend on it.

        Returns:
            False when they are not finite; the window is then as it was.
        """
        # One number tells about all: a root of a sum of squares is finite only if each of them is.
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        if not torch.isfinite(norm):
            return False
        for index, gradient in enumerate(gradients):
            total = self._sums[index]
            if gradient is not None:
                # Never in place: autograd may return one tensor for several parameters.
                self._sums[index] = gradient if total is None else total + gradient
        return True

    def commit(self, num_samples: int, progress: float | None) -> CommitResult:
        """Close the window: one optimizer step on the mean gradient, and a new version.

        Args:
            num_samples: Samples in the window's sums, over all replicas.
            progress: Committed samples / planned samples, this window's included; None without a plan.

        Raises:
            ValueError: When there are no samples.
        """
        if num_samples < 1:
            raise ValueError("a window without samples cannot be committed")
        settings = self._settings
        learning_rate = settings.lr * learning_rate_factor(
            progress, warmup_ratio=settings.warmup_ratio, min_lr_ratio=settings.min_lr_ratio
        )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for master, total in zip(self._masters.values(), self._sums, strict=True):
            # A parameter that no sample reached (an absent modality's) has no gradient rather than a zero one:
            # the optimizer leaves it alone, as in plain torch.
            master.grad = None if total is None else total / num_samples
        self._sums = [None] * len(self._masters)
        masters = list(self._masters.values())
        norm = torch.nn.utils.get_total_norm([master.grad for master in masters if master.grad is not None])
        applied = bool(torch.isfinite(norm))
        if applied:
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(masters, settings.clip_norm, norm)
            self._optimizer.step()
            self.version += 1
            self.newest = self._clone_masters()
        self._optimizer.zero_grad(set_to_none=True)
        return CommitResult(self.version, float(norm), learning_rate, applied)

    def gradient_sums(self) -> list[Tensor]:
        """Return the open window's sums, in the order of the parameters: what replicas add up."""
        return [
            torch.zeros_like(master) if total is None else total
            for master, total in zip(self._masters.values(), self._sums, strict=True)
        ]

    def gradients_present(self) -> bytes:
        """Return one byte for each parameter: 1 where the open window has a gradient of it, else 0."""
        return bytes(total is not None for total in self._sums)

    def set_gradient_sums(self, sums: Sequence[Tensor], present: bytes | None = None) -> None:
        """Replace the open window's sums, with those over all replicas.

        Args:
            sums: One for each parameter.
            present: As of `gradients_present`, over all replicas: where it is 0 there is no gradient, rather than one
                of zeros. None for gradients of all.
        """
        for master, total in zip(self._masters.values(), sums, strict=True):
            assert master.shape == total.shape
        given = present if present is not None else bytes([1]) * len(sums)
        self._sums = [total if there else None for total, there in zip(sums, given, strict=True)]

    def state_dict(self) -> EngineState:
        """Return a snapshot that later commits do not change. The open window is not in it.

        Another thread may run the encoder meanwhile: that one then holds a version, perhaps that of a candidate, in
        the places of the masters.
        """
        state = {**self._encoder.state_dict(), **self._masters}
        weights = {name: value.detach().clone() for name, value in state.items()}
        return EngineState(self.version, weights, optimizer_state(self._masters, self._optimizer))

    def load_state_dict(self, state: EngineState) -> None:
        """Continue from a snapshot; the open window is dropped.

        Raises:
            ValueError: When the snapshot is of another model or optimizer. Nothing has changed then.
        """
        own = self._encoder.state_dict()
        for name in sorted(own.keys() | state.weights.keys()):
            if name not in own or name not in state.weights:
                raise ValueError(f"weights are of another model: {name!r} is in only one of the two")
            theirs, ours = tuple(state.weights[name].shape), tuple(own[name].shape)
            if theirs != ours:
                raise ValueError(f"weights are of another model: {name!r} is {theirs}, not {ours}")
        load_optimizer_state(self._encoder, self._optimizer, state.optimizer)
        self._encoder.load_state_dict(state.weights)
        self._frozen_lanes = None
        self._sums = [None] * len(self._masters)
        self.version = state.version
        self.newest = self._clone_masters()

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, over name, dtype, shape and bytes of each parameter and buffer."""
        digest = hashlib.sha256()
        for name, value in sorted(self._encoder.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Return a digest of the weights that is cheap enough for every window, in hexadecimal.

        The bits of each tensor, as whole numbers, are summed up in 1,024 lanes on the tensor's own device, and the
        lanes are hashed: bit-identical weights have the same fingerprint, and a difference that is not made on purpose
        has another one.
        """
        state = self._encoder.state_dict()
        if self._frozen_lanes is None:
            # What does not train changes with a snapshot and never else.
            frozen = {name: value for name, value in state.items() if name not in self._masters}
            self._frozen_lanes = _lanes_of(frozen)
        digest = hashlib.blake2b(self._frozen_lanes, digest_size=16)
        digest.update(_lanes_of({name: state[name] for name in self._masters}))
        return digest.hexdigest()

    def _clone_masters(self) -> dict[str, Tensor]:
        return {name: master.detach().clone().requires_grad_() for name, master in self._masters.items()}


def _lanes_of(weights: Mapping[str, Tensor]) -> bytes:
    """Return a digest of the bits of tensors, summed up in lanes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        bits = value.detach().contiguous().flatten().view(_INTEGERS[value.element_size()])
        whole = len(bits) - len(bits) % _LANES
        lanes = bits[:whole].view(-1, _LANES).sum(0, dtype=torch.int64)
        rest = bits[whole:].to(torch.int64)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(torch.cat([lanes, rest]).cpu().numpy().tobytes())
    return digest.digest()
