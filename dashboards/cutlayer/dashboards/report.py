"""The HTML report of a run: one file that needs nothing else, neither network nor script.

Names in it come from peers (an agent chooses its own topic), so every text is escaped, and a content security
policy forbids whatever might get through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from cutlayer.dashboards.federated_comparison import federated_averaging_text
from cutlayer.dashboards.plots import accuracy_by_bytes, accuracy_by_epoch, accuracy_by_modality, bytes_by_kind
from cutlayer.dashboards.report_style import STYLE_SHEET
from cutlayer.dashboards.run_record import JOINT, RunRecord, parse_run
from cutlayer.dashboards.units import (
    bytes_text,
    count_text,
    duration_text,
    latency_text,
    percent_text,
    ratio_text,
)

__all__ = ["render_report"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Row = Sequence[str]


def render_report(run: Mapping[str, object]) -> str:
    """Return the report of a run as a self-contained HTML document; the same run gives the same bytes.

    Args:
        run: The content of its `run.json`.

    Raises:
        SettingsError: When a key is missing or has no usable value.
    """
    record = parse_run(run)
    title = escape(record.run_id)
    body = "\n".join(_parts(record))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Cutlayer: {title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE_SHEET}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _parts(run: RunRecord) -> Iterable[str]:
    yield (
        f"<header><h1>{escape(run.run_id)}</h1><p>Parallel split learning: {_num_agents(run)}, "
        f"{count_text(run.windows)} windows, {count_text(run.samples)} training samples in "
        f"{duration_text(run.duration_s)}. It ended because: {escape(run.reason) or 'not said'}.</p></header>"
    )
    yield _headline(run)
    if run.history:
        yield _pair(
            _section("Accuracy against epoch", accuracy_by_epoch(run)),
            _section("Accuracy against bytes", accuracy_by_bytes(run)),
        )
    modalities = ""
    if run.accuracy:
        modalities = _section(
            "Accuracy by modality given",
            accuracy_by_modality(run),
            "One model, evaluated at the end on the agents' own test samples; labels never left them.",
        )
    kinds = _section("Bytes by kind of message", bytes_by_kind(run)) if run.traffic else ""
    yield _pair(modalities, kinds)
    yield _pair(_bytes_section(run), _round_trip_section(run))
    yield _section("Federated averaging, for comparison", "", federated_averaging_text(run))
    yield _traffic_section(run)
    yield _processes_section(run)
    yield _folded("Settings of the run", ("setting", "value"), _flattened(run.manifest))
    if run.demo:
        yield _folded("How the demo was called", ("setting", "value"), _flattened(run.demo))
    yield _folded("Versions", ("package", "version"), sorted(run.versions.items()))


def _headline(run: RunRecord) -> str:
    total = run.bytes.total
    numbers = [
        (percent_text(run.accuracy.get(JOINT)), "test accuracy, all modalities"),
        (bytes_text(total.wire), "on the wire, both directions"),
        (ratio_text(total.raw, total.wire), "raw bytes over wire bytes"),
        (bytes_text(run.bytes_per_sample), "per training sample"),
        (latency_text(run.round_trip_s.p50), "round trip, median"),
        (duration_text(run.duration_s), "duration"),
    ]
    cards = (f"<section><b>{escape(value)}</b><span>{escape(name)}</span></section>" for value, name in numbers)
    return f'<div class="numbers">{"".join(cards)}</div>'


def _bytes_section(run: RunRecord) -> str:
    directions = (("up", run.bytes.up), ("down", run.bytes.down), ("both", run.bytes.total))
    rows = [
        (
            name,
            bytes_text(moved.raw),
            bytes_text(moved.payload),
            bytes_text(moved.wire),
            ratio_text(moved.raw, moved.wire),
        )
        for name, moved in directions
    ]
    note = (
        "Raw: the tensors as float32. Payload: MQTT payloads. Wire: all that crossed the agents' connections, "
        "control packets included."
    )
    return _section("Bytes moved", _table(("direction", "raw", "payload", "wire", "ratio"), rows), note)


def _round_trip_section(run: RunRecord) -> str:
    rows = [
        ("round trip, median", latency_text(run.round_trip_s.p50)),
        ("round trip, 95th percentile", latency_text(run.round_trip_s.p95)),
        ("steps", count_text(run.steps)),
        ("messages sent again", count_text(run.resends)),
        ("messages received twice", count_text(run.duplicates)),
        ("time until the last commit", duration_text(run.training_s)),
    ]
    note = "Round trip: an agent's activations sent to its outputs received, waiting and arithmetic included."
    return _section("Round trips", _table(("", "value"), rows), note)


def _traffic_section(run: RunRecord) -> str:
    rows = [
        (
            row.kind,
            row.direction,
            row.codec or "-",
            count_text(row.messages),
            bytes_text(row.raw_bytes),
            bytes_text(row.payload_bytes),
            bytes_text(row.wire_bytes),
        )
        for row in sorted(run.traffic, key=lambda row: -row.wire_bytes)
    ]
    return _section(
        "Messages", _table(("kind", "direction", "codec", "messages", "raw", "payload", "wire"), rows, num_names=3)
    )


def _processes_section(run: RunRecord) -> str:
    rows = [
        (process.role, process.id, bytes_text(process.peak_rss_bytes), duration_text(process.cpu_s))
        for process in run.processes
    ]
    return _section("Processes", _table(("role", "id", "peak memory", "processor time"), rows, num_names=2))


def _section(title: str, content: str, note: str = "") -> str:
    text = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{text}</section>"


def _pair(*sections: str) -> str:
    return f'<div class="pair">{"".join(sections)}</div>'


def _folded(title: str, head: Row, rows: Iterable[Row]) -> str:
    table = _table(head, rows, num_names=len(head), kind="words")
    return f"<section><details><summary>{escape(title)}</summary>{table}</details></section>"


def _table(head: Row, rows: Iterable[Row], *, num_names: int = 1, kind: str = "counts") -> str:
    """Return a table whose first `num_names` columns are names, to the left; the others are numbers."""

    def line(cells: Row, tag: str) -> str:
        names = "".join(f'<{tag} class="name">{escape(cell)}</{tag}>' for cell in cells[:num_names])
        return f"<tr>{names}{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells[num_names:])}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table class="{kind}">{line(head, "th")}{body}</table></div>'


def _flattened(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, text), sorted."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            rows += _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            rows.append((prefix + key, ", ".join(value)))
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows


def _num_agents(run: RunRecord) -> str:
    return f"{run.num_agents} agent{'' if run.num_agents == 1 else 's'}"
