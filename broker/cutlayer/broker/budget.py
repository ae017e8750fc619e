"""What a broker may have to hold at once, known before the run starts.

Credits bound it. An agent has at most `credits` microbatches at a worker, and each of them has one message under way:
its activations, its outputs or its output gradients, whichever is the largest. So a broker holds at most
agents x workers x credits x the largest of these messages, whoever is slow; the agent's own share, workers x credits
of them, is also what an agent keeps until the commit.

Beside the budget are what is retained (state, manifest, client-side weights), messages of a few hundred bytes (Hello,
commit, telemetry), and repetitions: an agent that hears nothing for its deadline, 5 s at first, sends again what the
broker may still have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.chunking import CHUNK_OVERHEAD_BYTES
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    MAX_TENSOR_ELEMENTS,
    Activations,
    EncodedTensor,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    serialize,
)
from cutlayer.broker.mqtt_packets import largest_payload, publish_size
from cutlayer.broker.sample_refs import bases_bytes, mask_bytes
from cutlayer.broker.topics import MAX_AGENT_TOPIC
from cutlayer.compression import codec_from_name

__all__ = ["SHIPPED_MOSQUITTO", "BrokerBudget", "MosquittoLimits", "budget_of"]

MAX_U32 = (1 << 32) - 1
MAX_UINT = (1 << 53) - 1
BIN_HEADER_BYTES = 3
"""What the header of a `bin` grows by, from an empty one's two bytes to the five of a long one."""
LONGEST_TOPIC = "a" * MAX_AGENT_TOPIC + "/down/outputs"
LONGEST_UP_TOPIC = "a" * MAX_AGENT_TOPIC + "/up/" + "w" * 64 + "/activations"
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class MosquittoLimits:
    """What a Mosquitto allows, by the keys of its configuration.

    Attributes:
        max_queued_messages: Packets that it keeps for one client beside those in flight; it drops what is beyond.
        max_inflight_messages: Packets that it has under way to one client.
        memory_limit: Bytes of memory; 0 for no limit.
    """

    max_queued_messages: int
    max_inflight_messages: int
    memory_limit: int


SHIPPED_MOSQUITTO = MosquittoLimits(max_queued_messages=1_000, max_inflight_messages=20, memory_limit=2_147_483_648)
"""broker/mosquitto.conf, and what `cutlayer broker` starts."""


