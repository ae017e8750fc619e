"""What is counted on both sides: bytes by kind of message, and times as a mergeable histogram."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import get_type_hints

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    MAX_TRAFFIC,
    MESSAGE_TYPES,
    Activations,
    Direction,
    EncodedTensor,
    Message,
    Traffic,
)
from cutlayer.broker.tensors import FLOAT32_BYTES, raw_bytes
from cutlayer.broker.transport import WireCount

__all__ = [
    "MIN_REPORTED_SAMPLES",
    "MQTT_KIND",
    "STORE_CODEC",
    "LogHistogram",
    "TrafficMeter",
    "activation_bytes",
    "control_traffic",
    "message_codec",
    "message_raw_bytes",
]

MIN_REPORTED_SAMPLES = 32
"""No sum over fewer samples leaves an agent, nor can one be had as a difference of two sums."""

MQTT_KIND = "mqtt"
"""In the place of a kind of message: packets that carry none, such as CONNECT, PUBACK and PINGREQ."""

MAX_CODECS_APART = MAX_TRAFFIC - len(Direction) * (len(MESSAGE_TYPES) + 1)
"""Rows of traffic beyond which a codec has no row of its own: its name comes from a peer, before any check."""
OTHER_CODEC = "other"
STORE_CODEC = "store"
"""In the place of a codec: activations that went as references to a store."""

_TENSOR_FIELDS = {
    number: tuple(
        entry.name
        for entry in fields(kind)
        if get_type_hints(kind)[entry.name] is EncodedTensor or entry.name in ("tensors", "tokenizer_gradients")
    )
    for number, kind in MESSAGE_TYPES.items()
}
"""Fields that hold tensors, by kind of message: looked up here once, not for every message of every step."""


class LogHistogram:
    """Durations in buckets 5 % apart, from 100 us up: small on the wire, exact to merge, quantiles within 2.5 %."""

    _FIRST_S = 1e-4
    _RATIO = 1.05
    _NUM_BUCKETS = 400

    def __init__(self, counts: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: dict[int, int] = dict(counts)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = 0
        if seconds > self._FIRST_S:
            bucket = min(math.ceil(math.log(seconds / self._FIRST_S, self._RATIO)), self._NUM_BUCKETS)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def merge(self, other: LogHistogram) -> None:
        """Add another's counts."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    def quantile(self, share: float) -> float | None:
        """Return the duration in seconds that `share` of them do not exceed, or None when there are none."""
        total = sum(self._counts.values())
        if not total:
            return None
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= share * total:
                return self.middle_s(bucket)
        raise AssertionError("the shares of all buckets add up to one")

    @classmethod
    def middle_s(cls, bucket: int) -> float:
        """Return the duration in seconds that stands for all in a bucket."""
        return float(cls._FIRST_S * cls._RATIO ** (bucket - 0.5)) if bucket else cls._FIRST_S

    def counts(self) -> tuple[tuple[int, int], ...]:
        """Return (bucket, count) pairs, sorted."""
        return tuple(sorted(self._counts.items()))

    def __len__(self) -> int:
        return sum(self._counts.values())


@dataclass(slots=True)
class _Sums:
    messages: int = 0
    raw_bytes: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0


class TrafficMeter:
    """Counts messages and bytes by direction, kind of message and codec.

    Attributes:
        sample_bytes: What a sample's activations take as float32, whole, by modality; set once the run is known.
            Raw bytes of activations are these, also where references go up in their place, or fewer tokens.
    """

    def __init__(self) -> None:
        self.sample_bytes: Mapping[str, int] = {}
        self._sums: dict[tuple[Direction, str, str], _Sums] = {}

    def add(self, direction: Direction, message: Message, payload_bytes: int, wire_bytes: int) -> None:
        """Count one message.

        Args:
            direction: Up or down.
            message: The message.
            payload_bytes: Its MQTT payloads, all chunks.
            wire_bytes: Its MQTT packets, all chunks.
        """
        key = (direction, type(message).__name__, message_codec(message))
        if key not in self._sums and len(self._sums) >= MAX_CODECS_APART:
            key = (direction, type(message).__name__, OTHER_CODEC)
        sums = self._sums.setdefault(key, _Sums())
        sums.messages += 1
        sums.raw_bytes += self._raw_bytes(message)
        sums.payload_bytes += payload_bytes
        sums.wire_bytes += wire_bytes

    def _raw_bytes(self, message: Message) -> int:
        if isinstance(message, Activations) and all(name in self.sample_bytes for name in message.modalities):
            return message.num_samples * sum(self.sample_bytes[name] for name in message.modalities)
        return message_raw_bytes(message)

    def snapshot(self) -> tuple[Traffic, ...]:
        """Return the counts so far."""
        return tuple(
            Traffic(direction, kind, codec, sums.messages, sums.raw_bytes, sums.payload_bytes, sums.wire_bytes)
            for (direction, kind, codec), sums in sorted(self._sums.items())
        )


def control_traffic(wire: WireCount) -> tuple[Traffic, Traffic]:
    """Return what MQTT itself takes of an agent's connection, in the form of the messages' counts."""
    up_bytes = wire.sent_bytes - wire.sent_publish_bytes
    down_bytes = wire.received_bytes - wire.received_publish_bytes
    return (
        Traffic(Direction.UP, MQTT_KIND, "", 0, 0, 0, up_bytes),
        Traffic(Direction.DOWN, MQTT_KIND, "", 0, 0, 0, down_bytes),
    )


def message_tensors(message: Message) -> list[EncodedTensor]:
    """Return the tensors that a message carries."""
    tensors: list[EncodedTensor] = []
    for name in _TENSOR_FIELDS[message.KIND]:
        value = getattr(message, name)
        if isinstance(value, EncodedTensor):
            tensors.append(value)
        else:
            tensors.extend(tensor for _, tensor in value)
    return tensors


def message_raw_bytes(message: Message) -> int:
    """Return the size of a message's tensors as float32 in bytes."""
    return sum(raw_bytes(tensor) for tensor in message_tensors(message))


def message_codec(message: Message) -> str:
    """Return the codec of a message's tensors, `store` for references in their place, or an empty text."""
    if isinstance(message, Activations) and message.from_store:
        return STORE_CODEC
    tensors = message_tensors(message)
    return tensors[0].codec if tensors else ""


def activation_bytes(manifest: Manifest) -> dict[str, int]:
    """Return what a sample's activations take as float32, whole, by modality: what `TrafficMeter` asks for."""
    return {name: spec.num_tokens * manifest.width * FLOAT32_BYTES for name, spec in manifest.modalities.items()}
