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
    accuracy_axis,
    bar_height,
    bytes_axis,
    draw_bars,
    new_figure,
    plot_style,
    svg,
)
from cutlayer.dashboards.run_record import JOINT, RunRecord
from cutlayer.dashboards.units import bytes_text, percent_text

__all__ = ["accuracy_by_bytes", "accuracy_by_epoch", "accuracy_by_modality", "bytes_by_kind"]


def accuracy_by_epoch(run: RunRecord) -> str:
    """Draw test accuracy against epoch, with the level of guessing."""
    with plot_style():
        figure, axes = new_figure()
        axes.plot([row.epoch for row in run.history], [row.accuracy for row in run.history], color=ACCENT, marker="o")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracy_axis(axes, run.num_classes)
        return svg(figure, "accuracy-by-epoch", "Test accuracy against epoch")


def accuracy_by_bytes(run: RunRecord) -> str:
    """Draw test accuracy against the bytes that had crossed the agents' connections until then."""
    with plot_style():
        figure, axes = new_figure()
        axes.plot(
            [row.wire_bytes for row in run.history],
            [row.accuracy for row in run.history],
            color=ACCENT,
            marker="o",
        )
        axes.set_xlabel("bytes on the wire, all agents, both directions")
        axes.set_xlim(left=0)
        bytes_axis(axes)
        accuracy_axis(axes, run.num_classes)
        return svg(figure, "accuracy-by-bytes", "Test accuracy against bytes on the wire")


def accuracy_by_modality(run: RunRecord) -> str:
    """Draw the final test accuracy of the one model, given all modalities and given each alone."""
    singles = sorted(run.single_modalities.items())
    rows = [Bar(f"{name} alone", share, percent_text(share), SINGLE) for name, share in singles[:MAX_BARS]]
    if JOINT in run.accuracy:
        joint = run.accuracy[JOINT]
        rows.insert(0, Bar("all modalities", joint, percent_text(joint), ACCENT))
    with plot_style():
        figure, axes = new_figure(bar_height(len(rows)))
        draw_bars(axes, rows)
        axes.set_xlim(0, 1.18)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f} %"))
        axes.set_xlabel("test accuracy")
        return svg(figure, "accuracy-by-modality", "Test accuracy by modality given")


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
