"""Adds what an agent reports of itself to a store: at the worker for all agents, at the agent for itself.

Reports are cumulative since the agent's start, so what counts is their growth. Names in them come from a peer: kinds
of messages, codecs, stages and reasons that the catalogue and the run do not know are counted as `other`, and no
peer can make a store grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from cutlayer.broker.messages import StageTime, Telemetry
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.metric_labels import AGENT_STAGES, NO_CODEC, OTHER, OTHER_KINDS, REFUSALS, TENSOR_KINDS, Side
from cutlayer.dashboards.metric_store import MetricStore

__all__ = ["add_growth", "initialise_traffic", "traffic_of"]

_TRAFFIC = (
    "cutlayer_messages_total",
    "cutlayer_raw_bytes_total",
    "cutlayer_payload_bytes_total",
    "cutlayer_wire_bytes_total",
)
_KINDS = frozenset(TENSOR_KINDS) | frozenset(OTHER_KINDS)
_STAGES = frozenset(stage.value for stage in AGENT_STAGES)

TrafficKey = tuple[str, str, str]
"""Direction, kind of message, codec."""
Sizes = tuple[int, int, int, int]
"""Messages, raw, payload and wire bytes."""


def initialise_traffic(store: MetricStore, codecs: Mapping[str, str]) -> None:
    """Let the series of a run's tensors exist, at 0.

    Args:
        store: The store.
        codecs: The run's codec of each kind of message with tensors.
    """
    for kind, codec in codecs.items():
        for name in _TRAFFIC:
            store.initialise(name, TENSOR_KINDS[kind], kind, codec)


def add_growth(store: MetricStore, now: Telemetry, before: Telemetry | None, codecs: Iterable[str]) -> None:
    """Add what an agent has counted since an earlier report of the same process.

    Args:
        store: What to add to.
        now: The report.
        before: The earlier one; None for none, so that all counts.
        codecs: Codecs of the run; others are counted as one.
    """
    known = frozenset(codecs)
    earlier = traffic_of(before, known) if before is not None else {}
    for key, sizes in traffic_of(now, known).items():
        for name, new, old in zip(_TRAFFIC, sizes, earlier.get(key, (0, 0, 0, 0)), strict=True):
            store.add(name, max(new - old, 0), *key)
    for seconds, times in _grown(now.round_trips, () if before is None else before.round_trips):
        store.observe("cutlayer_round_trip_seconds", seconds, times=times)
    stages = {} if before is None else {stage.stage: stage for stage in before.stages}
    for stage in now.stages:
        if stage.stage in _STAGES:
            _add_stage(store, stage, stages.get(stage.stage))
    agent = Side.AGENT.value
    store.add("cutlayer_resends_total", _more(now.resends, None if before is None else before.resends))
    store.add("cutlayer_duplicates_total", _more(now.duplicates, None if before is None else before.duplicates), agent)
    store.add("cutlayer_reconnects_total", _more(now.reconnects, None if before is None else before.reconnects), agent)
    store.add(
        "cutlayer_codec_changes_total", _more(now.codec_changes, None if before is None else before.codec_changes)
    )
    waited_s = now.paced_s - (0.0 if before is None else before.paced_s)
    store.add("cutlayer_paced_seconds_total", max(waited_s, 0.0))
    reasons, reasons_before = _reasons(now), Counter[str]() if before is None else _reasons(before)
    for reason, count in reasons.items():
        store.add("cutlayer_rejects_total", max(count - reasons_before[reason], 0), agent, reason)


def traffic_of(telemetry: Telemetry, codecs: frozenset[str]) -> dict[TrafficKey, Sizes]:
    """Return messages and bytes by direction, kind and codec."""
    sums: dict[TrafficKey, list[int]] = {}
    for row in telemetry.traffic:
        kind = row.kind if row.kind in _KINDS else OTHER
        codec = row.codec if row.codec in codecs else OTHER
        entry = sums.setdefault((row.direction.value, kind, codec if row.codec else NO_CODEC), [0, 0, 0, 0])
        for index, size in enumerate((row.messages, row.raw_bytes, row.payload_bytes, row.wire_bytes)):
            entry[index] += size
    return {key: (entry[0], entry[1], entry[2], entry[3]) for key, entry in sums.items()}


def _add_stage(store: MetricStore, now: StageTime, before: StageTime | None) -> None:
    grown = dict(_grown(now.buckets, before.buckets if before is not None else ()))
    if grown:
        # Buckets have no better sum than that of their middles; the agent has the true one.
        total = max(now.seconds - (before.seconds if before is not None else 0.0), 0.0)
        store.observe_all("cutlayer_stage_seconds", grown, now.stage, total=total)


def _grown(now: Iterable[tuple[int, int]], before: Iterable[tuple[int, int]]) -> Iterator[tuple[float, int]]:
    """Yield (seconds, times) for each bucket of a `LogHistogram` that has grown: its middle stands for all in it."""
    earlier = dict(before)
    for bucket, count in now:
        more = count - earlier.get(bucket, 0)
        if more > 0:
            yield LogHistogram.middle_s(bucket), more


def _reasons(telemetry: Telemetry) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for reason, count in telemetry.rejects_by:
        reasons[reason if reason in REFUSALS else "unexpected"] += count
    return reasons


def _more(now: int, before: int | None) -> int:
    return max(now - (before or 0), 0)
