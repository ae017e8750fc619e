"""The messages that bring an agent its run and the weights it needs: the manifest, the client side, candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutlayer.broker.manifest import MAX_MANIFEST_BYTES
from cutlayer.broker.step_messages import EncodedTensor
from cutlayer.broker.wire import U32, binary, many, pair, record, text, uint, wire
from cutlayer.broker.wire_limits import MAX_CHUNKS, MAX_MESSAGE_BYTES, MAX_NAME, MAX_PARAMETERS


@dataclass(frozen=True, slots=True)
class RunManifest:
    """The manifest, retained on `cutlayer/run`.

    Attributes:
        document: `Manifest.to_bytes`.
    """

    KIND: ClassVar[int] = 16
    document: bytes = wire(binary(MAX_MANIFEST_BYTES))


@dataclass(frozen=True, slots=True)
class ModelChunk:
    """A piece of the client-side weights, retained on `cutlayer/model/<digest>/<index>`."""

    KIND: ClassVar[int] = 17
    index: int = wire(uint(MAX_CHUNKS - 1))
    count: int = wire(uint(MAX_CHUNKS))
    data: bytes = wire(binary(MAX_MESSAGE_BYTES))


@dataclass(frozen=True, slots=True)
class TokenizerWeights:
    """The tokenizers as they are now, with trainable ones: whoever has older weights takes these.

    Attributes:
        lease: The lease.
        version: Version of the weights.
        tensors: (parameter of a tokenizer, its value).
    """

    KIND: ClassVar[int] = 23
    lease: int = wire(uint(U32))
    version: int = wire(uint())
    tensors: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_PARAMETERS)
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """The weights that are to be judged now; said again until the agent has reported what its validation samples say.

    Attributes:
        lease: The lease.
        epoch: Epochs of the whole run that they are of.
        name: Names them: the same for bit-identical weights alone.
        tensors: (parameter of a tokenizer, its value), with trainable tokenizers: the candidate's own.
    """

    KIND: ClassVar[int] = 24
    lease: int = wire(uint(U32))
    epoch: int = wire(uint(U32))
    name: str = wire(text(MAX_NAME))
    tensors: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_PARAMETERS), default=()
    )
