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
from pydantic import BaseModel, ConfigDict, Field

from cutlayer.broker.errors import SettingsError

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

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

_FIX = "give the run.json that a server worker or the demo has written"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Moved(_Record):
    """Bytes in one direction.

    Attributes:
        raw: The tensors as float32.
        payload: MQTT payloads.
        wire: All that crossed the agents' connections, control packets included.
    """

    raw: Count
    payload: Count
    wire: Count


class BytesMoved(_Record):
    """Bytes from the agents (up) and to them (down)."""

    up: Moved
    down: Moved

    @property
    def total(self) -> Moved:
        """Both directions."""
        up, down = self.up, self.down
        return Moved(raw=up.raw + down.raw, payload=up.payload + down.payload, wire=up.wire + down.wire)


class EpochResult(_Record):
    """What the agents' own test samples said after an epoch.

    Attributes:
        epoch: Epochs committed.
        accuracy: Share of samples that were right.
        loss: Mean over samples.
        samples: Samples over all agents.
        agents: Agents that have evaluated.
        wire_bytes: Bytes that they had moved until then, both directions.
    """

    epoch: Count
    accuracy: Share
    loss: Annotated[float, Field(allow_inf_nan=False)]
    samples: Count
    agents: Count
    wire_bytes: Count


class TrafficRow(_Record):
    """Messages of one kind, over all agents."""

    direction: Literal["up", "down"]
    kind: str
    codec: str
    messages: Count
    raw_bytes: Count
    payload_bytes: Count
    wire_bytes: Count


class FederatedAveraging(_Record):
    """What federated averaging of the same model moves: computed from the parameter count, not measured.

    Attributes:
        bytes: Both directions, all agents, as many rounds as each has committed epochs.
        rounds: One an epoch.
        agents: Agents of the run.
        parameters: Parameters of the whole model.
    """

    bytes: Count
    rounds: Count
    agents: Count
    parameters: Count


class RoundTrip(_Record):
    """Seconds from activations sent to outputs received; None where there was none."""

    p50: Seconds | None
    p95: Seconds | None


class StageLatency(_Record):
    """Time of one stage of a step.

    Attributes:
        count: Times it ran: a microbatch at an agent, a group of microbatches at the worker.
        mean_s: Mean.
        p50_s: Median.
        p95_s: 95th percentile; quantiles are None where the agents' times came without a histogram.
    """

    count: Count
    mean_s: Seconds
    p50_s: Seconds | None = None
    p95_s: Seconds | None = None


class Rejects(_Record):
    """Messages that were not taken, by label."""

    agent: dict[str, Count] = {}
    worker: dict[str, Count] = {}

    @property
    def total(self) -> int:
        """On both sides."""
        return sum(self.agent.values()) + sum(self.worker.values())


class ProcessUsage(_Record):
    """What one process has used, by the kernel's count."""

    role: str
    id: str
    peak_rss_bytes: Count
    cpu_s: Seconds


class RunRecord(_Record):
    """The content of `run.json`.

    Attributes:
        format: Version of the document's form.
        run_id: Unique name of the run.
        reason: Why it ended.
        accuracy: Test accuracy of the trained model given all modalities (`joint`) and given each alone.
        history: Test accuracy after each evaluated epoch.
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
    """

    format: Literal[1]
    run_id: str
    reason: str
    accuracy: dict[str, Share]
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
    demo: dict[str, object] = {}
    reconnects: Count | None = None
    rejects: Rejects | None = None
    stages: dict[str, StageLatency] = {}

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
    def best(self) -> EpochResult | None:
        """The epoch with the highest test accuracy, the first of equals; None where none was evaluated."""
        return max(self.history, key=lambda row: row.accuracy, default=None)

    @property
    def single_modalities(self) -> dict[str, float]:
        """Accuracy given one modality alone, by its name."""
        return {given: share for given, share in self.accuracy.items() if given != JOINT}

    @property
    def num_classes(self) -> int | None:
        """Classes of the task, or None where it has none."""
        task = self.manifest.get("task")
        classes = task.get("classes") if isinstance(task, dict) else None
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
