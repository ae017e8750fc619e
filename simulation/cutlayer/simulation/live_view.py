"""What a person sees while a run goes on: a table that redraws itself, or a line every few seconds.

The table is for terminals and fits 80 columns; the lines are for logs, pipes and `--no-live`. Both show a
`RunStatus`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cutlayer.broker.command_line import printable
from cutlayer.broker.messages import MetricSums, RunPhase
from cutlayer.broker.task_metrics import mean_loss, metric_values, pooled
from cutlayer.dashboards.units import bytes_text, duration_text, latency_text, metric_text, ratio_text
from cutlayer.simulation.run_status import AgentStatus, RunStatus

__all__ = ["LiveTable", "PlainLines", "View", "progress_line", "status_table"]

FRAME_S: Final = 0.25
LINE_EVERY_S: Final = 3.0
BAR_WIDTH: Final = 8
SPARKS: Final = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
"""Eighths of a block, from one to eight."""
MAX_SPARKS: Final = 40
UNKNOWN: Final = "-"
COLUMNS: Final = ("epoch", "loss", "train", "test", "up", "down", "ratio", "trip")
"""After the agent and its bar. Train and test are the task's metric, trip is the median round trip."""


class View(Protocol):
    """Shows a status again and again. A context manager: leaving it leaves the terminal in order."""

    def show(self, status: RunStatus, elapsed_s: float) -> None:
        """Show a status; called often, it draws as often as it sees fit."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""


class LiveTable:
    """The table, drawn in place.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        # Drawn by the caller's thread: a thread of rich's own would draw a status that is being changed.
        self._live = Live(console=console, auto_refresh=False)
        self._next_at_s = 0.0
        self._last: tuple[RunStatus, float] | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:  # what came since the last frame stays on the screen
            self._live.update(status_table(*self._last), refresh=True)
        self._live.stop()

    def show(self, status: RunStatus, elapsed_s: float) -> None:
        """Draw the table, at most four times a second."""
        self._last = (status, elapsed_s)
        if elapsed_s >= self._next_at_s:
            self._next_at_s = elapsed_s + FRAME_S
            self._live.update(status_table(status, elapsed_s), refresh=True)


class PlainLines:
    """A line every few seconds, and one whenever the run reaches another phase.

    Args:
        write: Prints a line.
        every_s: Seconds from one line to the next.
    """

    def __init__(self, write: Callable[[str], None], every_s: float = LINE_EVERY_S) -> None:
        self._write = write
        self._every_s = every_s
        self._next_at_s = 0.0
        self._phase: RunPhase | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, status: RunStatus, elapsed_s: float) -> None:
        """Print a line if it is time for one."""
        if elapsed_s >= self._next_at_s or status.phase is not self._phase:
            self._next_at_s = elapsed_s + self._every_s
            self._phase = status.phase
            self._write(progress_line(status, elapsed_s))


def progress_line(status: RunStatus, elapsed_s: float) -> str:
    """Return a status as one line of text."""
    parts = [f"{duration_text(elapsed_s)}  {_phase_text(status)}"]
    if status.book is not None and any(agent.telemetry for agent in status.agents.values()):
        moved = status.book.bytes_moved()
        raw_bytes = moved["up"]["raw"] + moved["down"]["raw"]
        wire_bytes = moved["up"]["wire"] + moved["down"]["wire"]
        test = _pooled([agent.test for agent in status.agents.values()])
        recent = _pooled([agent.recent for agent in status.agents.values()])
        unit = _unit(status)
        parts += [
            f"{status.done_share:.0%} of the steps",
            f"loss {_loss(recent)}",
            f"{_title(status)} {_value(recent, status)}{unit} (test {_value(test, status)}{unit})",
            f"up {bytes_text(moved['up']['wire'])}, down {bytes_text(moved['down']['wire'])}",
            f"ratio {ratio_text(raw_bytes, wire_bytes)}",
            f"round trip {latency_text(status.book.round_trips().quantile(0.5))}",
        ]
    return ", ".join(parts)


