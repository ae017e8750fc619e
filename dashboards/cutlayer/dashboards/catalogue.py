"""Every metric of Cutlayer, declared once: programs, dashboards, alerts and documentation go by this table.

Names follow Prometheus (base units, `_total` on counters, ratios from 0 to 1). No label carries an agent's topic,
but for the few metrics of `AGENT_METRICS`, which `/metrics/clients` serves for a bounded number of agents. A worker
writes what it measures, what agents report in their telemetry, and what its broker says of itself (`Source`).

Workers of a pool show some numbers each for itself and some of the whole run: `across` says how to put them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypedDict, Unpack

from cutlayer.dashboards.metric_declaration import Across, Kind, Metric, Source
from cutlayer.dashboards.metric_labels import NO_CODEC, OTHER_KINDS, PHASES, REFUSALS, TENSOR_KINDS, Side, Stage

__all__ = ["AGENT_METRICS", "AGENT_NAMES", "LATENCY_BUCKETS_S", "METRICS", "metric"]

LATENCY_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
ROUND_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
STALENESS_BUCKETS: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)
SIZE_BUCKETS_BYTES: Final = tuple(float(4**power) for power in range(4, 14))
"""256 B to 64 MiB."""


class _More(TypedDict, total=False):
    labels: Mapping[str, tuple[str, ...] | None]
    source: Source
    across: Across
    combinations: tuple[tuple[str, ...], ...]


def _counter(name: str, text: str, **more: Unpack[_More]) -> Metric:
    return Metric(name, Kind.COUNTER, text, **more)


def _gauge(name: str, text: str, **more: Unpack[_More]) -> Metric:
    return Metric(name, Kind.GAUGE, text, **more)


def _histogram(name: str, text: str, buckets: tuple[float, ...], **more: Unpack[_More]) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, buckets=buckets, **more)


_UP_DOWN: Final[Mapping[str, tuple[str, ...] | None]] = {"direction": ("up", "down")}
_TRAFFIC: Final[_More] = {
    "labels": {"direction": ("up", "down"), "kind": None, "codec": None},
    "source": Source.AGENTS,
    "combinations": tuple(
        (direction, kind, NO_CODEC) for kind, directions in OTHER_KINDS.items() for direction in directions
    ),
}

METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "cutlayer_build",
        Kind.INFO,
        "What this worker runs.",
        labels={"worker": None, "model": None, "version": None},
        across=Across.MAX,
    ),
    # Bytes and messages, as agents count them.
    _counter("cutlayer_raw_bytes_total", "Tensors that agents sent and received, as float32.", **_TRAFFIC),
    _counter("cutlayer_payload_bytes_total", "MQTT payloads that agents sent and received.", **_TRAFFIC),
    _counter("cutlayer_wire_bytes_total", "All MQTT packets that agents sent and received.", **_TRAFFIC),
    _counter("cutlayer_messages_total", "Messages that agents sent and received.", **_TRAFFIC),
    _gauge(
        "cutlayer_run_bytes",
        "Bytes of the run so far: raw (tensors as float32), payload and wire.",
        labels={**_UP_DOWN, "measure": ("raw", "payload", "wire")},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_federated_averaging_bytes",
        "What federated averaging of the same model would have moved for the epochs so far (computed).",
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    # Progress and quality.
    _gauge("cutlayer_run_phase", "1 for the phase that the run is in.", labels={"phase": PHASES}, across=Across.MAX),
    _gauge(
        "cutlayer_run_progress_ratio",
        "Training steps committed of those planned.",
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_run_epochs",
        "Epochs that the agents have committed, on average.",
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _counter("cutlayer_windows_total", "Windows committed: optimizer steps.", across=Across.MAX),
    _counter("cutlayer_steps_total", "Microbatches committed.", across=Across.MAX),
    _counter("cutlayer_samples_total", "Training samples committed.", across=Across.MAX),
    _gauge(
        "cutlayer_loss",
        "Mean loss in nats: train over the agents' last reports, test over their last evaluations; validation "
        "over those of candidates, where weights are chosen.",
        labels={"split": None},  # absent until known: an accuracy of 0 would be a claim
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_accuracy_ratio",
        "Share of samples that are right: train over the agents' last reports, test over their last evaluations; "
        "validation over those of candidates, where weights are chosen.",
        labels={"split": None},  # absent until known: an accuracy of 0 would be a claim
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_task_metric",
        "What models of the run are compared by, where that is no accuracy: its name with its unit, whether more or "
        "less of it is better; train, test and validation as for accuracy.",
        labels={"metric": None, "better": None, "split": None},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge("cutlayer_weights_version", "Version of the weights.", across=Across.MAX),
    _gauge("cutlayer_gradient_norm", "Norm of the last mean gradient before clipping.", across=Across.MAX),
    _gauge("cutlayer_learning_rate", "Learning rate of the last optimizer step.", across=Across.MAX),
    # Latency.
    _histogram(
        "cutlayer_round_trip_seconds",
        "An agent's activations sent until their outputs are received.",
        LATENCY_BUCKETS_S,
        source=Source.AGENTS,
    ),
    _histogram(
        "cutlayer_stage_seconds",
        "Time of each stage of a step; tokenize, encode, network and loss are the agents', the others the worker's.",
        LATENCY_BUCKETS_S,
        labels={"stage": tuple(stage.value for stage in Stage)},
    ),
    # Windows, staleness, back-pressure.
    _gauge(
        "cutlayer_window_fill_ratio",
        "Samples of the last window committed, of those that a window wants.",
        across=Across.MAX,
    ),
    _gauge("cutlayer_window_open_samples", "Samples in the open window at this worker."),
    _histogram(
        "cutlayer_staleness_versions",
        "Versions of the weights between a microbatch's forward pass and its commit.",
        STALENESS_BUCKETS,
    ),
    _gauge("cutlayer_live_samples", "Samples whose graphs are alive."),
    _gauge(
        "cutlayer_credits",
        "Microbatches that agents may have outstanding at this worker, and of those the ones that are.",
        labels={"state": ("granted", "used")},
    ),
    _counter(
        "cutlayer_activations_total",
        "Samples, also of evaluations, whose activations came as tensors, or as references to stored ones.",
        labels={"source": ("tensors", "store")},
    ),
    _counter(
        "cutlayer_codec_changes_total",
        "Steps of agents up and down the run's ladder of codecs.",
        source=Source.AGENTS,
    ),
    _counter(
        "cutlayer_paced_seconds_total",
        "Time that agents' microbatches have waited for the limits of their uplinks (--max-uplink).",
        source=Source.AGENTS,
    ),
    # What goes wrong.
    _counter("cutlayer_resends_total", "Messages that agents sent again.", source=Source.AGENTS),
    _counter(
        "cutlayer_duplicates_total",
        "Messages that came twice.",
        labels={"side": tuple(side.value for side in Side)},
    ),
    _counter(
        "cutlayer_rejects_total",
        "Messages that were not taken.",
        labels={"side": tuple(side.value for side in Side), "reason": REFUSALS},
    ),
    _counter(
        "cutlayer_reconnects_total",
        "Connections to the broker that were lost and made again.",
        labels={"side": tuple(side.value for side in Side)},
    ),
    # Who is there.
    _gauge("cutlayer_agents", "Agents that hold a lease.", across=Across.MAX),
    _gauge(
        "cutlayer_agents_seen",
        "Agents that have reported since this worker's start.",
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge("cutlayer_workers", "Workers of the run that are online.", across=Across.MAX),
    # This worker.
    _gauge("cutlayer_broker_connected", "1 while this worker is connected to the broker."),
    _counter(
        "cutlayer_worker_wire_bytes_total",
        "All MQTT packets of this worker's own connection, sent (down) and received (up).",
        labels=_UP_DOWN,
    ),
    _counter(
        "cutlayer_worker_payload_bytes_total",
        "MQTT payloads that this worker sent (down) and received (up), by kind of message.",
        labels={**_UP_DOWN, "kind": None},
        combinations=tuple((direction, kind) for kind, direction in TENSOR_KINDS.items()),
    ),
    _histogram(
        "cutlayer_message_size_bytes",
        "Size of the messages with tensors, chunks put together.",
        SIZE_BUCKETS_BYTES,
        labels=_UP_DOWN,
    ),
    _gauge("cutlayer_checkpoint_window", "Window of the last checkpoint.", across=Across.MAX),
    _gauge("cutlayer_checkpoint_seconds", "Time that the last checkpoint took.", across=Across.MAX),
    _gauge("cutlayer_broker_budget_bytes", "Most bytes that the broker may have to hold for this worker."),
    _gauge("cutlayer_agent_budget_bytes", "Most of them that are one agent's."),
    # The pool.
    _gauge("cutlayer_pool_workers", "Workers in the last round of the pool.", across=Across.MAX),
    _counter(
        "cutlayer_pool_rounds_total", "Rounds with the other workers of the pool.", labels={"result": ("ok", "failed")}
    ),
    _histogram("cutlayer_pool_round_seconds", "Time of one round.", ROUND_BUCKETS_S),
    _counter("cutlayer_pool_takeovers_total", "Times that this worker took over the pool's weights."),
    # The broker, of itself ($SYS, where it has it).
    _gauge(
        "cutlayer_broker_reports",
        "1 where the broker tells of itself under $SYS.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_broker_received_bytes_total",
        "Bytes that the broker has received.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_broker_sent_bytes_total", "Bytes that the broker has sent.", source=Source.BROKER, across=Across.MAX
    ),
    _counter(
        "cutlayer_broker_publish_received_total",
        "PUBLISH packets that the broker has received.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_broker_publish_sent_total",
        "PUBLISH packets that the broker has sent.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_broker_publish_dropped_total",
        "PUBLISH packets that the broker has dropped.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_broker_publish_received_bytes_total",
        "MQTT payloads that the broker has received.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_broker_publish_sent_bytes_total",
        "MQTT payloads that the broker has sent.",
        source=Source.BROKER,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_broker_clients", "Clients that are connected to the broker.", source=Source.BROKER, across=Across.MAX
    ),
    _gauge(
        "cutlayer_broker_retained_messages", "Messages that the broker keeps.", source=Source.BROKER, across=Across.MAX
    ),
    _gauge("cutlayer_broker_heap_bytes", "Memory that the broker uses.", source=Source.BROKER, across=Across.MAX),
    _gauge("cutlayer_broker_uptime_seconds", "Time since the broker's start.", source=Source.BROKER, across=Across.MAX),
)
"""All that `/metrics` shows, but for the standard `process_*` and `python_gc_*`."""

AGENT_METRICS: Final[tuple[Metric, ...]] = (
    _counter(
        "cutlayer_agent_wire_bytes_total",
        "All MQTT packets of one agent.",
        labels={"agent": None, **_UP_DOWN},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_agent_raw_bytes_total",
        "One agent's tensors as float32.",
        labels={"agent": None, **_UP_DOWN},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_agent_samples_total",
        "Training samples of one agent committed.",
        labels={"agent": None},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_agent_steps_total",
        "Training steps of one agent committed.",
        labels={"agent": None},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _counter(
        "cutlayer_agent_resends_total",
        "Messages that one agent sent again.",
        labels={"agent": None},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_agent_round_trip_seconds",
        "One agent's round trip over its last reports.",
        labels={"agent": None, "share": ("0.5", "0.95")},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_agent_progress_ratio",
        "One agent's training steps committed.",
        labels={"agent": None},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
    _gauge(
        "cutlayer_agent_silence_seconds",
        "Time since one agent's last report.",
        labels={"agent": None},
        source=Source.AGENTS,
        across=Across.MAX,
    ),
)
"""What `/metrics/clients` shows, for the agents with most bytes and `other` for the rest together."""
AGENT_NAMES: Final = frozenset(entry.name for entry in AGENT_METRICS)
"""Their names."""

_BY_NAME: Final = {entry.name: entry for entry in (*METRICS, *AGENT_METRICS)}
assert len(_BY_NAME) == len(METRICS) + len(AGENT_METRICS), "a name stands twice"


def metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        KeyError: When there is none.
    """
    return _BY_NAME[name]