@dataclass(frozen=True, slots=True)
class BrokerBudget:
    """What a run may have under way at its broker, for one of its workers.

    Attributes:
        num_agents: Agents that the run starts with.
        credits: Microbatches that each of them may have at the worker.
        message_bytes: Wire bytes of the largest message of a microbatch, all its packets together.
        message_packets: Packets that carry it.
        is_pooled: Whether there are other workers, each with as much again.
    """

    num_agents: int
    credits: int
    message_bytes: int
    message_packets: int
    is_pooled: bool = False

    @property
    def agent_bytes(self) -> int:
        """Bytes that one agent may have under way at this worker, and keeps in its own memory meanwhile."""
        return self.credits * self.message_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes that all agents may have under way at this worker."""
        return self.num_agents * self.agent_bytes

    @property
    def total_packets(self) -> int:
        """Packets that all agents may have under way at this worker."""
        return self.num_agents * self.credits * self.message_packets

    def as_json(self) -> dict[str, int | bool]:
        """Return the entry of `run.json`."""
        return {
            "agents": self.num_agents,
            "credits": self.credits,
            "message_bytes": self.message_bytes,
            "message_packets": self.message_packets,
            "agent_bytes": self.agent_bytes,
            "total_bytes": self.total_bytes,
            "total_packets": self.total_packets,
            "is_pooled": self.is_pooled,
        }

    def __str__(self) -> str:
        where = "for each worker of the pool" if self.is_pooled else "of messages in flight"
        return (
            f"broker budget: {_number(self.num_agents, 'agent')} x {_number(self.credits, 'credit')} "
            f"x {_text(self.message_bytes)} = {_text(self.total_bytes)} {where} "
            f"({_text(self.agent_bytes)} for each further agent, and as much in each agent's memory)"
        )

    def problems(self, settings: BrokerSettings, mosquitto: MosquittoLimits = SHIPPED_MOSQUITTO) -> Iterator[str]:
        """Yield what is known to allow less than the budget, each with its fix.

        Args:
            settings: How this worker reaches its broker.
            mosquitto: The broker's limits, where it is a Mosquitto; by default those of the shipped configuration.
        """
        if self.total_bytes > settings.max_queued_bytes:
            yield (
                f"this worker queues {_text(settings.max_queued_bytes)} of received packets and drops the rest: "
                "lower worker.credits or run.microbatch_samples"
            )
        waiting = max(self.num_agents * self.credits, self.credits * self.message_packets)
        if waiting > settings.max_queued_messages:
            yield (
                f"a worker and an agent let {settings.max_queued_messages:,} packets wait for the broker and drop the "
                f"rest of up to {waiting:,}: lower worker.credits, or raise --max-packet-bytes"
            )
        kept = mosquitto.max_queued_messages + mosquitto.max_inflight_messages
        if self.total_packets > kept:
            yield (
                f"Mosquitto as in broker/mosquitto.conf keeps {kept:,} packets for a client and drops the rest of up "
                f"to {self.total_packets:,}: raise max_queued_messages there, or --max-packet-bytes"
            )
        if mosquitto.memory_limit and self.total_bytes > mosquitto.memory_limit:
            yield (
                f"Mosquitto as in broker/mosquitto.conf takes at most {_text(mosquitto.memory_limit)} of memory: "
                "raise memory_limit there, or lower worker.credits"
            )


def budget_of(
    manifest: Manifest,
    *,
    credits: int,  # noqa: A002 - the protocol's own word
    num_agents: int,
    max_packet_bytes: int,
    is_pooled: bool = False,
) -> BrokerBudget:
    """Compute the budget of a run from what its messages can need at the most, under the codecs of its manifest.

    Args:
        manifest: The run.
        credits: Microbatches that an agent may have at the worker.
        num_agents: Agents to reckon with.
        max_packet_bytes: Largest MQTT packet; a larger message goes in chunks, which have headers of their own.
        is_pooled: Whether there are other workers.

    Raises:
        SettingsError: When a microbatch has more numbers than any message may carry.
    """
    sizes = [_wire_size(*message, max_packet_bytes) for message in _messages(manifest)]
    message_bytes, message_packets = max(sizes)
    return BrokerBudget(num_agents, credits, message_bytes, message_packets, is_pooled)


def _messages(manifest: Manifest) -> Iterator[tuple[str, Message, int]]:
    """Yield (topic, message, bytes of its tensors) of a microbatch: numbers at their longest, tensors empty."""
    num_samples, codecs = manifest.microbatch_samples, manifest.codecs
    tokens = {name: (num_samples, manifest.num_tokens(name), manifest.width) for name in sorted(manifest.modalities)}
    names = (codecs.activations, *manifest.budget.ladder)
    sizes = [max(_tensor_bytes(codec, shape) for codec in names) for shape in tokens.values()]
    tensors = tuple((name, EncodedTensor(max(names, key=len), shape, b"")) for name, shape in tokens.items())
    mask = bytes(mask_bytes(num_samples))
    positions = tuple(
        (name, bytes(num_samples * mask_bytes(manifest.modalities[name].num_tokens)))
        for name in sorted(manifest.modalities)
    )
    numbers = b"" if manifest.activations == "every-step" else bytes(4 * num_samples)
    bases = bytes(bases_bytes(num_samples)) if manifest.activations == "delta" else b""
    activations = Activations(
        MAX_U32,
        MAX_UINT,
        Mode.PREDICT,
        num_samples,
        tensors,
        samples=numbers,
        stored=mask if numbers else b"",
        bases=bases,
        positions=positions,
    )
    yield LONGEST_UP_TOPIC, activations, sum(sizes)
    shape = (num_samples, manifest.num_outputs)
    outputs = EncodedTensor(codecs.outputs, shape, b"")
    outputs_bytes = _tensor_bytes(codecs.outputs, shape)
    yield LONGEST_TOPIC, Outputs(MAX_U32, MAX_UINT, Mode.PREDICT, MAX_UINT, 0.1, outputs), outputs_bytes
    gradients = EncodedTensor(codecs.output_gradients, shape, b"")
    gradients_bytes = _tensor_bytes(codecs.output_gradients, shape)
    yield LONGEST_UP_TOPIC, OutputGradients(MAX_U32, MAX_UINT, MAX_UINT, gradients), gradients_bytes


def _tensor_bytes(codec: str, shape: tuple[int, ...]) -> int:
    if math.prod(shape) > MAX_TENSOR_ELEMENTS:
        raise SettingsError(
            f"a microbatch of shape {shape} has more than the {MAX_TENSOR_ELEMENTS:,} numbers that a message carries",
            "lower run.microbatch_samples",
        )
    return BIN_HEADER_BYTES + codec_from_name(codec).max_encoded_bytes(shape)


def _wire_size(topic: str, message: Message, tensor_bytes: int, max_packet_bytes: int) -> tuple[int, int]:
    """Return the bytes on the wire, and the packets."""
    num_bytes = len(serialize(message)) + tensor_bytes
    limit = largest_payload(topic, max_packet_bytes)
    num_packets = 1
    if num_bytes > limit:
        num_packets = -(-num_bytes // (limit - CHUNK_OVERHEAD_BYTES))
        num_bytes += num_packets * CHUNK_OVERHEAD_BYTES
    headers = publish_size(topic, min(num_bytes, limit), qos=1, protocol="5") - min(num_bytes, limit)
    return num_bytes + num_packets * headers, num_packets


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _text(num_bytes: int) -> str:
    """Return a number of bytes as people read it, such as `98 kB` or `1.2 MB`."""
    value = float(num_bytes)
    for unit in BYTE_UNITS[:-1]:
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:,.1f} {BYTE_UNITS[-1]}"