def status_table(status: RunStatus, elapsed_s: float) -> RenderableType:
    """Return a status as a table: a row an agent, totals, and the test metric of each epoch so far."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_footer=True)  # one space between columns
    agents = list(status.agents.values())
    recent, test = _pooled([agent.recent for agent in agents]), _pooled([agent.test for agent in agents])
    table.add_column("agent", footer="all", overflow="ellipsis", no_wrap=True, max_width=16)
    table.add_column("progress", footer=_bar(status.done_share), width=BAR_WIDTH)
    footers = ("", _loss(recent), _value(recent, status), _value(test, status), *_totals(status))
    is_share = status.metric is not None and status.metric.is_share
    titles = [f"{title} %" if title == "test" and is_share else title for title in COLUMNS]
    for title, footer in zip(titles, footers, strict=True):
        table.add_column(title, footer=footer, justify="right", no_wrap=True)
    for topic, agent in status.agents.items():
        table.add_row(Text(topic), _bar(agent.done_share), *_agent_cells(agent, status))
    head = Text.assemble((duration_text(elapsed_s), "bold"), "  ", _phase_text(status))
    return Group(head, table, *_metric_curve(status))


def _agent_cells(agent: AgentStatus, status: RunStatus) -> list[str]:
    telemetry = agent.telemetry
    if telemetry is None or status.manifest is None:
        return [UNKNOWN] * len(COLUMNS)
    return [
        f"{telemetry.epoch}/{status.manifest.epochs}",
        _loss(agent.recent),
        _value(agent.recent, status),
        _value(agent.test, status),
        bytes_text(telemetry.wire_sent_bytes),
        bytes_text(telemetry.wire_received_bytes),
        ratio_text(agent.raw_bytes, agent.wire_bytes),
        latency_text(agent.round_trip_s),
    ]


def _totals(status: RunStatus) -> list[str]:
    if status.book is None:
        return [UNKNOWN] * 4
    moved = status.book.bytes_moved()
    raw_bytes = moved["up"]["raw"] + moved["down"]["raw"]
    wire_bytes = moved["up"]["wire"] + moved["down"]["wire"]
    return [
        bytes_text(moved["up"]["wire"]),
        bytes_text(moved["down"]["wire"]),
        ratio_text(raw_bytes, wire_bytes),
        latency_text(status.book.round_trips().quantile(0.5)),
    ]


def _phase_text(status: RunStatus) -> str:
    worker = status.worker
    if worker is None:
        return "waiting for the worker"
    if worker.phase is RunPhase.WAITING:
        return f"waiting for agents: {worker.agents} of {len(status.agents)} are there"
    if worker.phase is RunPhase.ENDED:
        return f"ended: {printable(worker.reason)}" if worker.reason else "ended"
    return worker.phase.value


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=BAR_WIDTH)


def _metric_curve(status: RunStatus) -> list[RenderableType]:
    metric = status.metric
    if status.book is None or metric is None:
        return []
    values = [row["metrics"][metric.name] for row in status.book.history() if metric.name in row["metrics"]]
    if not values:
        return []
    full = 1.0 if metric.is_share else max(*values, 1e-9)
    sparks = "".join(SPARKS[min(int(value / full * len(SPARKS)), len(SPARKS) - 1)] for value in values[-MAX_SPARKS:])
    better = " (less is better)" if metric.better == "less" else ""
    return [Text(f"test {metric.title} by epoch{better}  {sparks}  {printable(metric_text(metric, values[-1]))}")]


def _pooled(sums: list[MetricSums | None]) -> MetricSums:
    return pooled(entry for entry in sums if entry is not None)


def _loss(sums: MetricSums | None) -> str:
    loss = None if sums is None else mean_loss(sums)
    return UNKNOWN if loss is None else f"{loss:.3f}"


def _title(status: RunStatus) -> str:
    return "metric" if status.metric is None else status.metric.title


def _unit(status: RunStatus) -> str:
    """Return what stands behind a value."""
    if status.metric is None or not (status.metric.is_share or status.metric.unit):
        return ""
    return " %" if status.metric.is_share else f" {printable(status.metric.unit)}"


def _value(sums: MetricSums | None, status: RunStatus) -> str:
    """Return the task's metric of some samples, without its unit."""
    if sums is None or status.manifest is None or status.metric is None:
        return UNKNOWN
    value = metric_values(status.manifest.task, sums).get(status.metric.name)
    if value is None:
        return UNKNOWN
    return f"{value * 100:.1f}" if status.metric.is_share else metric_text(replace(status.metric, unit=""), value)
