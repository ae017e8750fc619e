"""The agent's work under way: samples become activations, outputs become gradients, commits tick steps off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import OutputsReceived
from cutlayer.broker.errors import RunError, WireError
from cutlayer.broker.messages import EncodedTensor, Mode, NegotiatedCodecs, RunPhase
from cutlayer.broker.tensors import encode_tensor
from cutlayer.compression import CodecError
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.work_items import WorkItem, WorkItems

__all__ = ["Microbatch", "Workbench"]


@dataclass(frozen=True, slots=True)
class Microbatch:
    """A microbatch, ready to go up.

    Attributes:
        step: Its number in its mode.
        mode: Train or eval.
        num_samples: Samples B.
        tensors: (modality, tokens (B, N, D)) of each modality given.
    """

    step: int
    mode: Mode
    num_samples: int
    tensors: tuple[tuple[str, EncodedTensor], ...]


@dataclass(slots=True)
class _InFlight:
    item: WorkItem
    labels_B: NDArray[np.int64]
    is_answered: bool = False


class Workbench:
    """Does one agent's part of the arithmetic, and remembers what is out.

    Args:
        enrolled: The run, and the client side of its model.
        reporter: Counts what is done.
    """

    def __init__(self, enrolled: Enrolled, reporter: Reporter) -> None:
        manifest = enrolled.manifest
        self.items = WorkItems(
            enrolled.plan,
            tuple(sorted(manifest.modalities)),
            every_epochs=manifest.evaluation.every_epochs,
            evaluation_samples=manifest.evaluation.samples,
        )
        self.telemetry_s = manifest.telemetry_s
        self.is_finishing = False
        """Whether the evaluations of the finished model have begun."""
        self._client = enrolled.client
        self._reporter = reporter
        self._in_flight: dict[tuple[Mode, int], _InFlight] = {}

    @property
    def is_finished(self) -> bool:
        """Whether the finished model has been evaluated."""
        # A training step that is still out then came too late for this run.
        is_evaluating = self.items.has_evaluations or any(mode is not Mode.TRAIN for mode, _ in self._in_flight)
        return self.is_finishing and not is_evaluating

    def resume(self, committed: tuple[tuple[int, int], ...], phase: RunPhase) -> bool:
        """Go by a worker's ledger.

        Args:
            committed: Ranges of this agent's steps in it.
            phase: The run's.

        Returns:
            Whether it lacks a step that was taken for committed. Then all of training that is out is taken up anew,
            so that steps go up in order.
        """
        lacks_steps = self.items.resume(committed)
        for mode, step in list(self._in_flight):
            if mode is Mode.TRAIN and step in self.items.committed:  # its commit was under the lease before
                self.committed(step)
        if lacks_steps:
            self._in_flight = {key: flight for key, flight in self._in_flight.items() if key[0] is not Mode.TRAIN}
        if self.is_finishing and phase in (RunPhase.WAITING, RunPhase.TRAINING):
            # The run is back at a checkpoint: if it lacks a step of anybody, the model was not finished after all.
            self.is_finishing = False
            self._in_flight = {key: flight for key, flight in self._in_flight.items() if key[0] is Mode.TRAIN}
            self.items.forget_evaluations()
            self._reporter.forget_final_evaluations()
        return lacks_steps

    def finish(self) -> None:
        """Begin to evaluate the finished model."""
        self.is_finishing = True
        self.items.start_final_evaluations()

    def next(self, codecs: NegotiatedCodecs, *, may_train: bool) -> Microbatch | None:
        """Return what to send next, or None when nothing is left to send.

        Args:
            codecs: The lease's.
            may_train: Whether training steps may be sent, too, or evaluations only.

        Raises:
            RunError: When the activations cannot be encoded as the lease says.
        """
        item = self.items.next(may_train=may_train)
        if item is None:
            return None
        with self._reporter.stage("tokenize"):
            tokenized = self._client.tokenize(item.split, item.indices, item.given)
        with self._reporter.stage("encode"):
            try:
                tensors = tuple(
                    (name, encode_tensor(codecs.activations, tokens_BND)) for name, tokens_BND in tokenized.tokens
                )
            except CodecError as error:
                raise RunError(
                    f"activations cannot be encoded as {codecs.activations!r}, which the worker asks for: {error}\n"
                    "  fix: choose another codec in the run settings"
                ) from error
        self._in_flight[item.mode, item.step] = _InFlight(item, tokenized.labels_B)
        return Microbatch(item.step, item.mode, len(item.indices), tensors)

    def outputs(self, received: OutputsReceived, send: Callable[[EncodedTensor], None]) -> None:
        """Take outputs: give `send` the gradient of a training step, and count the result of an evaluation.

        Raises:
            RunError: When the outputs are not what the manifest and the lease say.
        """
        flight = self._in_flight.get((received.mode, received.step))
        if flight is None:
            return
        if not flight.is_answered:  # outputs of newer weights are no other round trip
            flight.is_answered = True
            self._reporter.answered(received.round_trip_s, received.server_s)
        try:
            with self._reporter.stage("loss"):
                result = self._client.loss(received.outputs, flight.labels_B, received.codecs.outputs)
        except WireError as error:
            raise RunError(
                f"the worker's outputs cannot be used: {error}\n  fix: install the same release on both sides"
            ) from error
        if flight.item.evaluation is not None:
            del self._in_flight[received.mode, received.step]
            self._reporter.evaluated(flight.item.evaluation, result)
            return
        self._reporter.trained(received.step, result)
        send(encode_tensor(received.codecs.output_gradients, result.gradient_BC))

    def committed(self, step: int) -> None:
        """Take notice of a committed training step."""
        self.items.commit(step)
        flight = self._in_flight.pop((Mode.TRAIN, step), None)
        if flight is not None:
            self._reporter.num_samples += len(flight.item.indices)
