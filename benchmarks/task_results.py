"""The rows of task_training.py, by task, partition, scheme and seed, and what they are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compression_statistics import Mean, mean_of, paired_difference
from benchmarks.disjoint_results import DisjointSite, GivenBoth, compare_disjoint, compare_given_both
from benchmarks.task_disjoint import PARTITION
from benchmarks.task_flops import Work

from cutlayer.broker.task_metrics import Metric

Row = dict[str, Any]
TITLES: Mapping[str, str] = {
    "cutlayer": "Cutlayer",
    "cutlayer-agent-negatives": "Cutlayer, negatives of the microbatch",
    "centralized": "centralized",
    "fedavg": "federated averaging",
    "local": "each site alone",
}
"""Of what is compared in a task's tables, in their order."""
PARTITION_TITLES: Mapping[str, str] = {"iid": "IID", "dirichlet-0.5": "Dirichlet(0.5)"}
POOLED = "pooled"


@dataclass(frozen=True)
class Compared:
    """The trainings of a task under one partition.

    Attributes:
        metric: What they are compared by.
        rows: By scheme and seed; those of `POOLED` included.
        work: What a training sample costs a site; None where nobody has counted it.
    """

    metric: Metric
    rows: Mapping[str, Mapping[int, Row]]
    work: Work | None

    @property
    def schemes(self) -> list[str]:
        """Those with results, in the order of `TITLES`."""
        return [scheme for scheme in TITLES if scheme in self.rows]

    def value(self, scheme: str) -> Mean:
        """Return a scheme's metric over its seeds."""
        return mean_of(self._values(scheme).values())

    def difference(self, scheme: str, reference: str) -> Mean | None:
        """Return a scheme's metric minus another one's, seed by seed; None without a common seed."""
        if scheme not in self.rows or reference not in self.rows:
            return None
        return paired_difference(self._values(scheme), self._values(reference))

    def num_bytes(self, scheme: str) -> float | None:
        """Return all bytes of training, both ways; of centralized training those of the raw samples."""
        rows = self.rows[scheme].values()
        if scheme == "centralized":
            raw = 0 if self.work is None else self.work.raw_bytes
            return mean_of(raw * row["num_train"] for row in rows).value or None
        return mean_of(row["up_bytes"] + row["down_bytes"] for row in rows).value

    def bytes_with_evaluation(self, scheme: str) -> float | None:
        """Return all bytes, those of the evaluation included; None where these are not counted."""
        found = [row["total_bytes"] for row in self.rows[scheme].values() if "total_bytes" in row]
        return mean_of(found).value if found else None

    def flops(self, scheme: str) -> float | None:
        """Return the operations of all sites for all training samples of a run; None where sites compute nothing."""
        if self.work is None or scheme == "centralized":
            return None
        is_agent = scheme.startswith("cutlayer")
        work = self.work
        of_sample = work.agent_flops(is_sent_once=work.is_sent_once) if is_agent else work.client_flops
        return mean_of(of_sample * row["num_train"] for row in self.rows[scheme].values()).value

    def cpu_s(self, scheme: str) -> float | None:
        """Return the processor seconds of all sites; None where sites compute nothing."""
        if scheme == "centralized":
            return None
        found = [row["cpu_s"] for row in self.rows[scheme].values() if "cpu_s" in row]
        return mean_of(found).value if found else None

    def _values(self, scheme: str) -> dict[int, float]:
        return {seed: float(row["value"]) for seed, row in self.rows[scheme].items()}


class Results:
    """All results that go together.

    Args:
        rows: As read. Of a task whose settings have changed, those with the newest settings count.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        newest = {row["task"]: row["digest"] for row in rows}
        self._rows = [row for row in rows if row["digest"] == newest[row["task"]]]
        self.num_stale = len(rows) - len(self._rows)

    @property
    def tasks(self) -> list[str]:
        """Tasks with trainings, in the order in which they came first."""
        return list(dict.fromkeys(row["task"] for row in self._rows if "metric" in row and row["scheme"] != "flops"))

    def title(self, task: str) -> str:
        """Return a task's title."""
        return next(str(row["title"]) for row in self._rows if row["task"] == task and "title" in row)

    def metric(self, task: str) -> Metric:
        """Return a task's headline metric."""
        return next(Metric(**row["metric"]) for row in self._rows if row["task"] == task and "metric" in row)

    def works(self) -> dict[str, Work]:
        """Return the work for one training sample, by task."""
        return {row["task"]: Work(**row["work"]) for row in self._rows if row["scheme"] == "flops"}

    def partitions(self, task: str) -> list[str]:
        """Return the partitions of a task that have results."""
        found = {row["partition"] for row in self._rows if row["task"] == task and row["scheme"] in TITLES}
        return [name for name in PARTITION_TITLES if name in found]

    def compared(self, task: str, partition: str) -> Compared:
        """Return the trainings of a task under a partition, and those that need none."""
        rows: dict[str, dict[int, Row]] = {}
        for row in self._of(task, {partition, POOLED}):
            if not row["scheme"].endswith("-tuning"):
                rows.setdefault(row["scheme"], {})[int(row["seed"])] = row
        return Compared(self.metric(task), rows, self.works().get(task))

    def tunings(self, task: str, partition: str) -> list[Row]:
        """Return what was tried under a partition; under `POOLED`, what all but federated averaging take."""
        return [row for row in self._of(task, {partition}) if row["scheme"].endswith("-tuning")]

    def disjoint(self, task: str) -> dict[str, list[DisjointSite]]:
        """Return what the sites that share no modality reach, by learning rate (`compare_disjoint`)."""
        is_more_better = self.metric(task).better == "more"
        return compare_disjoint(self._of(task, {PARTITION}), is_more_better=is_more_better)

    def given_both(self, task: str) -> dict[str, GivenBoth]:
        """Return what sites that share no modality reach where both are given (`compare_given_both`)."""
        return compare_given_both(self._of(task, {PARTITION}))

    def _of(self, task: str, partitions: set[str]) -> list[Row]:
        return [row for row in self._rows if row["task"] == task and row["partition"] in partitions]
