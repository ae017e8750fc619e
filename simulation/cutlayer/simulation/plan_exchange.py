"""What an agent's microbatches cost: the messages of each step, made as agent and worker make them, and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from cutlayer.broker.actions import Publish
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Candidate,
    EncodedTensor,
    Mode,
    OutputGradients,
    Outputs,
    TokenizerWeights,
)
from cutlayer.broker.sample_refs import pack_mask, pack_numbers
from cutlayer.broker.tensors import WEIGHTS_CODEC, encode_tensor
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.work import NamedTensors
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.simulation.plan_schedule import Alike, Example
from cutlayer.simulation.plan_wire import Link, Ways, mean

ANY_NAME: Final = "0" * 32
"""As long as a candidate's name is."""

__all__ = ["Exchanges", "Parties", "SentTensors", "Tensors"]


@dataclass(frozen=True, slots=True)
class Parties:
    """Who talks, as far as it decides sizes.

    Attributes:
        agent: The agent's topic.
        worker: The worker's name.
        client_id: The agent's MQTT client identifier.
        incarnation: Start of a process, in milliseconds since the epoch.
        lease: A lease's number, of the size that nearly all have.
        store: Name of the worker's store; empty for none.
    """

    agent: str
    worker: str
    client_id: str
    incarnation: int
    store: str
    lease: int = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class SentTensors:
    """What goes up of the fresh samples of a microbatch.

    Attributes:
        tensors: (modality, tensor).
        positions: (modality, which tokens were kept), where they are reduced.
        bases: What the tensors are changes to; empty where they are the activations themselves.
    """

    tensors: NamedTensors = ()
    positions: tuple[tuple[str, bytes], ...] = ()
    bases: bytes = b""


class Tensors(Protocol):
    """Encoded tensors, real ones or as large as they can be."""

    def activations(self, alike: Alike, example: Example) -> SentTensors:
        """Return what goes up of the fresh samples of a microbatch, which has some."""

    def outputs(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return its outputs."""

    def output_gradients(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return their gradients."""

    def cut_gradients(self, alike: Alike) -> NamedTensors:
        """Return the gradients at the cut of a microbatch; none where tokenizers are frozen."""

    def tokenizer_gradients(self) -> NamedTensors:
        """Return the gradients of the tokenizers' parameters."""


@dataclass(frozen=True, slots=True)
class Exchanges:
    """The messages of one agent's microbatches.

    Attributes:
        manifest: The run.
        parties: Who talks.
        link: The agent's connection.
        tensors: What the messages carry.
        plan: The agent's samples.
        versions_per_step: Versions of the weights that come with each step of this agent.
    """

    manifest: Manifest
    parties: Parties
    link: Link
    tensors: Tensors
    plan: EpochPlan
    versions_per_step: float

    def activations(self, alike: Alike) -> Ways:
        """Return what the Activations of a microbatch of this kind take."""
        return mean([self._activations(alike, example) for example in alike.examples])

    def answers(self, alike: Alike) -> Ways:
        """Return what the other messages of its exchange take: outputs and, in training, gradients and the commit."""
        return mean([self._answers(alike, example) for example in alike.examples])

    def tokenizer_gradients(self) -> Ways:
        """Return what the gradients of the tokenizers add to the output gradients that they go with."""
        topic = AgentTopics(self.parties.agent).up_gradients(self.parties.worker)
        shape = (self.manifest.microbatch_samples, self.manifest.num_outputs)
        outputs = encode_tensor(self.manifest.codecs.output_gradients, np.zeros(shape, np.float32))
        without, with_them = (
            self.link.up(Publish(topic, OutputGradients(self.parties.lease, 0, 0, outputs, tensors)))
            for tensors in ((), self.tensors.tokenizer_gradients())
        )
        return with_them + without * -1

    def tokenizer_weights(self, version: int) -> Ways:
        """Return what new weights of the tokenizers take."""
        message = TokenizerWeights(self.parties.lease, version, self._new_weights())
        return self.link.down(Publish(AgentTopics(self.parties.agent).down_gradients, message))

    def candidate(self, epoch: int) -> Ways:
        """Return what the offer of a candidate takes, with the tokenizers' weights where they are trained."""
        is_trained = self.manifest.tokenizers.mode == "trainable"
        message = Candidate(self.parties.lease, epoch, ANY_NAME, self._new_weights() if is_trained else ())
        return self.link.down(Publish(AgentTopics(self.parties.agent).down_control, message))

    def _new_weights(self) -> NamedTensors:
        return tuple(
            (name, encode_tensor(WEIGHTS_CODEC, np.zeros(shape, np.float32)))
            for name, shape in sorted(self.manifest.parameter_shapes().items())
        )

    def _activations(self, alike: Alike, example: Example) -> Ways:
        num_stored = alike.num_samples - alike.num_fresh
        sent = self.tensors.activations(alike, example) if alike.num_fresh else SentTensors()
        plan = self.plan
        first = {"train": 0, "test": plan.num_train, "val": plan.num_train + plan.num_test}
        numbers_B = example.indices_B + first[alike.split]
        message = Activations(
            self.parties.lease,
            example.step,
            alike.mode,
            alike.num_samples,
            sent.tensors,
            samples=pack_numbers(numbers_B) if alike.is_numbered else b"",
            stored=pack_mask(np.arange(alike.num_samples) < num_stored),
            candidate=ANY_NAME if alike.split == "val" else "",
            from_store=() if alike.num_fresh else alike.given,
            bases=sent.bases,
            positions=sent.positions,
        )
        topics = AgentTopics(self.parties.agent)
        return self.link.up(Publish(topics.up_activations(self.parties.worker), message))

    def _answers(self, alike: Alike, example: Example) -> Ways:
        topics, lease, step = AgentTopics(self.parties.agent), self.parties.lease, example.step
        version = round(step * self.versions_per_step)
        outputs = Outputs(lease, step, alike.mode, version, 0.0, self.tensors.outputs(alike, example))
        ways = self.link.down(Publish(topics.down_outputs, outputs))
        if alike.mode is not Mode.TRAIN:
            return ways
        gradients = OutputGradients(lease, step, version, self.tensors.output_gradients(alike, example))
        commit = ActivationGradients(lease, step, version, 0.0, self.tensors.cut_gradients(alike))
        return (
            ways
            + self.link.up(Publish(topics.up_gradients(self.parties.worker), gradients))
            + self.link.down(Publish(topics.down_gradients, commit))
        )
