"""What a worker session gives its driver to compute, and the microbatches that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from cutlayer.broker.messages import Activations, EncodedTensor, Mode, Outputs
from cutlayer.broker.states import ExchangeState

__all__ = ["Backward", "Commit", "Exchange", "Forward", "Group", "Key", "NamedTensors", "Release", "Work"]

NamedTensors = tuple[tuple[str, EncodedTensor], ...]
"""Tensors by modality, or by parameter of a tokenizer."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names a microbatch for the whole run: the same again after any crash."""

    agent: str
    mode: Mode
    step: int


@dataclass(slots=True)
class Exchange:
    """One microbatch at the worker.

    Attributes:
        key: Its name.
        lease: Lease it came under.
        activations: The message: it goes forward again when its weights have become too old.
        state: Where it stands.
        num_samples: Samples B.
        received_at: When the last message of the agent came, for the server time told to it.
        group: Number of the group that it went forward in; None before, and when its graph was given up.
        outputs_at: When it did, and its outputs went.
        outputs: The answer, kept for an agent that asks again.
        gradients: The output gradients, until their backward pass.
        tokenizer_gradients: The gradients of tokenizers that came with them.
        cut_gradients: The gradients at the cut, from the backward pass to the commit; with trainable tokenizers.
        in_window_at: When that was done.
    """

    key: Key
    lease: int
    activations: Activations
    state: ExchangeState
    num_samples: int
    received_at: float
    group: int | None = None
    outputs_at: float | None = None
    outputs: Outputs | None = None
    gradients: EncodedTensor | None = None
    tokenizer_gradients: NamedTensors = ()
    cut_gradients: NamedTensors = ()
    in_window_at: float | None = None


@dataclass(slots=True)
class Group:
    """Microbatches that went forward together: one live graph.

    Attributes:
        number: Its number.
        version: Version of the weights it was computed with.
        waiting: Members whose gradients are not there yet.
        ready: Members whose gradients are there.
        first_ready_at: When the first gradients came.
    """

    number: int
    version: int
    waiting: set[Key]
    ready: list[Key] = field(default_factory=list)
    first_ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """Run these microbatches, of equal shape and mode, as one batch; then `forwarded`.

    Those that judge a candidate run with its weights, all others with the newest.
    """

    group: int
    mode: Mode
    microbatches: tuple[tuple[Key, Activations], ...]
    candidate: str = ""


@dataclass(frozen=True, slots=True)
class Backward:
    """Run the backward pass of a group for these members; then `backward_done`. `last` frees the graph.

    Those of tokenizers that came with a member's output gradients are part of the window that the member is part of.
    """

    group: int
    gradients: tuple[tuple[Key, EncodedTensor], ...]
    last: bool
    tokenizer_gradients: tuple[tuple[Key, NamedTensors], ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """Free a group's graph; nobody needs it any more."""

    group: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Take an optimizer step; then `committed`. In a pool: start a round; then `committed` or `failed` of its rounds.

    Attributes:
        window: Number of the window.
        num_samples: Samples in it.
        num_microbatches: Microbatches in it.
        progress: Share of the planned samples that are committed with it, for schedules; None for a service, which
            has no end.
        is_due: Whether the window may close for all that this worker knows; in a pool another may have asked for it.
    """

    window: int
    num_samples: int
    num_microbatches: int
    progress: float | None
    is_due: bool = True


Work = Forward | Backward | Release | Commit
