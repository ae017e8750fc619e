"""The plots of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from cutlayer.dashboards.comparison import ComparedRun
from cutlayer.dashboards.plot_style import (
    DOWN,
    INK,
    MUTED,
    RUNS,
    SINGLE,
    UP,
    bar_height,
    bytes_axis,
    label_bars,
    metric_axis,
    new_figure,
    plot_style,
    shortened,
    svg,
)
from cutlayer.dashboards.units import bytes_text

__all__ = ["MAX_DRAWN", "bytes_of_runs", "metrics_by_bytes"]

MAX_DRAWN = len(RUNS)
"""Runs in one plot: further ones would have no colour of their own."""
MAX_REFERENCES = 3
WIDEST = 1.6
"""A reference this many times beyond the runs' own bytes is not drawn: it would press the curves together."""


def metrics_by_bytes(runs: Sequence[ComparedRun]) -> str:
    """Draw a metric against the bytes that had crossed the agents' connections until then, a curve a run.

    The metric is the first run's: runs of tasks with another one have no curve.
    """
    metric = runs[0].record.metric
    with plot_style():
        figure, axes = new_figure()
        for run, colour in zip(runs, RUNS, strict=False):
            if run.record.metric != metric:
                continue
            axes.plot(
                [row.wire_bytes for row, _ in run.record.curve],
                [value for _, value in run.record.curve],
                color=colour,
                marker="o",
                label=shortened(run.label),
            )
        axes.set_xlabel("bytes on the wire, all agents, both directions")
        axes.set_xlim(left=0)
        _federated_averaging(axes, runs)
        bytes_axis(axes)
        classes = {run.record.num_classes for run in runs}
        metric_axis(axes, metric, classes.pop() if len(classes) == 1 else None)
        axes.legend(loc="lower right", fontsize=9.5, bbox_to_anchor=(1, 0.18))
        return svg(figure, "metrics-by-bytes", f"Test {metric.title} against bytes on the wire, a curve a run")


def bytes_of_runs(runs: Sequence[ComparedRun]) -> str:
    """Draw the bytes of each run: on the wire by direction, and behind it what no codec would have moved."""
    drawn = list(runs)[:MAX_DRAWN]
    federated = _references(drawn)
    longest = max([*(max(run.bytes.raw, run.bytes.wire) for run in drawn), *federated.values(), 1])
    with plot_style():
        figure, axes = new_figure(bar_height(len(drawn) + len(federated)) + 0.3)
        for position, run in enumerate(drawn):
            up, down = run.record.bytes.up.wire, run.record.bytes.down.wire
            axes.barh(position, run.bytes.raw, height=0.7, facecolor="none", edgecolor=SINGLE, linewidth=1.2)
            axes.barh(position, up, height=0.46, color=UP, linewidth=0)
            axes.barh(position, down, left=up, height=0.46, color=DOWN, linewidth=0)
            _behind(axes, position, max(run.bytes.raw, run.bytes.wire), bytes_text(run.bytes.wire), INK)
        for position, num_bytes in enumerate(federated.values(), start=len(drawn)):
            axes.barh(position, num_bytes, height=0.46, color=SINGLE, linewidth=0)
            _behind(axes, position, num_bytes, bytes_text(num_bytes), MUTED)
        label_bars(axes, [*(run.label for run in drawn), *federated])
        axes.set_xlim(0, longest * 1.25)
        bytes_axis(axes)
        axes.set_xlabel("bytes on the wire, all agents")
        return svg(figure, "bytes-of-runs", "Bytes on the wire of each run, by direction")


def _references(runs: Sequence[ComparedRun]) -> dict[str, int]:
    """Return what federated averaging would have moved, by label: one where it is the same for all runs."""
    by_bytes: dict[int, str] = {}
    for run in runs:
        by_bytes.setdefault(run.record.federated_averaging.bytes, run.label)
    if len(by_bytes) == 1:
        return {"federated averaging": next(iter(by_bytes))}
    return {f"FedAvg for {label}": num_bytes for num_bytes, label in list(by_bytes.items())[:MAX_REFERENCES]}


def _behind(axes: Axes, position: int, length: float, text: str, colour: str) -> None:
    axes.annotate(text, (length, position), xytext=(5, 0), textcoords="offset points", va="center", color=colour)


def _federated_averaging(axes: Axes, runs: Sequence[ComparedRun]) -> None:
    """Draw what federated averaging would have moved as a line across, where it does not lie far beyond the runs."""
    reach = max(run.bytes.wire for run in runs) * WIDEST
    for label, num_bytes in _references(runs).items():
        if 0 < num_bytes <= reach:
            axes.axvline(num_bytes, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
            axes.annotate(
                shortened(label), (num_bytes, 0.14), xytext=(-3, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=MUTED, ha="right", va="bottom", rotation=90, fontsize=8.5,
            )  # fmt: skip
