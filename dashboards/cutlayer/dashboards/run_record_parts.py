"""Parts of `run.json` as typed records: bytes, times, processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BytesMoved",
    "Count",
    "FederatedAveraging",
    "JudgedEpoch",
    "Moved",
    "ProcessUsage",
    "Record",
    "Rejects",
    "RoundTrip",
    "Seconds",
    "Selection",
    "StageLatency",
    "TrafficRow",
]

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """A part: immutable, and keys that are not known here are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class JudgedEpoch(Record):
    """Weights that were judged.

    Attributes:
        epoch: Epochs of the run that they are of.
        value: The metric, over the validation samples of all agents together; None where nobody could tell.
        loss: Mean over samples; None as well.
        num_samples: Those samples.
    """

    epoch: Count
    value: Annotated[float, Field(allow_inf_nan=False)] | None
    loss: Annotated[float, Field(allow_inf_nan=False)] | None
    num_samples: Count


class Selection(Record):
    """Which weights a run has ended with.

    Attributes:
        metric: Name of what has judged them.
        kept_epoch: Epoch of the weights; None for the last ones.
        is_early: Whether training has ended before its last epoch.
        candidates: All that were judged, in order.
    """

    metric: str
    kept_epoch: Count | None
    is_early: bool
    candidates: tuple[JudgedEpoch, ...]


class Moved(Record):
    """Bytes in one direction.

    Attributes:
        raw: The tensors as float32.
        payload: MQTT payloads.
        wire: All that crossed the agents' connections, control packets included.
    """

    raw: Count
    payload: Count
    wire: Count


class BytesMoved(Record):
    """Bytes from the agents (up) and to them (down)."""

    up: Moved
    down: Moved

    @property
    def total(self) -> Moved:
        """Both directions."""
        up, down = self.up, self.down
        return Moved(raw=up.raw + down.raw, payload=up.payload + down.payload, wire=up.wire + down.wire)


class TrafficRow(Record):
    """Messages of one kind, over all agents."""

    direction: Literal["up", "down"]
    kind: str
    codec: str
    messages: Count
    raw_bytes: Count
    payload_bytes: Count
    wire_bytes: Count


class FederatedAveraging(Record):
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


class RoundTrip(Record):
    """Seconds from activations sent to outputs received; None where there was none."""

    p50: Seconds | None
    p95: Seconds | None


class StageLatency(Record):
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


class Rejects(Record):
    """Messages that were not taken, by label."""

    agent: dict[str, Count] = {}
    worker: dict[str, Count] = {}

    @property
    def total(self) -> int:
        """On both sides."""
        return sum(self.agent.values()) + sum(self.worker.values())


class ProcessUsage(Record):
    """What one process has used, by the kernel's count."""

    role: str
    id: str
    peak_rss_bytes: Count
    cpu_s: Seconds
