"""What `bytes_per_sample` of the manifest leaves for the activations that are still to go.

The limit holds for the average over what this process has planned: all bytes that it sends, of whatever kind, divided
by its training samples times the epochs that it takes part in. So what is sent once counts once over all epochs, and
a first epoch of tensors is not more than allowed because nothing has come back of it yet.

Gradients, references and MQTT's own are expected to go on as they have so far, a pass of a sample. Reports go by the
clock, and no further than their share of all bytes: of the time so far, what the uplink was waited for is taken off,
since later epochs of references do not wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.broker.manifest import Manifest
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.reporter import FREE_BYTES

__all__ = ["BytePlan", "Sent"]

GUESSED_MICROBATCH_BYTES = 400
"""What a microbatch takes beside its tensors, until `NUM_BEFORE_MEASURED` have gone: headers and gradients."""
NUM_BEFORE_MEASURED = 8


@dataclass(frozen=True, slots=True)
class Sent:
    """What an agent has sent so far.

    Attributes:
        all_bytes: All that has left, MQTT's own included.
        report_bytes: Its reports, of that.
        wait_share: Share of the time so far in which the uplink was waited for.
    """

    all_bytes: int
    report_bytes: int
    wait_share: float = 0.0


class BytePlan:
    """The bytes of one agent, sent and to come.

    Args:
        bytes_per_sample: The limit.
        plan: The agent's steps.
        manifest: The run: how it is evaluated, and what reports may take.
        num_modalities: How many of the run's modalities the agent has; None for all.
    """

    def __init__(
        self, bytes_per_sample: float, plan: EpochPlan, manifest: Manifest, num_modalities: int | None = None
    ) -> None:
        self.bytes_per_sample = bytes_per_sample
        self._plan = plan
        self._report_share = manifest.telemetry_share
        every = manifest.evaluation.every_epochs
        num_evaluations = (plan.epochs - 1) // every if every else 0
        num_each = plan.num_test
        if manifest.evaluation.selects:  # each epoch on validation samples, the last one, too
            num_evaluations, num_each = -(-plan.epochs // max(every, 1)), plan.num_val
        self._num_evaluated = num_evaluations * min(manifest.evaluation.samples, num_each)
        # With several modalities the finished model is evaluated with each alone, too.
        self._num_final = plan.num_test * (2 if (num_modalities or len(manifest.modalities)) > 1 else 1)
        self._start: Sent | None = None
        self._planned = 0.0
        self._share = 1.0
        self._num_passes = 0
        self._num_microbatches = 0
        self._num_fresh = 0.0
        self._tensor_bytes = 0

    def start(self, sent: Sent, num_committed: int) -> None:
        """Begin, with so many steps that the run has already committed; only the first call counts."""
        if self._start is None:
            self._start = sent
            self._share = 1.0 - num_committed / self._plan.total_steps
            self._planned = self._plan.num_train * self._plan.epochs * self._share

    def add(self, *, num_passes: int, num_fresh: float, tensor_bytes: int) -> None:
        """Count a microbatch.

        Args:
            num_passes: Its training samples; 0 for an evaluation, and for one that is sent again.
            num_fresh: Its samples that go as tensors; one with half of its values counts half.
            tensor_bytes: What the tensors take.
        """
        self._num_microbatches += 1
        self._num_passes += num_passes
        self._num_fresh += num_fresh
        self._tensor_bytes += tensor_bytes

    def allowed(self, sent: Sent, *, num_fresh: float, is_kept: bool) -> float:
        """Return the bytes that a sample's tensors may take from now on.

        Args:
            sent: What has been sent.
            num_fresh: Samples that go as tensors now.
            is_kept: Whether workers keep them, so that they go once.
        """
        left = self.bytes_per_sample * self._planned - sent.all_bytes - self._others_left(sent)
        return left / self._fresh_left(num_fresh, is_kept=is_kept)

    def average(self, sent: Sent, sample_bytes: float, *, num_fresh: float, is_kept: bool) -> float:
        """Return the bytes for each sample of each step if tensors take so many a sample from now on."""
        to_come = self._others_left(sent) + sample_bytes * self._fresh_left(num_fresh, is_kept=is_kept)
        return (sent.all_bytes + to_come) / max(self._planned, 1.0)

    def _others_left(self, sent: Sent) -> float:
        """Return the bytes still to come beside tensors."""
        assert self._start is not None, "a plan is started"
        passes_left = max(self._planned - self._num_passes, 0.0)
        if self._num_microbatches < NUM_BEFORE_MEASURED or not self._num_passes:
            return passes_left * GUESSED_MICROBATCH_BYTES / self._plan.microbatch_samples
        report_bytes = sent.report_bytes - self._start.report_bytes
        others = sent.all_bytes - self._start.all_bytes - self._tensor_bytes - report_bytes
        times = passes_left / self._num_passes
        # What reports may take is a share of both directions; that both are alike is a guess, and only a bound.
        most_bytes = FREE_BYTES + 2 * self._report_share * self.bytes_per_sample * self._planned - sent.report_bytes
        reports_left = min(times * report_bytes * (1.0 - sent.wait_share), max(most_bytes, 0.0))
        return times * max(others, 0) + reports_left

    def _fresh_left(self, num_fresh: float, *, is_kept: bool) -> float:
        num_kept = min(self._plan.num_train, self._planned) + self._plan.num_test + self._plan.num_val
        num_each_time = self._planned + self._num_evaluated * self._share + self._num_final
        # A store that had no room, or lost samples, has been sent more than all of them: then there is no telling.
        total = num_kept if is_kept and self._num_fresh < num_kept else num_each_time
        return max(total - self._num_fresh, num_fresh, 1.0)
