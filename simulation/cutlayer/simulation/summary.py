"""What a finished run has reached and cost, for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cutlayer.broker.command_line import printable
from cutlayer.dashboards.federated_comparison import federated_averaging_text
from cutlayer.dashboards.run_record import JOINT, RunRecord
from cutlayer.dashboards.units import (
    bytes_text,
    count_text,
    duration_text,
    latency_text,
    percent_text,
    ratio_text,
)

__all__ = ["summary"]


def summary(run: RunRecord) -> RenderableType:
    """Return the tables that end a run."""
    head = Text.assemble((printable(run.run_id), "bold"), f"  {printable(run.reason)}")
    comparison = Text(f"{_bytes_per_sample(run)}\n{federated_averaging_text(run)}")
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(_accuracy(run), _figures(run))
    return Group(head, side_by_side, _bytes(run), comparison, _processes(run))


def _accuracy(run: RunRecord) -> Table:
    table = _table("test accuracy, given", "accuracy")
    if JOINT in run.accuracy:
        table.add_row("all modalities", percent_text(run.accuracy[JOINT]))
    for name, share in sorted(run.single_modalities.items()):
        table.add_row(Text(printable(f"{name} alone")), percent_text(share))
    if not run.accuracy:
        table.add_row("(not evaluated)", "-")
    return table


def _bytes(run: RunRecord) -> Table:
    table = _table("bytes", "raw", "payload", "wire", "ratio")
    for name, moved in (("up", run.bytes.up), ("down", run.bytes.down), ("both", run.bytes.total)):
        table.add_row(
            name,
            bytes_text(moved.raw),
            bytes_text(moved.payload),
            bytes_text(moved.wire),
            ratio_text(moved.raw, moved.wire),
        )
    return table


def _bytes_per_sample(run: RunRecord) -> str:
    return f"{bytes_text(run.bytes_per_sample)} on the wire for each training sample, evaluation included."


def _figures(run: RunRecord) -> Table:
    table = _table("figure", "value")
    table.add_row("round trip, median", latency_text(run.round_trip_s.p50))
    table.add_row("round trip, 95th percentile", latency_text(run.round_trip_s.p95))
    table.add_row("training samples", count_text(run.samples))
    table.add_row("steps", count_text(run.steps))
    table.add_row("windows", count_text(run.windows))
    table.add_row("messages sent again", count_text(run.resends))
    table.add_row("duration", duration_text(run.duration_s))
    return table


def _processes(run: RunRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("process")
    table.add_column("id", overflow="fold")
    table.add_column("peak memory", justify="right")
    table.add_column("processor time", justify="right")
    for process in run.processes:
        table.add_row(
            Text(printable(process.role)),
            Text(printable(process.id)),
            bytes_text(process.peak_rss_bytes),
            duration_text(process.cpu_s),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
