"""`run.json` as typed records: what a finished run has cost and reached.

`cutlayer.server_worker.run_book` writes it; the report and the summary read it, and so may anything else. Keys
that are not known here are kept out of the way, so that a newer writer does not break an older reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.task_metrics import ACCURACY, Metric
from cutlayer.dashboards.run_record_parts import (
    BytesMoved,
    Count,
    FederatedAveraging,
    Moved,
    ProcessUsage,
    Record,
    Rejects,
    RoundTrip,
    Seconds,
    Selection,
    StageLatency,
    TrafficRow,
)

__all__ = [
    "BytesMoved",
    "EpochResult",
    "FederatedAveraging",
    "Moved",
    "ProcessUsage",
    "Rejects",
    "RoundTrip",
    "RunRecord",
    "StageLatency",
    "TrafficRow",
    "load_run",
    "parse_run",
]

SECONDS_A_DAY = 24 * 60 * 60
JOINT = "joint"
"""Key of the accuracy with all modalities given."""

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_FIX = "give the run.json that a server worker or the demo has written"


class EpochResult(Record):
    """What the agents' own test samples said after an epoch.

    Attributes:
        epoch: Epochs committed.
        accuracy: Share of samples that were right; None for tasks without.
        metrics: The task's metrics, by name; empty in older records.
        loss: Mean over samples.
        samples: Samples over all agents.
        agents: Agents that have evaluated.
        wire_bytes: Bytes that they had moved until then, both directions.
    """

    epoch: Count
    accuracy: Share | None = None
    metrics: dict[str, Finite] = Field(default_factory=dict)
    loss: Annotated[float, Field(allow_inf_nan=False)]
    samples: Count
    agents: Count
    wire_bytes: Count

    def value(self, metric: Metric) -> float | None:
        """Return the value of a metric, or None where it is not known."""
        return self.accuracy if metric.name == ACCURACY.name else self.metrics.get(metric.name)


class RunRecord(Record):
    """The content of `run.json`.

    Attributes:
        format: Version of the document's form.
        run_id: Unique name of the run.
        reason: Why it ended.
        accuracy: Test accuracy of the trained model given all modalities (`joint`) and given each alone; empty for
            tasks without.
        measures: The task's metrics, the one first that models are compared by.
        metrics: Their values for the trained model by name, given all modalities and given each alone; empty in older
            records.
        history: The same after each evaluated epoch.
        bytes: Bytes moved.
        bytes_per_sample: Wire bytes of both directions for each committed training sample.
        traffic: Bytes by direction, kind of message and codec.
        federated_averaging: The comparison.
        samples: Training samples committed, each epoch's again.
        steps: Training steps committed.
        windows: Optimizer steps.
        duration_s: Seconds from the start of training to the end of the run.
        training_s: Seconds of that until the last commit.
        round_trip_s: Quantiles over all agents.
        resends: Messages sent again.
        duplicates: Messages received twice.
        processes: Every process.
        seed: Seed of the run.
        manifest: The run manifest.
        versions: What the run depended on.
        demo: How the demo was called; empty for runs by hand.
        reconnects: Connections of agents that were lost and made again; None in older records.
        rejects: Messages that were not taken; None in older records.
        stages: Time of each stage of a step, in their order; empty in older records.
        selection: How the weights were chosen, on validation samples; None where the last ones were taken.
    """

    format: Literal[1]
    run_id: str
    reason: str
    accuracy: dict[str, Share]
    measures: Annotated[tuple[Metric, ...], Field(min_length=1)] = (ACCURACY,)
    metrics: dict[str, dict[str, Finite]] = Field(default_factory=dict)
    history: tuple[EpochResult, ...]
    bytes: BytesMoved
    bytes_per_sample: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    traffic: tuple[TrafficRow, ...]
    federated_averaging: FederatedAveraging
    samples: Count
    steps: Count
    windows: Count
    duration_s: Seconds
    training_s: Seconds
    round_trip_s: RoundTrip
    resends: Count
    duplicates: Count
    processes: tuple[ProcessUsage, ...]
    seed: Count
    manifest: dict[str, object]
    versions: dict[str, str]
    demo: dict[str, object] = Field(default_factory=dict)
    reconnects: Count | None = None
    rejects: Rejects | None = None
    stages: dict[str, StageLatency] = Field(default_factory=dict)
    selection: Selection | None = None

    @property
    def num_agents(self) -> int:
        """Agents that took part, however often they came back."""
        return len({process.id for process in self.processes if process.role == "agent"})

    @property
    def bytes_per_agent_day(self) -> float | None:
        """Wire bytes of a mean agent in a day at this run's pace, or None where nothing was measured."""
        if not self.num_agents or not self.duration_s:
            return None
        return self.bytes.total.wire / self.num_agents / self.duration_s * SECONDS_A_DAY

    @property
    def metric(self) -> Metric:
        """What models of this task are compared by."""
        return self.measures[0]

    @property
    def scores(self) -> dict[str, float]:
        """That metric of the trained model, given all modalities (`joint`) and given each alone."""
        return dict(self.accuracy) if self.metric.name == ACCURACY.name else self.values(self.metric)

    def values(self, metric: Metric) -> dict[str, float]:
        """Return a metric's values for the trained model, by what was given."""
        return {given: values[metric.name] for given, values in self.metrics.items() if metric.name in values}

    @property
    def curve(self) -> list[tuple[EpochResult, float]]:
        """Each evaluated epoch with the metric that models are compared by."""
        found = [(row, row.value(self.metric)) for row in self.history]
        return [(row, value) for row, value in found if value is not None]

    @property
    def best(self) -> EpochResult | None:
        """The epoch with the best test metric, the first of equals; None where none was evaluated."""
        sign = 1 if self.metric.better == "more" else -1
        found = max(self.curve, key=lambda each: sign * each[1], default=None)
        return None if found is None else found[0]

    @property
    def single_modalities(self) -> dict[str, float]:
        """The metric given one modality alone, by its name."""
        return {given: value for given, value in self.scores.items() if given != JOINT}

    @property
    def num_classes(self) -> int | None:
        """Classes of which each sample has one, or None for another task."""
        task = self.manifest.get("task")
        is_classification = isinstance(task, dict) and task.get("kind", "classification") == "classification"
        classes = task.get("classes") if isinstance(task, dict) and is_classification else None
        return len(classes) if isinstance(classes, list | tuple) and classes else None


def parse_run(run: Mapping[str, object], source: str = "run.json") -> RunRecord:
    """Check the content of a `run.json`.

    Args:
        run: The content.
        source: What to call it in an error.

    Raises:
        SettingsError: When a key is missing or has no usable value; the text names it.
    """
    try:
        return RunRecord.model_validate(run)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{source} is no record of a run: {key}: {first['msg']}", _FIX) from error


def load_run(path: Path) -> dict[str, object]:
    """Read a `run.json`; `parse_run` checks it.

    Raises:
        SettingsError: When it cannot be read or is no JSON object.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", _FIX) from error
    except ValueError as error:
        raise SettingsError(f"{path} is no JSON: {error}", _FIX) from error
    if not isinstance(run, dict):
        raise SettingsError(f"{path} holds no JSON object", _FIX)
    return run
