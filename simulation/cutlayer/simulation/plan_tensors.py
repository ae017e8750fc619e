"""Encoded tensors for a plan: those of the agent's own samples, or, without data, as large as a codec can make them.

Axes: B samples, F fresh ones, N tokens, K tokens that are left, R tokens that are there, D width, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor, Mode
from cutlayer.broker.ragged_tokens import num_present, pack_rows, present, tensor_shape
from cutlayer.broker.sample_refs import bases_bytes, mask_bytes, pack_positions
from cutlayer.broker.tensors import encode_tensor
from cutlayer.broker.work import NamedTensors
from cutlayer.compression import codec_from_name
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.server_worker.contrastive import info_nce
from cutlayer.server_worker.modality_dropout import draw_keep
from cutlayer.simulation.plan_changes import Changes, follow
from cutlayer.simulation.plan_exchange import SentTensors
from cutlayer.simulation.plan_schedule import Alike, Example
from cutlayer.simulation.plan_trial import Trial

__all__ = ["AgentSeconds", "BoundTensors", "Forward", "MeasuredTensors", "has_fixed_size"]

Forward = Callable[[Mapping[str, NDArray[np.float32]], Mapping[str, NDArray[np.intp]]], NDArray[np.float32]]
"""The server side of the model: tokens (B, K, D) and positions (B, K) by modality to outputs (B, C)."""

MAX_DRAWS = 512
"""Steps whose dropped modalities are drawn, as the worker draws them."""
MAX_TIMES = 8


@dataclass(slots=True)
class AgentSeconds:
    """Processor seconds of the agent's work on this machine.

    Attributes:
        tokenize: Of whole microbatches: raw samples to tokens.
        encode: Of the same: tokens to bytes.
        learn: Of the same: gradients at the cut to those of the tokenizers; empty where these are frozen.
        num_samples: Samples of each.
    """

    num_samples: int
    tokenize: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    learn: list[float] = field(default_factory=list)


class MeasuredTensors:
    """What codecs make of an agent's own samples.

    Outputs and their gradients are those of the model as it is before training: where their codec's size depends on
    its input, later ones may be somewhat larger or smaller.

    Args:
        manifest: The run.
        client: The client side of its model, over the agent's data.
        forward: The server side.
        plan: The agent's samples.
        dropout: Probability that a modality of a training sample is dropped.

    Attributes:
        client: The client side.
        plan: The agent's samples.
        seconds: How long the agent's work took.
        trial: What a trial of the run has shown; needed where tokenizers are trained and sizes depend on values.
    """

    def __init__(
        self, manifest: Manifest, client: ClientSide, forward: Forward, plan: EpochPlan, *, dropout: float = 0.0
    ) -> None:
        self.client = client
        self.plan = plan
        self.seconds = AgentSeconds(manifest.microbatch_samples)
        self.trial: Trial | None = None
        self._manifest = manifest
        self._forward = forward
        self._dropout = dropout
        self._is_trained = manifest.tokenizers.mode == "trainable"
        self._outputs: dict[int, NDArray[np.float32]] = {}
        self._changes: Changes | None = None
        self._given: dict[str, float] | None = None

    def activations(self, alike: Alike, example: Example) -> SentTensors:
        """Return what goes up of the fresh samples."""
        fresh_F = example.indices_B[alike.num_samples - alike.num_fresh :]
        if self.trial is not None:
            self.client.take_weights(self.trial.weights_at(sum(alike.epochs) / 2))
        started_s = time.process_time()
        tokenized = self.client.tokenize(alike.split, fresh_F, alike.given)
        tokenized_s = time.process_time()
        positions = tuple(
            (name, pack_positions(places_FK, self._manifest.modalities[name].num_tokens))
            for name, places_FK in tokenized.positions
        )
        is_whole = alike.num_fresh == self._manifest.microbatch_samples
        is_whole &= len(alike.given) == len(self._manifest.modalities)
        if is_whole:
            self.seconds.tokenize.append(tokenized_s - started_s)
            self._learn(fresh_F, alike, dict(tokenized.positions), dict(tokenized.tokens))
        if alike.visit is not None:
            tensors, bases = self._followed().of(alike.split, alike.visit, alike.num_samples)
            return SentTensors(tensors, positions, bases)
        codec = self._manifest.codecs.activations
        encoding_s = time.process_time()
        places, specs = dict(tokenized.positions), self._manifest.modalities
        tensors = tuple(
            (
                name,
                encode_tensor(
                    codec,
                    pack_rows(tokens_FKD, places[name], specs[name].num_tokens) if name in places else tokens_FKD,
                ),
            )
            for name, tokens_FKD in tokenized.tokens
        )
        if is_whole:
            self.seconds.encode.append(time.process_time() - encoding_s)
        return SentTensors(tensors, positions)

    def outputs(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return the untrained model's outputs."""
        return encode_tensor(self._manifest.codecs.outputs, self._answer(alike, example))

    def output_gradients(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return the gradient of the loss at these."""
        targets = self.client.targets(alike.split, example.indices_B)
        outputs = self.outputs(alike, example)
        result = self.client.loss(outputs, targets, self._manifest.codecs.outputs)
        return encode_tensor(self._manifest.codecs.output_gradients, result.gradient_BC)

    def cut_gradients(self, alike: Alike) -> NamedTensors:
        """Return gradients at the cut of the size that a trial has shown, or that their codec always makes."""
        if not self._is_trained:
            return ()
        codec = self._manifest.codecs.activation_gradients
        found = []
        for name in alike.given:
            shape, share_there = self._shape_of(alike, name)
            if has_fixed_size(codec):
                found.append((name, encode_tensor(codec, np.zeros(shape, np.float32))))
                continue
            assert self.trial is not None, "sizes that depend on values are measured"
            given_bytes = self.trial.cut_bytes_between(name, alike.num_samples, alike.epochs)
            num_bytes = given_bytes * alike.num_samples * share_there * self._share_given(name)
            found.append((name, EncodedTensor(codec, shape, bytes(round(num_bytes)))))
        return tuple(found)

    def tokenizer_gradients(self) -> NamedTensors:
        """Return gradients of the tokenizers, of a trial's sizes or of those that their codec always makes."""
        codec, found = self._manifest.codecs.output_gradients, []
        for name, shape in sorted(self._manifest.parameter_shapes().items()):
            shown = self.trial.tokenizer_bytes.get(name) if self.trial is not None else None
            if shown and not has_fixed_size(codec):
                found.append((name, EncodedTensor(codec, shape, bytes(round(np.mean(shown))))))
            else:
                found.append((name, encode_tensor(codec, np.zeros(shape, np.float32))))
        return tuple(found)

    def _shape_of(self, alike: Alike, name: str) -> tuple[tuple[int, int, int], float]:
        """Return the shape that a modality's gradients at the cut come in, and which share of samples has any of it.

        Where samples lack tokens, both are means over examples.
        """
        manifest, rows, shares = self._manifest, [], []
        whole = alike.num_samples, manifest.num_tokens(name), manifest.width
        for example in alike.examples:
            places = dict(self.client.tokenize(alike.split, example.indices_B, (name,)).positions).get(name)
            if places is None:
                return whole, 1.0
            num_tokens = manifest.modalities[name].num_tokens
            if tensor_shape(places, num_tokens, manifest.width) == whole:
                rows.append(whole[0] * whole[1])
            else:
                rows.append(num_present(places, num_tokens))
            shares.append(float(present(places, num_tokens).any(axis=1).mean()))
        if min(rows) == whole[0] * whole[1]:
            return whole, 1.0
        return (1, round(sum(rows) / len(rows)), manifest.width), sum(shares) / len(shares)

    def _followed(self) -> Changes:
        if self._changes is None:
            weights_at = None if self.trial is None else self.trial.weights_at
            self._changes = follow(self._manifest, self.client, self.plan, weights_at)
            self.seconds.encode += self._changes.encode_s
        return self._changes

    def _learn(
        self,
        indices_B: NDArray[np.int64],
        alike: Alike,
        positions: Mapping[str, NDArray[np.intp]],
        gradients: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Time the tokenizers' backward pass; its time does not depend on what is in the gradients."""
        if self._is_trained and len(self.seconds.learn) < MAX_TIMES:
            started_s = time.process_time()
            self.client.tokenizer_gradients(alike.split, indices_B, positions, gradients)
            self.seconds.learn.append(time.process_time() - started_s)

    def _share_given(self, name: str) -> float:
        """Return which share of the agent's training samples the encoder sees with a modality."""
        names = sorted(self._manifest.modalities)
        if not self._dropout or len(names) == 1:
            return 1.0
        if self._given is None:
            shape, plan = (self._manifest.microbatch_samples, len(names)), self.plan
            keys = [(plan.agent, "train", step) for step in range(min(plan.total_steps, MAX_DRAWS))]
            kept_M = np.mean(
                [draw_keep(self._manifest.seed, key, shape, self._dropout).mean(axis=0) for key in keys], axis=0
            )
            self._given = dict(zip(names, kept_M.tolist(), strict=True))
        return self._given[name]

    def _answer(self, alike: Alike, example: Example) -> NDArray[np.float32]:
        """Return what the worker sends of a microbatch: outputs, or in training each sample's loss among the others."""
        outputs_BC = self._outputs_of(alike, example)
        if alike.mode is not Mode.TRAIN or self._manifest.num_train_outputs == self._manifest.num_outputs:
            return outputs_BC
        losses_B: NDArray[np.float32] = info_nce(torch.from_numpy(outputs_BC)).numpy()
        return losses_B[:, None]

    def _outputs_of(self, alike: Alike, example: Example) -> NDArray[np.float32]:
        """Compute outputs once for each size of microbatch: their size, not their values, is what is asked for."""
        outputs_BC = self._outputs.get(alike.num_samples)
        if outputs_BC is None:
            tokenized = self.client.tokenize(alike.split, example.indices_B, tuple(sorted(self._manifest.modalities)))
            outputs_BC = self._forward(dict(tokenized.tokens), dict(tokenized.positions))
            self._outputs[alike.num_samples] = outputs_BC
        return outputs_BC


class BoundTensors:
    """The most that codecs can make of samples that nobody has seen.

    Args:
        manifest: The run.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def activations(self, alike: Alike, example: Example) -> SentTensors:
        """Return what goes up of the fresh samples."""
        del example
        manifest, num_fresh = self._manifest, alike.num_fresh
        tensors = self._at_the_cut(manifest.codecs.activations, num_fresh, alike.given)
        positions = tuple(
            (name, bytes(num_fresh * mask_bytes(manifest.modalities[name].num_tokens)))
            for name in alike.given
            if name in manifest.reduction
        )
        bases = b"" if alike.visit is None else bytes(bases_bytes(num_fresh))
        return SentTensors(tensors, positions, bases)

    def outputs(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return outputs."""
        del example
        return _largest(self._manifest.codecs.outputs, self._answer_shape(alike))

    def output_gradients(self, alike: Alike, example: Example) -> EncodedTensor:
        """Return their gradients."""
        del example
        return _largest(self._manifest.codecs.output_gradients, self._answer_shape(alike))

    def cut_gradients(self, alike: Alike) -> NamedTensors:
        """Return gradients at the cut."""
        if self._manifest.tokenizers.mode == "frozen":
            return ()
        return self._at_the_cut(self._manifest.codecs.activation_gradients, alike.num_samples, alike.given)

    def tokenizer_gradients(self) -> NamedTensors:
        """Return gradients of the tokenizers."""
        codec = self._manifest.codecs.output_gradients
        return tuple(
            (name, _largest(codec, shape)) for name, shape in sorted(self._manifest.parameter_shapes().items())
        )

    def _answer_shape(self, alike: Alike) -> tuple[int, int]:
        manifest = self._manifest
        return alike.num_samples, manifest.num_train_outputs if alike.mode is Mode.TRAIN else manifest.num_outputs

    def _at_the_cut(self, codec: str, num_samples: int, given: tuple[str, ...]) -> NamedTensors:
        manifest = self._manifest
        return tuple(
            (name, _largest(codec, (num_samples, manifest.num_tokens(name), manifest.width))) for name in given
        )


def has_fixed_size(codec: str) -> bool:
    """Return whether a codec makes as many bytes of any tensor of a shape: tried with three that differ widely."""
    noise = np.random.default_rng(0).normal(size=(4, 8, 64)).astype(np.float32)
    spikes = np.where(np.abs(noise) > 2, noise, np.float32(0))
    return len({len(encode_tensor(codec, array).data) for array in (noise, spikes, np.zeros_like(noise))}) == 1


def _largest(codec: str, shape: tuple[int, ...]) -> EncodedTensor:
    return EncodedTensor(codec, shape, bytes(codec_from_name(codec).max_encoded_bytes(shape)))
