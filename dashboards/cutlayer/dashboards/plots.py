"""The plots of one run's report."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.ticker import FuncFormatter, MaxNLocator

from cutlayer.dashboards.plot_style import (
    ACCENT,
    DOWN,
    MAX_BARS,
    SINGLE,
    UP,
    Bar,
    bar_height,
    bytes_axis,
    draw_bars,
    metric_axis,
    metric_title,
    new_figure,
    plot_style,
    svg,
)
from cutlayer.dashboards.run_record import JOINT, RunRecord
from cutlayer.dashboards.units import bytes_text, metric_text

__all__ = ["bytes_by_kind", "metric_by_bytes", "metric_by_epoch", "metric_by_modality"]


def metric_by_epoch(run: RunRecord) -> str:
    """Draw the task's test metric against epoch, with the level of guessing."""
    with plot_style():
        figure, axes = new_figure()
        axes.plot([row.epoch for row, _ in run.curve], [value for _, value in run.curve], color=ACCENT, marker="o")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        metric_axis(axes, run.metric, run.num_classes)
        return svg(figure, "metric-by-epoch", f"Test {run.metric.title} against epoch")


def metric_by_bytes(run: RunRecord) -> str:
    """Draw the task's test metric against the bytes that had crossed the agents' connections until then."""
    with plot_style():
        figure, axes = new_figure()
        axes.plot([row.wire_bytes for row, _ in run.curve], [value for _, value in run.curve], color=ACCENT, marker="o")
        axes.set_xlabel("bytes on the wire, all agents, both directions")
        axes.set_xlim(left=0)
        bytes_axis(axes)
        metric_axis(axes, run.metric, run.num_classes)
        return svg(figure, "metric-by-bytes", f"Test {run.metric.title} against bytes on the wire")


def metric_by_modality(run: RunRecord) -> str:
    """Draw the final test metric of the one model, given all modalities and given each alone."""
    singles, metric = sorted(run.single_modalities.items()), run.metric
    rows = [Bar(f"{name} alone", value, metric_text(metric, value), SINGLE) for name, value in singles[:MAX_BARS]]
    if JOINT in run.scores:
        joint = run.scores[JOINT]
        rows.insert(0, Bar("all modalities", joint, metric_text(metric, joint), ACCENT))
    with plot_style():
        figure, axes = new_figure(bar_height(len(rows)))
        draw_bars(axes, rows)
        if metric.is_share:
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f} %"))
        else:
            axes.set_xlim(0, max([*(bar.length for bar in rows), 1e-9]) * 1.42)
        axes.set_xlabel(metric_title(metric))
        return svg(figure, "metric-by-modality", f"Test {metric.title} by modality given")


def bytes_by_kind(run: RunRecord) -> str:
    """Draw the bytes on the wire by kind of message; the colour says the direction."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in run.traffic:
        sums[row.kind, row.direction] += row.wire_bytes
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    is_folded = len(ordered) > MAX_BARS
    shown = ordered[: MAX_BARS - 1] if is_folded else ordered
    rows = [
        Bar(kind, num_bytes, f"{bytes_text(num_bytes)} {direction}", UP if direction == "up" else DOWN)
        for (kind, direction), num_bytes in shown
    ]
    if is_folded:
        rest_bytes = sum(num_bytes for _, num_bytes in ordered[len(shown) :])
        rows.append(Bar(f"{len(ordered) - len(shown)} others", rest_bytes, bytes_text(rest_bytes), SINGLE))
    with plot_style():
        figure, axes = new_figure(bar_height(len(rows)))
        draw_bars(axes, rows)
        axes.set_xlim(0, max([*sums.values(), 1]) * 1.42)
        bytes_axis(axes)
        axes.set_xlabel("bytes on the wire, all agents")
        return svg(figure, "bytes-by-kind", "Bytes on the wire by kind of message and direction")
