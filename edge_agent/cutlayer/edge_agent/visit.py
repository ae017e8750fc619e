"""A visit: a site that trains nothing has a trained model evaluate or predict its samples, and keeps what comes of it.

A visit says Hello with no training samples. The run neither waits for it nor counts it, and it is served until the run
has ended: by a worker that trains, or by one that serves a finished run (`server-worker serve`).
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import OutputsReceived
from cutlayer.broker.errors import CutlayerError, Rejected, RunError, SettingsError
from cutlayer.broker.messages import Mode, RejectReason
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.work_items import WorkItem, WorkItems

__all__ = ["PATIENCE_S", "Visit", "VisitProgress"]

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a visit waits for a worker: one that is started loads torch and a checkpoint first."""
TOLD_EVERY_S = 10.0
"""Time from one line about the progress to the next."""


@dataclass(frozen=True, slots=True)
class VisitProgress:
    """How far a visit is.

    Attributes:
        num_done: Passes that are answered or left out; a pass is one sample, given some modalities.
        num_passes: Passes in all.
    """

    num_done: int
    num_passes: int


class Visit(abc.ABC):
    """What a site has the model do with its samples.

    Args:
        mode: What microbatches are for.
        patience_s: How long a worker is waited for, at the beginning and when the last one was lost.
        clock: Seconds, monotonic.

    Attributes:
        run_id: The run, once it is known.
        versions: The lowest and the highest version of the weights that has answered; None before any.
        on_progress: Called with each answer.
    """

    def __init__(
        self, mode: Mode, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.patience_s = patience_s
        self.run_id = ""
        self.versions: tuple[int, int] | None = None
        self.on_progress: Callable[[VisitProgress], None] = lambda _: None
        self._mode = mode
        self._clock = clock
        self._num_done = self._num_passes = 0
        self._counted = "samples"
        self._told_at = clock()

    @property
    def is_complete(self) -> bool:
        """Whether all samples are answered or left out."""
        return 0 < self._num_passes <= self._num_done

    @property
    def progress(self) -> VisitProgress:
        """How far it is."""
        return VisitProgress(self._num_done, self._num_passes)

    def begin(self, enrolled: Enrolled, items: WorkItems) -> None:
        """Queue the whole visit.

        A microbatch goes up given everything, then given what else is wanted, so that its samples are read once.

        Raises:
            CutlayerError: When the run's task, or the data, are not fit for it.
        """
        self.run_id = enrolled.manifest.run_id
        num_samples, num_together = enrolled.plan.num_test, enrolled.plan.microbatch_samples
        if not num_samples:
            raise SettingsError("there is no sample to send", "give data that have some (--data, --split)")
        choices = self._start(enrolled)
        self._num_done, self._num_passes = 0, num_samples * len(choices)
        self._counted = "samples" if len(choices) == 1 else f"passes ({num_samples} samples, {len(choices)} each)"
        self._told_at = self._clock()
        log.info(
            "what leaves this site: activations of %d samples (%s, each time anew, as %s) and counts of bytes; "
            "no gradient, nor anything else made from labels. A server can infer the data from activations as in "
            "training, and computes the outputs. Labels, predictions, losses and metrics stay here",
            num_samples,
            " and ".join(enrolled.client.modalities),
            enrolled.manifest.codecs.activations,
        )
        for start in range(0, num_samples, num_together):
            indices_B = np.arange(start, min(start + num_together, num_samples), dtype=np.int64)
            for given in choices:
                items.queue(self._mode, indices_B, given)

    def answered(self, item: WorkItem, received: OutputsReceived, targets: Targets) -> None:
        """Take the outputs of a microbatch.

        Raises:
            RunError: When the model has not been trained at all.
            WireError: When the outputs are not what the manifest and the lease say.
        """
        if received.version == 0:
            raise RunError(
                f"nothing of run {self.run_id} is trained yet: its weights are those that it began with\n"
                "  fix: wait until it has committed a few windows, and come again"
            )
        first, last = self.versions or (received.version, received.version)
        self.versions = min(first, received.version), max(last, received.version)
        self._take(item, received, targets)
        self._advance(item.indices.size)

    def left_out(self, item: WorkItem, indices_b: NDArray[np.int64]) -> None:
        """Take notice of samples of a microbatch that have nothing of what is given, or cannot be read."""
        if indices_b.size:
            self._leave_out(item.given, indices_b)
            self._advance(indices_b.size)

    def explained(self, error: CutlayerError) -> CutlayerError:
        """Return an error of the session as a visit has to say it."""
        if isinstance(error, Rejected) and error.reason == RejectReason.ENDED:
            return self.ended(error.detail)
        return error

    def ended(self, what: str) -> RunError:
        """Return the error that nobody serves the run, with the fix."""
        return RunError(
            f"{what}\n"
            "  fix: start a worker that serves the trained model (`server-worker serve --run RUN.toml`, with the run's "
            "settings and --from its output folder), on this broker"
        )

    def _advance(self, num_passes: int) -> None:
        self._num_done += num_passes
        self.on_progress(self.progress)
        now = self._clock()
        if now >= self._told_at + TOLD_EVERY_S or self.is_complete:
            self._told_at = now
            share = self._num_done / self._num_passes
            log.info("%d of %d %s are answered (%.0f %%)", self._num_done, self._num_passes, self._counted, 100 * share)

    @abc.abstractmethod
    def _start(self, enrolled: Enrolled) -> list[tuple[str, ...]]:
        """Return the choices of modalities that each sample is given, one pass each."""

    @abc.abstractmethod
    def _take(self, item: WorkItem, received: OutputsReceived, targets: Targets) -> None:
        """Take the outputs of a microbatch."""

    @abc.abstractmethod
    def _leave_out(self, given: tuple[str, ...], indices_b: NDArray[np.int64]) -> None:
        """Take notice of samples that are not sent."""
