"""What a run has cost and reached so far, kept up to date report by report: gauges that all workers of a pool show.

The same figures as `RunBook`'s, from the same reports; but a report of one agent of a thousand takes no longer here
than that of the only one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, MetricSums, Telemetry
from cutlayer.broker.task_metrics import ACCURACY, NOTHING, mean_loss, metric_values, primary_metric
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.federated_averaging import federated_averaging_bytes, num_exchanged_parameters

__all__ = ["RunFigures"]


@dataclass(frozen=True, slots=True)
class _Progress:
    incarnation: int
    steps: int
    total_steps: int

    @property
    def share(self) -> float:
        return min(self.steps / self.total_steps, 1.0) if self.total_steps else 0.0


class RunFigures:
    """Gauges of one run.

    Args:
        store: Where they stand.
        manifest: The run.
        num_client_parameters: Parameters of the tokenizers.
    """

    def __init__(self, store: MetricStore, manifest: Manifest, num_client_parameters: int) -> None:
        self._store = store
        self._task = manifest.task
        self._epochs = manifest.epochs
        num_exchanged = num_exchanged_parameters(manifest, num_client_parameters)
        self._one_round_bytes = federated_averaging_bytes(num_exchanged, 1, 1)
        self._all_modalities = "+".join(sorted(manifest.modalities))
        self._bytes: dict[tuple[str, str], int] = {}
        self._progress: dict[str, _Progress] = {}
        self._steps = self._total_steps = 0
        self._shares = 0.0
        self._splits = {"train": _Split(), "test": _Split(), "validation": _Split()}

    def take(self, agent: str, now: Telemetry, before: Telemetry | None) -> None:
        """Take an agent's report; `before` is the one before it of the same process."""
        earlier = {} if before is None else _bytes(before)
        for labels, moved in _bytes(now).items():
            self._bytes[labels] = self._bytes.get(labels, 0) + moved - earlier.get(labels, 0)
            self._store.set("cutlayer_run_bytes", self._bytes[labels], *labels)
        self._go_on(agent, _Progress(now.incarnation, now.steps, now.total_steps))
        self._splits["train"].take(agent, now.recent)
        whole = [each for each in now.evaluations if each.given == self._all_modalities and each.sums.num_samples]
        for split in ("test", "validation"):
            of_split = [each for each in whole if bool(each.candidate) == (split == "validation")]
            if of_split:
                self._splits[split].take(agent, of_split[-1].sums)
        for split, sums in self._splits.items():
            self._show(split, sums.now())

    def _show(self, split: str, sums: MetricSums) -> None:
        loss = mean_loss(sums)
        if loss is not None:
            self._store.set("cutlayer_loss", loss, split)
        metric = primary_metric(self._task)
        value = metric_values(self._task, sums).get(metric.name)
        if value is None:
            return
        if metric == ACCURACY:
            self._store.set("cutlayer_accuracy_ratio", value, split)
        else:
            self._store.set("cutlayer_task_metric", value, metric.with_unit, metric.better, split)

    def _go_on(self, agent: str, now: _Progress) -> None:
        before = self._progress.get(agent)
        if before is not None and before.incarnation > now.incarnation:
            return  # the last words of an earlier process
        self._progress[agent] = now
        self._steps += now.steps - (before.steps if before else 0)
        self._total_steps += now.total_steps - (before.total_steps if before else 0)
        self._shares += now.share - (before.share if before else 0.0)
        epochs = self._epochs * self._shares
        self._store.set("cutlayer_agents_seen", len(self._progress))
        self._store.set("cutlayer_run_epochs", epochs / len(self._progress))
        self._store.set("cutlayer_federated_averaging_bytes", self._one_round_bytes * epochs)
        if self._total_steps:
            self._store.set("cutlayer_run_progress_ratio", min(self._steps / self._total_steps, 1.0))


class _Split:
    """Sums over the agents' latest samples."""

    def __init__(self) -> None:
        self._loss_sum = 0.0
        self._num_correct = self._num_samples = 0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._latest: dict[str, MetricSums] = {}

    def now(self) -> MetricSums:
        """Return the sums."""
        return MetricSums(self._loss_sum, self._num_correct, self._num_samples, tuple(self._sums.items()))

    def take(self, agent: str, sums: MetricSums) -> None:
        """Put an agent's sums in place of its earlier ones, unless they are over nothing."""
        if not sums.num_samples:
            return
        before = self._latest.get(agent, NOTHING)
        self._latest[agent] = sums
        self._loss_sum += sums.loss_sum - before.loss_sum
        self._num_correct += sums.num_correct - before.num_correct
        self._num_samples += sums.num_samples - before.num_samples
        for sign, entry in ((1, sums), (-1, before)):
            for name, value in entry.sums:
                self._sums[name] += sign * value


def _bytes(telemetry: Telemetry) -> Mapping[tuple[str, str], int]:
    """Return the bytes of a process by direction and measure."""
    up, down = Direction.UP.value, Direction.DOWN.value
    moved = {(direction, measure): 0 for direction in (up, down) for measure in ("raw", "payload")}
    for row in telemetry.traffic:
        moved[row.direction.value, "raw"] += row.raw_bytes
        moved[row.direction.value, "payload"] += row.payload_bytes
    return {**moved, (up, "wire"): telemetry.wire_sent_bytes, (down, "wire"): telemetry.wire_received_bytes}
