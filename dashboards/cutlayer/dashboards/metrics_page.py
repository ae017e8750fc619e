"""docs/metrics.md: the catalogue, its panels and its alerts, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cutlayer.dashboards.alerts import ALERTS
from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.metric_declaration import Kind, Metric, Source

__all__ = ["metrics_page"]

_HEAD: Final = """\
<!-- Written by `python -m cutlayer.dashboards.generate`; a test compares. -->
# Metrics

Every metric of Cutlayer, as declared in `dashboards/cutlayer/dashboards/catalogue.py`: programs, dashboards, alerts and
this page go by that table. Units are base units, ratios run from 0 to 1. Who measures what: the *worker* itself, the
*agents* (they report cumulative counts in their telemetry, the worker adds what has grown), the *broker* (under `$SYS`,
where it has that).

No label carries an agent's topic, so the number of series does not grow with the number of agents. The exception is a
page of its own with a bounded number of them, `/metrics/clients?top=20`.

*All workers* says how the values of a pool's workers make one: the parts of a whole are added (sum), of the same number
seen by each the largest is taken (max).
"""
_SOURCES: Final = {Source.WORKER: "worker", Source.AGENTS: "agents", Source.BROKER: "broker"}


def metrics_page() -> str:
    """Return the page."""
    parts = [_HEAD, "## /metrics\n", *_table(METRICS), "## /metrics/clients\n", *_table(AGENT_METRICS)]
    parts += ["## Dashboards\n", *_boards(), "## Alerts\n", *_alerts()]
    return "\n".join(parts).rstrip() + "\n"


def _table(metrics: Iterable[Metric]) -> Iterator[str]:
    yield "| metric | kind | labels | from | all workers | what it is |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for entry in metrics:
        cells = (f"`{_shown(entry)}`", entry.kind.value, _labels(entry), _SOURCES[entry.source], entry.across.value)
        yield f"| {' | '.join(cells)} | {entry.help} |"
    yield ""


def _shown(entry: Metric) -> str:
    return f"{entry.name}_info" if entry.kind is Kind.INFO else entry.name


def _labels(entry: Metric) -> str:
    texts = []
    for name, values in entry.labels.items():
        if values is None:
            texts.append(f"`{name}`")
        else:
            texts.append(f"`{name}`: {', '.join(values)}")
    return "; ".join(texts) or "-"


def _boards() -> Iterator[str]:
    yield "| dashboard | uid | question |"
    yield "| --- | --- | --- |"
    for board in BOARDS:
        yield f"| {board.title} | `{board.uid}` | {board.description} |"
    yield ""


def _alerts() -> Iterator[str]:
    yield "| alert | severity | after | what is wrong | what to do |"
    yield "| --- | --- | --- | --- | --- |"
    for alert in ALERTS:
        summary = _plain(alert.summary)
        yield f"| {alert.name} | {alert.severity} | {alert.hold} | {summary} | {alert.action} |"
    yield ""


def _plain(template: str) -> str:
    """Take Prometheus' placeholders out of a text: `{{ $labels.agent }}` becomes its last word."""
    words = []
    for piece in template.replace("{{", "\0").replace("}}", "\0").split("\0"):
        stripped = piece.strip()
        if stripped.startswith("$labels."):
            words.append(f"*{stripped.removeprefix('$labels.')}*")
        elif stripped.startswith("$value"):
            words.append("*value*")
        else:
            words.append(piece)
    return "".join(words)
