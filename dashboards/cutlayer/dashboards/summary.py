"""What a finished run has reached and cost, for the terminal. Every run ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cutlayer.broker.command_line import printable
from cutlayer.dashboards.federated_comparison import federated_averaging_text
from cutlayer.dashboards.run_record import JOINT, ProcessUsage, RunRecord
from cutlayer.dashboards.units import (
    bytes_text,
    count_text,
    duration_text,
    latency_text,
    metric_text,
    ratio_text,
)

__all__ = ["summary"]

MAX_PROCESSES: Final = 12
"""Lines of processes; a thousand agents share one."""
MAX_METRICS: Final = 12
"""Lines of metrics; a regression has two for each of its targets."""
NOT_KNOWN: Final = "-"
MAX_STAGES: Final = 16
"""Agents name their stages themselves."""


def summary(run: RunRecord) -> RenderableType:
    """Return the tables that end a run."""
    head = Text.assemble((printable(run.run_id), "bold"), f"  {printable(run.reason)}")
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(_metrics(run), _figures(run))
    comparison = Text(f"{_cost(run)}\n{federated_averaging_text(run)}")
    return Group(head, side_by_side, _bytes(run), comparison, *_stages(run), _processes(run))


def _metrics(run: RunRecord) -> Table:
    """Return the task's metric given all modalities and given each alone, and its other metrics given all."""
    metric, scores = run.metric, run.scores
    title = printable(metric.title)
    table = _table(Text(f"test {title}, given"), Text(title if metric.better == "more" else "less is better"))
    if JOINT in scores:
        table.add_row("all modalities", Text(printable(metric_text(metric, scores[JOINT]))))
    for name, value in sorted(run.single_modalities.items()):
        table.add_row(Text(printable(f"{name} alone")), Text(printable(metric_text(metric, value))))
    if not scores:
        table.add_row("(not evaluated)", "-")
    for other in run.measures[1 : 1 + MAX_METRICS]:
        value_text = metric_text(other, run.values(other).get(JOINT))
        if value_text != NOT_KNOWN:
            table.add_row(Text(printable(f"all: {other.title}")), Text(printable(value_text)))
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


def _cost(run: RunRecord) -> str:
    a_sample = f"{bytes_text(run.bytes_per_sample)} on the wire for each training sample, evaluation included"
    if run.bytes_per_agent_day is None:
        return f"{a_sample}."
    return f"{a_sample}; {bytes_text(run.bytes_per_agent_day)} an agent and day at this pace."


def _figures(run: RunRecord) -> Table:
    table = _table("figure", "value")
    table.add_row("round trip, median", latency_text(run.round_trip_s.p50))
    table.add_row("round trip, 95th percentile", latency_text(run.round_trip_s.p95))
    table.add_row("training samples", count_text(run.samples))
    table.add_row("steps", count_text(run.steps))
    table.add_row("windows", count_text(run.windows))
    table.add_row("messages sent again", count_text(run.resends))
    if run.rejects is not None:
        table.add_row("messages not taken", count_text(run.rejects.total))
    if run.selection is not None:
        kept = run.selection.kept_epoch
        table.add_row("weights kept", "the last" if kept is None else f"of epoch {kept}")
    if run.reconnects is not None:
        table.add_row("connections made again", count_text(run.reconnects))
    table.add_row("duration", duration_text(run.duration_s))
    return table


def _stages(run: RunRecord) -> Iterator[Table]:
    if not run.stages:
        return
    table = _table("stage of a step", "times", "mean", "median", "95th percentile")
    for name, stage in list(run.stages.items())[:MAX_STAGES]:
        table.add_row(
            Text(printable(name)),
            count_text(stage.count),
            latency_text(stage.mean_s),
            latency_text(stage.p50_s),
            latency_text(stage.p95_s),
        )
    yield table


def _processes(run: RunRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("process")
    table.add_column("id", overflow="fold")
    table.add_column("peak memory", justify="right")
    table.add_column("processor time", justify="right")
    # What every run has one of stands apart from the agents, of which there may be thousands.
    agents = [process for process in run.processes if process.role == "agent"]
    others = [process for process in run.processes if process.role != "agent"]
    folded = agents[MAX_PROCESSES:] if len(agents) > MAX_PROCESSES + 1 else []
    for process in [*others, *agents[: len(agents) - len(folded)]]:
        table.add_row(
            Text(printable(process.role)),
            Text(printable(process.id)),
            bytes_text(process.peak_rss_bytes),
            duration_text(process.cpu_s),
        )
    if folded:
        table.add_row("agent", f"{len(folded)} others", *_together(folded))
    return table


def _together(processes: list[ProcessUsage]) -> tuple[str, str]:
    """Return the largest memory and the sum of the processor times."""
    memory_bytes = max(process.peak_rss_bytes for process in processes)
    return f"at most {bytes_text(memory_bytes)}", duration_text(sum(process.cpu_s for process in processes))


def _table(first: str | Text, *others: str | Text) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
