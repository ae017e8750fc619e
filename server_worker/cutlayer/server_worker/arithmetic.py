"""Does a session's work items on an engine: decodes, computes, encodes, and reports back to the session."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import WorkerAction
from cutlayer.broker.errors import RunError, WireError
from cutlayer.broker.manifest import CodecNames
from cutlayer.broker.messages import Mode, NegotiatedCodecs
from cutlayer.broker.ragged_tokens import pack_rows
from cutlayer.broker.tensors import WEIGHTS_CODEC, decode_tensor, encode_tensor
from cutlayer.broker.work import Backward, Forward, Key, NamedTensors, Release
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.broker.worker_view import WindowMember
from cutlayer.dashboards.metric_labels import Stage
from cutlayer.server_worker.assembler import Assembler, Lacking
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import ActivationsAssembled, EventHandler, StageTimed, WindowCommitted
from cutlayer.server_worker.parameters import CommitResult
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.store_keeper import StoreKeeper

__all__ = ["Arithmetic"]


class Arithmetic:
    """The arithmetic of one worker.

    Args:
        session: The conversation; told of each result.
        engine: Does the sums.
        do: Does the session's actions.
        emit: Takes events.
        clock: Seconds, monotonic.
        keeper: Holds the store of activations; None for nothing.

    Attributes:
        engine: Does the sums.
        last_commit_at: When the last window was committed.
    """

    def __init__(
        self,
        session: WorkerSession,
        engine: Engine | CountingEngine,
        do: Callable[[list[WorkerAction]], None],
        emit: EventHandler,
        clock: Callable[[], float],
        keeper: StoreKeeper | None = None,
    ) -> None:
        self.engine = engine
        self.last_commit_at: float | None = None
        self._session = session
        self._assembler = Assembler(keeper or StoreKeeper())
        self._do = do
        self._emit = emit
        self._clock = clock
        self._groups: dict[int, int] = {}

    def forward(self, work: Forward) -> None:
        """Run microbatches forward and send their outputs."""
        began_at = self._clock()
        for key, message in work.microbatches:
            received_at = self._session.view.received_at(key)
            if received_at is not None:
                self._emit(StageTimed(Stage.QUEUE, max(began_at - received_at, 0.0), message.num_samples))
        items: list[ForwardItem] = []
        unkept: dict[Key, bytes] = {}
        mode: Literal["train", "eval"] = "train" if work.mode is Mode.TRAIN else "eval"
        with self.timed(Stage.DECODE, 0):
            for key, message in work.microbatches:
                try:
                    assembled = self._assembler.assemble(self._session.manifest, key.agent, message)
                except WireError as error:
                    self._do(self._session.fail_content(key, str(error)))
                    continue
                if isinstance(assembled, Lacking):
                    self._do(self._session.lacks(key, assembled.missing))
                    continue
                num_fresh = message.num_samples - assembled.num_stored
                self._emit(ActivationsAssembled(num_fresh, assembled.num_stored))
                items.append(ForwardItem(_engine_key(key), mode, assembled.tokens, assembled.positions))
                if assembled.unkept:
                    unkept[key] = assembled.unkept
        if not items:
            return
        with self.timed(Stage.FORWARD, sum(item.num_samples for item in items)):
            forwarded = self.engine.forward(items, work.candidate)
        if forwarded.refused and not forwarded.outputs and not self._is_sound(items[0]):
            raise RunError(_diverged("outputs", forwarded.version))
        for key, _ in work.microbatches:
            if _engine_key(key) in forwarded.refused:
                self._do(self._session.fail_content(key, "its activations give outputs that are not finite"))
        if forwarded.group_id is not None:
            self._groups[work.group] = forwarded.group_id
        with self.timed(Stage.PUBLISH, 0):
            outputs = {
                key: encode_tensor(self._codecs(key).outputs, forwarded.outputs[_engine_key(key)])
                for key, _ in work.microbatches
                if _engine_key(key) in forwarded.outputs
            }
            self._do(self._session.forwarded(work.group, outputs, forwarded.version, self._clock(), unkept))

    def _is_sound(self, like: ForwardItem) -> bool:
        """Whether the weights give finite outputs for zeros: then it is the activations that do not."""
        zeros = {name: np.zeros_like(tokens) for name, tokens in like.tokens.items()}
        return not self.engine.forward([ForwardItem(("", "eval", 0), "eval", zeros, like.positions)]).refused

    def backward(self, work: Backward) -> None:
        """Add a group's gradients to the open window."""
        gradients: dict[Hashable, NDArray[np.float32]] = {}
        for key, tensor in work.gradients:
            try:
                gradients[_engine_key(key)] = decode_tensor(tensor, what="output gradients")
            except WireError as error:
                self._do(self._session.fail_content(key, str(error)))
                return  # the session has taken the member out of its group and asks again
        of_tokenizers: dict[Hashable, dict[str, NDArray[np.float32]]] = {}
        for key, tensors in work.tokenizer_gradients:
            try:
                of_tokenizers[_engine_key(key)] = {
                    name: decode_tensor(tensor, what=f"gradient of {name}") for name, tensor in tensors
                }
            except WireError as error:
                self._do(self._session.fail_content(key, str(error)))
                return
        with self.timed(Stage.BACKWARD, sum(len(gradient) for gradient in gradients.values())):
            result = self.engine.backward(
                self._groups[work.group], gradients, last=work.last, tokenizer_gradients=of_tokenizers
            )
        if result.refused:
            raise RunError(_diverged("gradients", self.engine.version))
        if work.last:
            del self._groups[work.group]
        cut_gradients: dict[Key, NamedTensors] = {}
        if result.cut_gradients:
            with self.timed(Stage.PUBLISH, 0):
                for key, _ in work.gradients:
                    cut = result.cut_gradients[_engine_key(key)]
                    codec = self._codecs(key).activation_gradients
                    places = result.positions.get(_engine_key(key), {})
                    cut_gradients[key] = tuple(
                        (name, encode_tensor(codec, self._rows(name, cut[name], places.get(name))))
                        for name in sorted(cut)
                    )
        self._do(self._session.backward_done(work.group, self._clock(), cut_gradients))

    def _rows(
        self, name: str, gradient_BKD: NDArray[np.float32], places_BK: NDArray[np.intp] | None
    ) -> NDArray[np.float32]:
        """Return the gradient at the cut in the shape that it travels in."""
        if places_BK is None:
            return gradient_BKD
        return pack_rows(gradient_BKD, places_BK, self._session.manifest.modalities[name].num_tokens)

    def release(self, work: Release) -> None:
        """Free a graph that nobody needs."""
        if work.group in self._groups:
            self.engine.release(self._groups.pop(work.group))

    def forget_groups(self) -> None:
        """Take notice that the engine has dropped all graphs."""
        self._groups.clear()

    def step(self, num_samples: int, progress: float | None) -> CommitResult:
        """Take an optimizer step on the window's gradient sums.

        Raises:
            RunError: When training has diverged.
        """
        with self.timed(Stage.COMMIT, num_samples):
            result = self.engine.commit(num_samples, progress)
        if not result.applied:
            raise RunError(_diverged("gradients", result.version))
        self.last_commit_at = self._clock()
        self.hand_out_weights()
        return result

    def hand_out_weights(self) -> None:
        """Give the session the tokenizers' weights as they are now, where they are trained."""
        self._session.take_weights(self.engine.version, self.tokenizer_tensors())

    def tokenizer_tensors(self, candidate: str = "") -> NamedTensors:
        """Return the tokenizers' weights as they travel, the newest or a candidate's; none where they are frozen."""
        weights = self.engine.tokenizer_weights(candidate)
        return tuple((name, encode_tensor(WEIGHTS_CODEC, array)) for name, array in sorted(weights.items()))

    def emit_committed(
        self,
        result: CommitResult,
        num_samples: int,
        num_microbatches: int,
        *,
        wanted_samples: int = 0,
        members: Sequence[WindowMember] = (),
    ) -> None:
        """Tell of a window that the session knows to be committed.

        Args:
            result: Of the optimizer step.
            num_samples: Samples of all workers in it.
            num_microbatches: Microbatches of all workers in it.
            wanted_samples: Samples that the window wanted.
            members: The microbatches of this worker in it.
        """
        now = self._clock()
        self._emit(
            WindowCommitted(
                window=self._session.window,
                num_samples=num_samples,
                num_microbatches=num_microbatches,
                version=result.version,
                gradient_norm=result.gradient_norm,
                learning_rate=result.learning_rate,
                live_samples=self.engine.live_samples,
                wanted_samples=wanted_samples,
                # The step has made one more version of the weights that it was taken with.
                staleness=tuple(max(result.version - 1 - member.version, 0) for member in members),
                waits_s=tuple(max(now - member.since, 0.0) for member in members),
            )
        )

    def _codecs(self, key: Key) -> NegotiatedCodecs | CodecNames:
        lease = self._session.leases.of(key.agent)
        return self._session.manifest.codecs if lease is None else lease.codecs

    @contextmanager
    def timed(self, stage: Stage, num_samples: int) -> Iterator[None]:
        """Tell how long a stage takes."""
        start = time.perf_counter()
        yield
        self._emit(StageTimed(stage, time.perf_counter() - start, num_samples))


def _engine_key(key: Key) -> tuple[str, str, int]:
    # Plain values: the key seeds modality dropout by its repr, which must be the same in every process.
    return key.agent, key.mode.value, key.step


def _diverged(what: str, version: int) -> str:
    return (
        f"training has diverged: {what} are not finite at version {version} of the weights\n"
        "  fix: lower [optimizer] lr, or set clip_norm; then start the run again, or --resume an earlier checkpoint"
    )
