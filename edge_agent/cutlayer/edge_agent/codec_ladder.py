"""Chooses the codec of activations: as fine as the uplink and the manifest's limit of bytes leave room for.

The rungs are the lease's codec and the manifest's ladder, the finest first. Each microbatch with tensors is asked for:

- **Guard.** A rung of the ladder may be used where its error, measured on the agent's own activations, is at most
  `max_relative_error`. The lease's codec always may.
- **Bytes.** Where `bytes_per_sample` is set, the finest such rung whose size keeps the planned average below it. Up
  again only with `MARGIN` to spare.
- **Uplink.** Where it was waited for more than `DOWN_SHARE` of the time of the last `WINDOW` microbatches, one rung
  down. One up where it would have been waited for less than `UP_SHARE` at that rung's size, as computed from the same
  microbatches. A step up that had to be taken back makes the next one wait twice as long.

Where no rung that the guard lets by is small enough, the smallest is used, the log says so once, and the pacer does
the rest. The worker learns of a change from the name in each tensor.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import BudgetSpec
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.edge_agent.byte_plan import BytePlan, Sent
from cutlayer.edge_agent.codec_trials import CodecTrials

__all__ = ["DOWN_SHARE", "MARGIN", "UP_SHARE", "WINDOW", "CodecLadder", "UplinkState"]

log = logging.getLogger(__name__)

WINDOW = 8
"""Microbatches that a decision on the uplink looks back on, and the fewest between two of them."""
DOWN_SHARE = 0.3
UP_SHARE = 0.1
"""Far below the other: between them nothing changes, so a link has to become three times better before a step up."""
MARGIN = 1.05
MOST_PATIENCE = 32
"""Windows that a step up waits for at most, after others that had to be taken back."""


@dataclass(frozen=True, slots=True)
class UplinkState:
    """What is known of the uplink at a time, since the agent's start.

    Attributes:
        now: Seconds.
        sent_bytes: All that has left.
        report_bytes: Reports, of that.
        paced_s: Seconds that the pacer has held microbatches back.
        busy_s: Seconds that the link was busy with bytes.
        started_at: When the agent began to send microbatches.
    """

    now: float
    sent_bytes: int
    report_bytes: int = 0
    paced_s: float = 0.0
    busy_s: float = 0.0
    started_at: float = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds that the uplink was waited for."""
        return self.paced_s + self.busy_s

    def sent(self) -> Sent:
        """Return what a plan of bytes asks for."""
        elapsed_s = self.now - self.started_at
        return Sent(self.sent_bytes, self.report_bytes, min(self.waited_s / elapsed_s, 1.0) if elapsed_s > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The state before a microbatch, and the bytes of tensors before it."""

    uplink: UplinkState
    tensor_bytes: int


class CodecLadder:
    """Chooses the rung.

    Args:
        budget: The ladder, the guard and the limit of bytes.
        look: Returns the state of the uplink now.
        plan: Counts bytes against the limit; None where there is none.
        max_bytes_per_s: The pacer's limit; None where there is none.

    Attributes:
        num_changes: Steps up and down so far.
        on_change: Called after each.
    """

    def __init__(
        self,
        budget: BudgetSpec,
        look: Callable[[], UplinkState],
        *,
        plan: BytePlan | None = None,
        max_bytes_per_s: float | None = None,
    ) -> None:
        self.num_changes = 0
        self.on_change: Callable[[], None] = lambda: None
        self._budget = budget
        self._look = look
        self._plan = plan
        self._max_bytes_per_s = max_bytes_per_s
        self._trials = CodecTrials(())
        self._index = 0
        self._marks: deque[_Mark] = deque(maxlen=WINDOW)
        self._tensor_bytes = 0
        self._num_since_change = 0
        self._num_since_up: int | None = None
        self._patience = 1
        self._warned: set[str] = set()

    @property
    def codec(self) -> str:
        """The rung that is in use; empty before the first microbatch."""
        return self._trials.codecs[self._index] if self._trials.codecs else ""

    def begin(self, num_committed: int) -> None:
        """Take notice that microbatches begin, with so many steps that the run has already committed."""
        if self._plan is not None:
            self._plan.start(self._look().sent(), num_committed)

    def choose(self, lease_codec: str, tokens: Sequence[NDArray[np.float32]], *, is_whole: bool, is_kept: bool) -> str:
        """Return the codec for a microbatch's activations.

        Args:
            lease_codec: The lease's.
            tokens: Of each modality given, float32 (F, N, D).
            is_whole: Whether these are all modalities; others are not measured.
            is_kept: Whether workers keep them, so that they go once.
        """
        if not self._trials.codecs or self._trials.codecs[0] != lease_codec:
            self._trials, self._index = CodecTrials(_rungs(lease_codec, self._budget.ladder)), 0
            self._marks.clear()
        if is_whole:
            self._trials.take(tokens)
            self._decide(self._look(), len(tokens[0]), is_kept=is_kept)
        return self.codec

    def add(self, *, num_passes: int, num_fresh: float, tensor_bytes: int) -> None:
        """Count a microbatch that goes up now; see `BytePlan.add`."""
        self._marks.append(_Mark(self._look(), self._tensor_bytes))
        self._tensor_bytes += tensor_bytes
        self._num_since_change += 1
        if self._num_since_up is not None:
            self._num_since_up += 1
            if self._num_since_up > 8 * WINDOW * self._patience:  # it has held
                self._num_since_up, self._patience = None, 1
        if self._plan is not None:
            self._plan.add(num_passes=num_passes, num_fresh=num_fresh, tensor_bytes=tensor_bytes)

    # Decisions ------------------------------------------------------------------------------------------------

    def _decide(self, uplink: UplinkState, num_fresh: int, *, is_kept: bool) -> None:
        trials, limit = self._trials, self._budget.max_relative_error
        allowed = [i for i in range(len(trials.codecs)) if i == 0 or trials.error(i) <= limit]
        if self._index not in allowed:
            finer = max(i for i in allowed if i < self._index)
            self._go(finer, f"its error of {trials.error(self._index):.3g} is over max_relative_error = {limit:g}")
        floor = 0
        if self._plan is not None:
            floor = self._floor(self._plan, uplink.sent(), allowed, num_fresh, is_kept=is_kept)
        if self._index < floor:
            self._go(floor, self._planned(uplink.sent(), num_fresh, is_kept=is_kept))
            return
        marks = self._marks
        if len(marks) < WINDOW:
            return
        elapsed_s = uplink.now - marks[0].uplink.now
        waited_s = uplink.waited_s - marks[0].uplink.waited_s
        share = min(waited_s / elapsed_s, 1.0) if elapsed_s > 0 else 0.0
        if share > DOWN_SHARE:
            self._down(share, allowed)
            return
        finer_ones = [i for i in allowed if floor <= i < self._index]
        if finer_ones and self._num_since_change >= WINDOW * self._patience:
            expected = self._expected_share(uplink, finer_ones[-1])
            if expected <= UP_SHARE:
                self._num_since_up = 0
                self._go(finer_ones[-1], f"there is room: the uplink would be waited for {expected:.0%} of the time")

    def _floor(self, plan: BytePlan, sent: Sent, allowed: Sequence[int], num_fresh: int, *, is_kept: bool) -> int:
        """Return the finest rung that the limit of bytes has room for."""
        room = plan.allowed(sent, num_fresh=num_fresh, is_kept=is_kept)
        for index in allowed:
            if self._trials.sample_bytes(index) * (MARGIN if index < self._index else 1.0) <= room:
                return index
        smallest = min(allowed, key=self._trials.sample_bytes)
        average = plan.average(sent, self._trials.sample_bytes(smallest), num_fresh=num_fresh, is_kept=is_kept)
        if average > MARGIN * plan.bytes_per_sample:
            self._warn(
                "bytes",
                f"bytes_per_sample = {plan.bytes_per_sample:g} cannot be met: {self._trials.codecs[smallest]} is the "
                f"smallest codec of the ladder that max_relative_error = {self._budget.max_relative_error:g} allows, "
                f"and takes {average:.0f} B for each sample of each step",
            )
        return smallest

    def _down(self, share: float, allowed: Sequence[int]) -> None:
        """Step down for the uplink's sake, if there is a rung."""
        size = self._trials.sample_bytes
        coarser = [i for i in allowed if i > self._index and size(i) < size(self._index)]
        if not coarser:
            if len(self._trials.codecs) > 1:
                self._warn(
                    "uplink",
                    f"the uplink is waited for {share:.0%} of the time, and {self.codec} is the smallest codec of the "
                    f"ladder that max_relative_error = {self._budget.max_relative_error:g} allows",
                )
            return
        if self._num_since_up is not None:  # the step up was one too many
            self._patience = min(2 * self._patience, MOST_PATIENCE)
            self._num_since_up = None
        self._go(coarser[0], f"the uplink was waited for {share:.0%} of the last {WINDOW} microbatches' time")

    def _expected_share(self, uplink: UplinkState, index: int) -> float:
        """Return the share of time that the uplink would have been waited for with another rung."""
        first = self._marks[0]
        num = len(self._marks)
        elapsed_s = uplink.now - first.uplink.now
        paced_s, busy_s = uplink.paced_s - first.uplink.paced_s, uplink.busy_s - first.uplink.busy_s
        sent_bytes = max(uplink.sent_bytes - first.uplink.sent_bytes, 1)
        ratio = self._trials.sample_bytes(index) / self._trials.sample_bytes(self._index)
        more_bytes = sent_bytes + (self._tensor_bytes - first.tensor_bytes) * (ratio - 1.0)
        else_s = max(elapsed_s - paced_s - busy_s, 0.0) / num
        needs_s = else_s + busy_s / num * more_bytes / sent_bytes
        if self._max_bytes_per_s is not None:
            needs_s = max(needs_s, more_bytes / num / self._max_bytes_per_s)
        return 1.0 - else_s / needs_s if needs_s > 0 else 0.0

    def _planned(self, sent: Sent, num_fresh: int, *, is_kept: bool) -> str:
        assert self._plan is not None
        here = self._trials.sample_bytes(self._index)
        average = self._plan.average(sent, here, num_fresh=num_fresh, is_kept=is_kept)
        return f"{average:.0f} B for each sample of each step, {self._plan.bytes_per_sample:g} B are allowed"

    def _go(self, index: int, why: str) -> None:
        trials, before = self._trials, self._index
        log.info(
            "activations go as %s instead of %s: %s; %.0f B a sample instead of %.0f B, relative error %.3g",
            trials.codecs[index],
            trials.codecs[before],
            why,
            trials.sample_bytes(index),
            trials.sample_bytes(before),
            trials.error(index),
        )
        self._index = index
        self._marks.clear()
        self._num_since_change = 0
        self.num_changes += 1
        self.on_change()

    def _warn(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning("%s", text)


def _rungs(lease_codec: str, ladder: Sequence[str]) -> tuple[str, ...]:
    """Return the lease's codec and those of the ladder that exist here, by the names that the worker checks for."""
    rungs = {_canonical(lease_codec) or lease_codec: lease_codec}
    for name in ladder:
        codec = _canonical(name)
        if codec is None:
            log.warning("the ladder's codec %s is unknown here, and left out", name)
        else:
            rungs.setdefault(codec, codec)
    return tuple(rungs.values())


def _canonical(name: str) -> str | None:
    try:
        return codec_from_name(name).name
    except CodecError:
        return None
