"""The agent's work under way: samples become activations, outputs become gradients, commits tick steps off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cutlayer.broker.actions import CandidateOffered, OutputsReceived, TensorsWanted, WeightsReceived
from cutlayer.broker.errors import RunError, WireError
from cutlayer.broker.messages import EncodedTensor, Mode, NegotiatedCodecs, RunPhase
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.broker.tensors import encode_tensor
from cutlayer.compression.delta import DEFAULT_MAX_BYTES
from cutlayer.edge_agent.candidate_judge import CandidateJudge
from cutlayer.edge_agent.codec_ladder import CodecLadder
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.loss_result import NO_RESULT
from cutlayer.edge_agent.packing import Flight, Microbatch, Packer
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.tokenizer_trainer import TokenizerTrainer
from cutlayer.edge_agent.visit import Visit
from cutlayer.edge_agent.weights_wait import WeightsWait
from cutlayer.edge_agent.work_items import WorkItem, WorkItems

__all__ = ["Workbench"]


class Workbench:
    """Does one agent's part of the arithmetic, and remembers what is out.

    Args:
        enrolled: The run, and the client side of its model.
        reporter: Counts what is done.
        may_be_kept: Whether workers may keep this site's activations, where the run lets them.
        ladder: Chooses the codec of activations; None for the lease's.
        change_bytes: Memory for what workers have of samples, where changes go up.
        visit: What a site that trains nothing has the model do; None for one that takes part.
    """

    def __init__(
        self,
        enrolled: Enrolled,
        reporter: Reporter,
        *,
        may_be_kept: bool = True,
        ladder: CodecLadder | None = None,
        change_bytes: int = DEFAULT_MAX_BYTES,
        visit: Visit | None = None,
    ) -> None:
        manifest = enrolled.manifest
        self.ladder = ladder
        self._all_modalities = enrolled.client.modalities
        self._trainer = TokenizerTrainer(enrolled.client, manifest) if manifest.tokenizers.mode == "trainable" else None
        self.items = WorkItems(
            enrolled.plan,
            self._all_modalities,
            of_run=tuple(sorted(manifest.modalities)),
            evaluates_alone=not isinstance(manifest.task, RetrievalSpec),  # one alone has nothing to be found by
            every_epochs=0 if manifest.evaluation.selects else manifest.evaluation.every_epochs,
            evaluation_samples=manifest.evaluation.samples,
        )
        self.may_end_early = manifest.evaluation.selects
        """Whether steps may be out for good when training ends."""
        self.telemetry_s = manifest.telemetry_s
        self.telemetry_share = manifest.telemetry_share
        self.is_finishing = visit is not None
        """Whether the evaluations of the finished model, or of a visit, have begun."""
        self._visit = visit
        if visit is not None:
            visit.begin(enrolled, self.items)
        self._client = enrolled.client
        self._judge = CandidateJudge(self.items, reporter, self._trainer)
        self._packer = Packer(
            enrolled,
            reporter,
            self._judge,
            # Under the topic of an agent that trained, a visit's samples would pass for those of the same numbers.
            may_be_kept=may_be_kept and manifest.activations != "every-step" and visit is None,
            ladder=ladder,
            change_bytes=change_bytes,
        )
        self._reporter = reporter
        reporter.task = manifest.task
        self._in_flight: dict[tuple[Mode, int], Flight] = {}

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
        if self._client.head is not None:
            self._client.head.resume(committed, lacks_steps=lacks_steps)
        if lacks_steps and self._trainer is not None:
            self._trainer.forget()
        if lacks_steps:
            self._in_flight = {key: flight for key, flight in self._in_flight.items() if key[0] is not Mode.TRAIN}
        if self.is_finishing and phase in (RunPhase.WAITING, RunPhase.TRAINING):
            # The run is back at a checkpoint: if it lacks a step of anybody, the model was not finished after all.
            self.is_finishing = False
            self._in_flight = {key: flight for key, flight in self._in_flight.items() if key[0] is Mode.TRAIN}
            self.items.forget_evaluations()
            self._judge.stop()
            self._reporter.forget_final_evaluations()
        return lacks_steps

    def finish(self) -> list[int]:
        """Begin to evaluate the finished model; return the evaluation steps that are to be withdrawn."""
        self.is_finishing = True
        if self.may_end_early:
            self.items.take_back_training()
            self._in_flight = {key: flight for key, flight in self._in_flight.items() if key[0] is not Mode.TRAIN}
        withdrawn = self._drop_candidate()
        self.items.start_final_evaluations()
        return withdrawn

    def offer(self, candidate: CandidateOffered) -> list[int]:
        """Begin to evaluate a candidate in place of another; return the evaluation steps that are to be withdrawn.

        Raises:
            WireError: When its tokenizers are not what the manifest says.
        """
        if self.is_finishing or not self.items.plan.num_val or not self._judge.wants(candidate.name):
            return []
        withdrawn = self._drop_candidate()
        self._judge.begin(candidate)
        return withdrawn

    def candidate_gone(self, step: int) -> list[int]:
        """Give up a candidate whose weights no worker holds; return the evaluation steps that are to be withdrawn."""
        flight = self._in_flight.get((Mode.EVAL, step))
        is_of_it = flight is not None and flight.item.evaluation is not None and flight.item.evaluation.candidate != ""
        return self._drop_candidate() if is_of_it else []

    def _drop_candidate(self) -> list[int]:
        steps = [
            step
            for (_, step), flight in self._in_flight.items()
            if flight.item.evaluation is not None and flight.item.evaluation.candidate
        ]
        for step in steps:
            del self._in_flight[Mode.EVAL, step]
        if self._judge.stop():
            self.items.forget_evaluations()
        return steps

    def next(
        self, codecs: NegotiatedCodecs, *, may_train: bool, store_for: Callable[[int], str] = lambda _: ""
    ) -> Microbatch | None:
        """Return what to send next, or None when nothing is left to send.

        Args:
            codecs: The lease's.
            may_train: Whether training steps may be sent, too, or evaluations only.
            store_for: Says which store the worker has that a step will go to; empty for none.

        Raises:
            RunError: When the activations cannot be encoded as the lease says.
        """
        item = self._next_item(may_train=may_train)
        if item is None:
            return None
        targets = self._client.targets(item.split, item.indices)
        flight = self._in_flight[item.mode, item.step] = Flight(item, targets)
        return self._packer.pack(
            flight, codecs, store_for(item.step), self._in_flight.values(), num_passes=len(targets)
        )

    def _next_item(self, *, may_train: bool) -> WorkItem | None:
        """Return what is next; of an evaluation given some modalities, the samples that have one of these."""
        while (item := self.items.next(may_train=may_train)) is not None:
            is_whole = item.mode is Mode.TRAIN or item.given == self._all_modalities
            if is_whole and self._visit is None:
                return item
            has_B = self._client.has_some(item.split, item.indices, item.given)
            if self._visit is not None:
                self._visit.left_out(item, item.indices[~has_B])
            if has_B.any():
                return replace(item, indices=item.indices[has_B])
            if item.evaluation is not None:
                self._reporter.evaluated(item.evaluation, NO_RESULT)
                self._judge.evaluated(item.evaluation)
        return None

    def again(self, wanted: TensorsWanted) -> Microbatch | None:
        """Make a microbatch again with the tensors that a store lacks; None for one that is not out.

        Raises:
            RunError: As `next`.
        """
        flight = self._in_flight.get((wanted.mode, wanted.step))
        if flight is None:
            return None
        self._packer.lacks(flight.item, wanted)
        return self._packer.pack(flight, wanted.codecs, wanted.store, self._in_flight.values())

    def outputs(
        self, received: OutputsReceived, send: Callable[[EncodedTensor, tuple[tuple[str, EncodedTensor], ...]], None]
    ) -> None:
        """Take outputs: give `send` the gradients of a training step, and count the result of an evaluation.

        Args:
            received: The outputs.
            send: Takes the gradient at the outputs, and those of tokenizers that go with it.

        Raises:
            RunError: When the outputs are not what the manifest and the lease say.
        """
        flight = self._in_flight.get((received.mode, received.step))
        if flight is None:
            return
        if not flight.is_answered or flight.sent is not None:  # what was made again has not been answered yet
            self._packer.answered(flight, received)
        if not flight.is_answered:  # outputs of newer weights are no other round trip
            flight.is_answered = True
            self._reporter.answered(received.round_trip_s, received.server_s)
        try:
            if self._visit is not None:
                del self._in_flight[received.mode, received.step]
                self._visit.answered(flight.item, received, flight.targets)
                return
            with self._reporter.stage("loss"):
                result = self._client.loss(
                    received.outputs,
                    flight.targets,
                    received.codecs.outputs,
                    is_training=flight.item.evaluation is None,
                    step=received.step if flight.item.evaluation is None else None,
                )
        except WireError as error:
            raise RunError(
                f"the worker's outputs cannot be used: {error}\n  fix: install the same release on both sides"
            ) from error
        if flight.item.evaluation is not None:
            del self._in_flight[received.mode, received.step]
            self._reporter.evaluated(flight.item.evaluation, result)
            self._judge.evaluated(flight.item.evaluation)
            return
        self._reporter.trained(received.step, result)
        codec = received.codecs.output_gradients
        of_tokenizers = () if self._trainer is None else self._trainer.gradients.attach(received.step, codec)
        send(encode_tensor(codec, result.gradient_BC), of_tokenizers)

    def committed(self, step: int, tensors: tuple[tuple[str, EncodedTensor], ...] = (), codec: str = "") -> None:
        """Take notice of a committed training step.

        Args:
            step: The step.
            tensors: The gradients at the cut, by modality; with trainable tokenizers.
            codec: What they have to be encoded as.

        Raises:
            WireError: When these are not what the manifest says; the step is committed all the same.
        """
        self.items.commit(step)
        if self._client.head is not None:
            self._client.head.committed(step)
        flight = self._in_flight.pop((Mode.TRAIN, step), None)
        if flight is not None:
            self._reporter.num_samples += len(flight.item.indices)
        if self._trainer is not None:
            self._trainer.gradients.committed(step)
            if flight is not None and tensors:
                self._trainer.learn(flight.item, flight.positions, tensors, codec)
        if self.items.is_training_done:
            self._client.save()

    def save(self) -> None:
        """Write what was learned here to the site's own files.

        Raises:
            SettingsError: When one cannot be written.
        """
        self._client.save()

    def take_weights(self, received: WeightsReceived) -> None:
        """Take weights of the tokenizers, if they are newer.

        Raises:
            WireError: When they are not what the manifest says.
        """
        if self._trainer is not None:
            self._trainer.take_weights(received)

    @property
    def weights(self) -> WeightsWait | None:
        """Which weights of its tokenizers the agent has; None where they are frozen."""
        return None if self._trainer is None else self._trainer.weights
