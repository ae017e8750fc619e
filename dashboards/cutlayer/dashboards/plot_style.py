"""How the reports' plots look, and how they become SVG that sits inside HTML: no script, no font, nothing outside.

Matplotlib draws with stand-in colours, which become CSS variables afterwards: so a plot follows the reader's light
or dark theme. The same record gives the same bytes: ids come from a fixed salt, and no date is written.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cutlayer.broker.task_metrics import Metric
from cutlayer.dashboards.units import bytes_text

__all__ = [
    "ACCENT",
    "DOWN",
    "INK",
    "MAX_BARS",
    "MUTED",
    "RUNS",
    "SINGLE",
    "UP",
    "Bar",
    "bar_height",
    "bytes_axis",
    "draw_bars",
    "label_bars",
    "metric_axis",
    "metric_title",
    "new_figure",
    "plot_style",
    "shortened",
    "svg",
]

WIDTH_IN: Final = 5.2
HEIGHT_IN: Final = 3.2
MAX_BARS: Final = 8
"""Kinds of message are named by whoever sends telemetry: the smallest share a bar beyond this."""
MAX_LABEL: Final = 24

# Stand-ins that nothing else uses; the report's style sheet gives the variables their values.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
ACCENT, SINGLE, UP, DOWN = "#040404", "#050505", "#060606", "#070707"
RUNS: Final = ("#040404", "#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")
"""A colour each for runs that are compared; the first three are also those of one run's plots."""
_VARIABLES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    ACCENT: "--joint",
    SINGLE: "--single",
    UP: "--up",
    DOWN: "--down",
    "#080808": "--run-4",
    "#090909": "--run-5",
    "#0a0a0a": "--run-6",
    "#0b0b0b": "--run-7",
    "#0c0c0c": "--run-8",
}
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text: smaller, and read aloud by screen readers
    "svg.hashsalt": "cutlayer",
    "text.color": INK,
    "text.parse_math": False,  # names come from the run: a `$` in one is a dollar
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Let Matplotlib draw as the reports' plots look."""
    with mpl.rc_context(_STYLE):
        yield


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar.

    Attributes:
        label: Before it.
        length: Of the bar.
        text: Behind it.
        colour: A stand-in.
    """

    label: str
    length: float
    text: str
    colour: str


def new_figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    return figure, axes


def bar_height(num_bars: int) -> float:
    """Return the height in inches of a figure of so many bars."""
    return 0.75 + 0.36 * max(num_bars, 1)


def draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    """Draw horizontal bars, the first on top, each with its text behind it."""
    for position, bar in enumerate(bars):
        axes.barh(position, bar.length, height=0.62, color=bar.colour, linewidth=0)
        axes.annotate(bar.text, (bar.length, position), xytext=(5, 0), textcoords="offset points", va="center")
    label_bars(axes, [bar.label for bar in bars])


def label_bars(axes: Axes, labels: Sequence[str]) -> None:
    """Name the bars at 0, 1, ... and put the first on top."""
    axes.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def shortened(label: str) -> str:
    """Return a label that fits beside a plot."""
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def metric_axis(axes: Axes, metric: Metric, num_classes: int | None) -> None:
    """Let the vertical axis be a task's metric; with the number of classes, the level of guessing is drawn."""
    if metric.is_share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f} %"))
    elif metric.better == "less":
        axes.set_ylim(bottom=0)
    axes.set_ylabel(metric_title(metric))
    if num_classes:
        guess = 1 / num_classes
        axes.axhline(guess, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "guessing", (0.99, guess), xytext=(0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=MUTED, ha="right",
        )  # fmt: skip


def metric_title(metric: Metric) -> str:
    """Return what an axis of a task's metric is called; that more is better goes without saying."""
    return f"test {metric.with_unit}" + (" (less is better)" if metric.better == "less" else "")


def bytes_axis(axes: Axes) -> None:
    """Let the horizontal axis be bytes."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda num_bytes, _: bytes_text(num_bytes).replace(".0 ", " ")))


def svg(figure: Figure, name: str, title: str) -> str:
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
