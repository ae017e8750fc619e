"""The worker's side of the steps: what comes in of each microbatch, and what goes back.

It checks what agents send, and answers what it has seen before with what it answered then, so that whoever has lost a
message is helped by sending its own again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import Duplicate, Publish, Refused, WorkerAction
from cutlayer.broker.errors import MalformedMessage, WireError
from cutlayer.broker.leases import Lease
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    EncodedTensor,
    Mode,
    OutputGradients,
    Outputs,
    Phase,
    Resend,
    ResendReason,
)
from cutlayer.broker.ragged_tokens import is_ragged, present, tensor_shape
from cutlayer.broker.sample_refs import unpack_bases, unpack_mask, unpack_numbers, unpack_positions
from cutlayer.broker.states import ExchangeState, next_state
from cutlayer.broker.tensors import check_tensor
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.work import Exchange, Key, NamedTensors
from cutlayer.broker.worker_run import WorkerRun

__all__ = ["ContentRefused", "WorkerSteps"]


class ContentRefused(Exception):
    """What an agent has sent would be as wrong the next time; the text says what it is."""


class WorkerSteps:
    """The exchanges of one worker.

    Args:
        run: What the session's parts share.
    """

    def __init__(self, run: WorkerRun) -> None:
        self._run = run

    # From the agents ------------------------------------------------------------------------------------------

    def activations(self, lease: Lease, message: Activations, now: float) -> list[WorkerAction]:
        """Take a microbatch.

        Raises:
            ContentRefused: When it is not what the manifest says.
        """
        run = self._run
        key = Key(lease.agent, message.mode, message.step)
        if key.mode is Mode.TRAIN and key.step in run.ledger.of(lease.agent):
            return [Duplicate("Activations"), self._commit_again(lease, key.step)]
        if message.candidate and (refusal := self._refuse_candidate(lease, message)) is not None:
            return refusal
        if key.mode is Mode.TRAIN and run.selection is not None and run.selection.is_restored:
            # Training has ended early, and the agent has not heard of it.
            phase = Phase(lease.lease, run.phase, run.reason)
            return [
                Refused("state", f"a training step of {lease.agent} after the end of training"),
                Publish(AgentTopics(lease.agent).down_control, phase, repeated=True),
            ]
        exchange = run.in_hand.exchanges.get(key)
        if exchange is not None:
            # Under another lease it is what an earlier process of this agent has sent the gradients of: it will be
            # committed, and the agent is told so under the lease that it has now.
            exchange.lease = lease.lease
            actions: list[WorkerAction] = [Duplicate("Activations")]
            if exchange.outputs is not None and exchange.state is ExchangeState.OUTPUTS:
                actions.append(Publish(AgentTopics(lease.agent).down_outputs, exchange.outputs, repeated=True))
            return actions
        try:
            self._check_activations(lease, message)
        except WireError as error:
            raise ContentRefused(str(error)) from error
        if run.in_hand.num_of(lease.agent) >= run.limits.credits and not self._make_room(key):
            return [Refused("credits", f"{lease.agent} sends more than its {run.limits.credits} credits")]
        run.in_hand.add(Exchange(key, lease.lease, message, ExchangeState.ACTIVATIONS, message.num_samples, now))
        return []

    def _refuse_candidate(self, lease: Lease, message: Activations) -> list[WorkerAction] | None:
        """Return what to say of an evaluation of a candidate that is not held; None for one that is.

        In a round it may be about to become one: others of the pool may have ended the round already.
        """
        if message.mode is not Mode.EVAL:
            raise ContentRefused(f"{message.mode} with a candidate's weights, which is for eval alone")
        run = self._run
        if run.selection is not None and (message.candidate in run.selection.held or run.scheduler.is_in_round):
            return None
        resend = Resend(lease.lease, message.step, message.mode, ResendReason.CANDIDATE)
        return [Publish(AgentTopics(lease.agent).down_control, resend)]

    def drop_unheld(self) -> list[WorkerAction]:
        """Forget the evaluations of candidates that are not held any more, and say so."""
        run = self._run
        held = () if run.selection is None else run.selection.held
        actions: list[WorkerAction] = []
        for key, exchange in list(run.in_hand.exchanges.items()):
            if exchange.activations.candidate and exchange.activations.candidate not in held:
                run.in_hand.discard(key)
                resend = Resend(exchange.lease, key.step, key.mode, ResendReason.CANDIDATE)
                actions.append(Publish(AgentTopics(key.agent).down_control, resend))
        return actions

    def _make_room(self, key: Key) -> bool:
        """Forget a training step of an agent that lacks its gradients; return whether there is one.

        An agent keeps to its credits. Where it sends more it has taken something back that is still here: in
        synchronous mode the last step, for an earlier one, and otherwise the oldest here, which it has sent to another
        worker.
        """
        is_open = (ExchangeState.ACTIVATIONS, ExchangeState.OUTPUTS)
        exchanges = self._run.in_hand.exchanges.items()
        held = [one for one, exchange in exchanges if one.agent == key.agent and exchange.state in is_open]
        held = [one for one in held if one.mode is Mode.TRAIN]
        if not held:
            return False
        last = max(held, key=lambda one: one.step)
        is_in_order = self._run.manifest.window.mode == "synchronous" and key.mode is Mode.TRAIN
        self._run.in_hand.discard(last if is_in_order and key.step < last.step else held[0])
        return True

    def _check_activations(self, lease: Lease, message: Activations) -> None:
        given = message.modalities
        manifest = self._run.manifest
        specs = manifest.modalities
        if not given or len(set(given)) != len(given) or not set(given) <= set(specs):
            raise MalformedMessage(f"modalities {list(given)} are not some of {sorted(specs)}, each at most once")
        if message.mode is Mode.TRAIN and message.step >= lease.total_steps:
            raise MalformedMessage(f"step {message.step} of an agent that has {lease.total_steps}")
        if not 1 <= message.num_samples <= manifest.microbatch_samples:
            raise MalformedMessage(
                f"{message.num_samples} samples in a microbatch of at most {manifest.microbatch_samples}"
            )
        num_fresh = self._check_refs(message)
        positions = self._check_positions(message, num_fresh)
        codecs = self._run.activation_codecs(lease)
        for name, tensor in message.tensors:
            shape = (num_fresh, manifest.num_tokens(name), manifest.width)
            if name in positions and not message.bases:
                shape = tensor_shape(positions[name], specs[name].num_tokens, manifest.width)
            check_tensor(tensor, shape=shape, codec=codecs, what=f"activations of {name}")

    def _check_refs(self, message: Activations) -> int:
        """Check what a microbatch says of its samples; return how many of them are fresh."""
        manifest, num_samples = self._run.manifest, message.num_samples
        num_fresh = num_samples - int(unpack_mask(message.stored, num_samples).sum())
        if message.samples:
            unpack_numbers(message.samples, num_samples)
        elif message.stored or message.bases:
            raise MalformedMessage("references to stored samples without their numbers")
        if message.stored and manifest.activations == "every-step":
            raise MalformedMessage("references to stored samples in a run that keeps none")
        if bool(message.tensors) != bool(num_fresh) or bool(message.from_store) == bool(num_fresh):
            raise MalformedMessage(f"{len(message.tensors)} tensors of {num_fresh} fresh samples")
        if message.bases:
            if manifest.activations != "delta" or message.stored:
                raise MalformedMessage("changes of activations, where a run or a message has none")
            unpack_bases(message.bases, num_fresh)
        return num_fresh

    def _check_positions(self, message: Activations, num_fresh: int) -> dict[str, NDArray[np.intp]]:
        """Check which tokens there are of a microbatch's fresh samples; return them where it says so: (F, K)."""
        manifest = self._run.manifest
        given = {name for name, _ in message.tensors}
        named = [name for name, _ in message.positions]
        needed = sorted(given & manifest.reduction.keys())
        if len(set(named)) != len(named) or not given.issuperset(named) or not set(named).issuperset(needed):
            raise MalformedMessage(f"positions of {named} with tensors of {sorted(given)}, needed are {needed}")
        positions: dict[str, NDArray[np.intp]] = {}
        for name, masks in message.positions:
            num_tokens = manifest.modalities[name].num_tokens
            positions[name] = unpack_positions(masks, num_fresh, num_tokens, manifest.num_tokens(name))
            if name not in manifest.reduction and not is_ragged(positions[name], num_tokens):
                raise MalformedMessage(f"positions of {name}, whose tokens are all there")
        if positions and positions.keys() == given:
            empty_F = np.ones(num_fresh, bool)
            for name, places_FK in positions.items():
                empty_F &= ~present(places_FK, manifest.modalities[name].num_tokens)[:, 0]
            if empty_F.any():
                raise MalformedMessage(f"{int(empty_F.sum())} of {num_fresh} samples have no token at all")
        return positions

    def gradients(self, lease: Lease, message: OutputGradients, now: float) -> list[WorkerAction]:
        """Take a microbatch's output gradients.

        Raises:
            ContentRefused: When they are not what the manifest says.
        """
        in_hand = self._run.in_hand
        key = Key(lease.agent, Mode.TRAIN, message.step)
        if key.step in self._run.ledger.of(lease.agent):
            return [Duplicate("OutputGradients"), self._commit_again(lease, key.step)]
        exchange = in_hand.exchanges.get(key)
        if exchange is None or exchange.lease != lease.lease:
            resend = Resend(lease.lease, key.step, Mode.TRAIN, ResendReason.UNKNOWN)
            return [Publish(AgentTopics(lease.agent).down_control, resend)]
        after = next_state(Mode.TRAIN, exchange.state, OutputGradients)
        if after is None or exchange.outputs is None:
            return [Refused("state", f"OutputGradients in state {exchange.state.name}")]
        if after is exchange.state:
            return [Duplicate("OutputGradients")]
        if message.version != exchange.outputs.version:
            # The agent has taken late outputs for the last ones, and would wait for a commit in vain.
            outputs = Publish(AgentTopics(lease.agent).down_outputs, exchange.outputs, repeated=True)
            return [Refused("late", "gradients of other outputs than the last ones"), outputs]
        shape = (exchange.num_samples, self._run.manifest.num_train_outputs)
        try:
            check_tensor(message.gradients, shape=shape, codec=lease.codecs.output_gradients, what="output gradients")
        except WireError as error:
            raise ContentRefused(str(error)) from error
        of_tokenizers = message.tokenizer_gradients
        self._check_tokenizer_gradients(lease, of_tokenizers)
        exchange.received_at = now
        if exchange.group is None:  # of weights that are too old: new outputs follow
            in_hand.forward_again(exchange, now)
        else:
            in_hand.take_gradients(exchange, message.gradients, now, of_tokenizers)
        return []

    def _check_tokenizer_gradients(self, lease: Lease, tensors: NamedTensors) -> None:
        manifest = self._run.manifest
        names = [name for name, _ in tensors]
        if names and manifest.tokenizers.mode == "frozen":
            raise ContentRefused(f"gradients of tokenizers that are frozen: {names}")
        shapes = manifest.parameter_shapes()
        if len(set(names)) != len(names) or not set(names) <= set(shapes):
            raise ContentRefused(f"gradients of {names} are not of {sorted(shapes)}, each at most once")
        codec = lease.codecs.output_gradients
        try:
            for name, tensor in tensors:
                check_tensor(tensor, shape=shapes[name], codec=codec, what=f"gradient of {name}")
        except WireError as error:
            raise ContentRefused(str(error)) from error

    def _commit_again(self, lease: Lease, step: int) -> Publish:
        tensors = self._run.commits.of(lease.agent, step)
        commit = ActivationGradients(lease.lease, step, self._run.in_hand.window, 0.0, tensors)
        return Publish(AgentTopics(lease.agent).down_gradients, commit, repeated=True)

    # To the agents --------------------------------------------------------------------------------------------

    def lacks(self, key: Key, missing: bytes) -> list[WorkerAction]:
        """Forget a microbatch whose samples the store lacks, and ask for their tensors."""
        exchange = self._run.in_hand.exchanges.get(key)
        if exchange is None:
            return []
        self._run.in_hand.discard(key)
        resend = Resend(exchange.lease, key.step, key.mode, ResendReason.MISSING, missing)
        return [Publish(AgentTopics(key.agent).down_control, resend)]

    def forwarded(
        self, group: int, outputs: dict[Key, EncodedTensor], version: int, now: float, unkept: Mapping[Key, bytes]
    ) -> list[WorkerAction]:
        """Send the outputs of a forward pass, each to its agent."""
        actions: list[WorkerAction] = []
        for exchange in self._run.in_hand.forwarded(group, tuple(outputs), version, now):
            message = Outputs(
                exchange.lease,
                exchange.key.step,
                exchange.key.mode,
                version,
                max(now - exchange.received_at, 0.0),
                outputs[exchange.key],
                unkept.get(exchange.key, b""),
            )
            exchange.outputs = message if exchange.key.mode is Mode.TRAIN else None
            actions.append(Publish(AgentTopics(exchange.key.agent).down_outputs, message))
        return actions

    def tell_committed(self, exchanges: Iterable[Exchange], window: int, now: float) -> list[WorkerAction]:
        """Tell the agents of committed microbatches, those that still hold leases."""
        actions: list[WorkerAction] = []
        for exchange in exchanges:
            agent, step = exchange.key.agent, exchange.key.step
            if self._run.leases.of(agent) is not None:
                self._run.commits.keep(agent, step, exchange.cut_gradients)
            if self._run.leases.numbered(exchange.lease) is not None:
                server_s = max(now - exchange.received_at, 0.0)
                commit = ActivationGradients(exchange.lease, step, window, server_s, exchange.cut_gradients)
                actions.append(Publish(AgentTopics(agent).down_gradients, commit))
        return actions

    def ask_again(self, exchanges: Iterable[Exchange]) -> list[WorkerAction]:
        """Ask for activations again whose graphs are of no use any more."""
        return [
            Publish(
                AgentTopics(exchange.key.agent).down_control,
                Resend(exchange.lease, exchange.key.step, exchange.key.mode, ResendReason.STALE),
            )
            for exchange in exchanges
        ]
