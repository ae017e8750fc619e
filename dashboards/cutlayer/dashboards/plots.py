"""The report's plots, as SVG that sits inside HTML: no script, no font, no reference to anything outside.

Matplotlib draws with stand-in colours, which become CSS variables afterwards: so a plot follows the reader's light
or dark theme. The same record gives the same bytes: ids come from a fixed salt, and no date is written.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cutlayer.dashboards.run_record import JOINT, RunRecord
from cutlayer.dashboards.units import bytes_text, percent_text

__all__ = ["accuracy_by_bytes", "accuracy_by_epoch", "accuracy_by_modality", "bytes_by_kind"]

WIDTH_IN: Final = 5.2
HEIGHT_IN: Final = 3.2
MAX_BARS: Final = 8
"""Kinds of message are named by whoever sends telemetry: the smallest share a bar beyond this."""
MAX_LABEL: Final = 24

# Stand-ins that nothing else uses; the report's style sheet gives the variables their values.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_JOINT, _SINGLE, _UP, _DOWN = "#040404", "#050505", "#060606", "#070707"
_VARIABLES: Final = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    _JOINT: "--joint",
    _SINGLE: "--single",
    _UP: "--up",
    _DOWN: "--down",
}
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.labelcolor": _MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text: smaller, and read aloud by screen readers
    "svg.hashsalt": "cutlayer",
    "text.color": _INK,
    "text.parse_math": False,  # names come from the run: a `$` in one is a dollar
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


def accuracy_by_epoch(run: RunRecord) -> str:
    """Draw test accuracy against epoch, with the level of guessing."""
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure()
        axes.plot([row.epoch for row in run.history], [row.accuracy for row in run.history], color=_JOINT, marker="o")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _accuracy_axis(axes, run)
        return _svg(figure, "accuracy-by-epoch", "Test accuracy against epoch")


def accuracy_by_bytes(run: RunRecord) -> str:
    """Draw test accuracy against the bytes that had crossed the agents' connections until then."""
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure()
        axes.plot(
            [row.wire_bytes for row in run.history],
            [row.accuracy for row in run.history],
            color=_JOINT,
            marker="o",
        )
        axes.set_xlabel("bytes on the wire, all agents, both directions")
        axes.set_xlim(left=0)
        _bytes_axis(axes)
        _accuracy_axis(axes, run)
        return _svg(figure, "accuracy-by-bytes", "Test accuracy against bytes on the wire")


def accuracy_by_modality(run: RunRecord) -> str:
    """Draw the final test accuracy of the one model, given all modalities and given each alone."""
    singles = sorted(run.single_modalities.items())
    rows = [_Bar(f"{name} alone", share, percent_text(share), _SINGLE) for name, share in singles[:MAX_BARS]]
    if JOINT in run.accuracy:
        joint = run.accuracy[JOINT]
        rows.insert(0, _Bar("all modalities", joint, percent_text(joint), _JOINT))
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(_bar_height(len(rows)))
        _draw_bars(axes, rows)
        axes.set_xlim(0, 1.18)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f} %"))
        axes.set_xlabel("test accuracy")
        return _svg(figure, "accuracy-by-modality", "Test accuracy by modality given")


def bytes_by_kind(run: RunRecord) -> str:
    """Draw the bytes on the wire by kind of message; the colour says the direction."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in run.traffic:
        sums[row.kind, row.direction] += row.wire_bytes
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    is_folded = len(ordered) > MAX_BARS
    shown = ordered[: MAX_BARS - 1] if is_folded else ordered
    rows = [
        _Bar(kind, num_bytes, f"{bytes_text(num_bytes)} {direction}", _UP if direction == "up" else _DOWN)
        for (kind, direction), num_bytes in shown
    ]
    if is_folded:
        rest_bytes = sum(num_bytes for _, num_bytes in ordered[len(shown) :])
        rows.append(_Bar(f"{len(ordered) - len(shown)} others", rest_bytes, bytes_text(rest_bytes), _SINGLE))
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(_bar_height(len(rows)))
        _draw_bars(axes, rows)
        axes.set_xlim(0, max([*sums.values(), 1]) * 1.42)
        _bytes_axis(axes)
        axes.set_xlabel("bytes on the wire, all agents")
        return _svg(figure, "bytes-by-kind", "Bytes on the wire by kind of message and direction")


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    length: float
    text: str
    colour: str


def _new_figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    return figure, axes


def _bar_height(num_bars: int) -> float:
    return 0.75 + 0.36 * max(num_bars, 1)


def _draw_bars(axes: Axes, bars: list[_Bar]) -> None:
    """Draw horizontal bars, the first on top, each with its text behind it."""
    for position, bar in enumerate(bars):
        axes.barh(position, bar.length, height=0.62, color=bar.colour, linewidth=0)
        axes.annotate(bar.text, (bar.length, position), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [_shortened(bar.label) for bar in bars])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _shortened(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _accuracy_axis(axes: Axes, run: RunRecord) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f} %"))
    axes.set_ylabel("test accuracy")
    if run.num_classes:
        guess = 1 / run.num_classes
        axes.axhline(guess, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "guessing", (0.99, guess), xytext=(0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=_MUTED, ha="right",
        )  # fmt: skip


def _bytes_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda num_bytes, _: bytes_text(num_bytes).replace(".0 ", " ")))


def _svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as an `<svg>` element whose ids start with `name`."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # A name in a script that Matplotlib's own font lacks is measured roughly; the browser has the glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # without the XML prologue, which HTML does not know
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = drawing.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    head, rest = drawing.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None  # Matplotlib always writes one
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    label = escape(title, quote=True)
    return f'<svg {view_box[0]} role="img" aria-label="{label}">{rest}'
