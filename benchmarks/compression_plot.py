"""The picture of docs/compression.md: accuracy against all bytes, a point a scheme, and which no other one beats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from benchmarks.compression_results import RAW_BYTES, Trainings
from benchmarks.compression_statistics import pareto_front
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from cutlayer.dashboards.units import bytes_text

# Two colours of Okabe and Ito's palette, which colour-blind readers tell apart; shape and filling say the same again.
FROZEN, TRAINED, INK, MUTED = "#0072b2", "#d55e00", "#222222", "#777777"
_HOW = {"once": "activations once", "every-step": "activations every step", "delta": "changes of activations"}
MARKERS = {"once": "o", "every-step": "s", "delta": "D"}
WIDTH_IN, HEIGHT_IN, DOTS_AN_INCH = 9.0, 5.6, 110
STYLE = {
    "axes.edgecolor": "#cccccc",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
}
Place = tuple[float, float]
_PIXELS = DOTS_AN_INCH / 72
"""Of a point, the unit of sizes."""
_CLEAR = 2.0
"""Pixels that are left between two labels."""


def draw(trainings: Trainings, path: Path) -> None:
    """Draw all schemes that there are results of, by the seeds that all have, and write a PNG."""
    trainings = trainings.of_common_seeds()
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DOTS_AN_INCH, layout="constrained")
        axes = figure.add_subplot()
        places = {
            name: (trainings.num_bytes(name).value, 100 * trainings.accuracy(name).value) for name in trainings.names
        }
        _draw_front(axes, [places[name] for name in pareto_front(places)])
        errors = {name: 100 * (trainings.accuracy(name).error or 0.0) for name in places}
        for name, place in places.items():
            colour = TRAINED if trainings.is_trained(name) else FROZEN
            axes.errorbar(
                *place,
                yerr=errors[name] or None,
                color=colour,
                marker=MARKERS[trainings.mode(name)],
                markerfacecolor="white" if trainings.is_trained(name) else colour,
                markersize=7,
                markeredgewidth=1.6,
                elinewidth=1,
                capsize=2,
            )
        by_seed = trainings.rows[trainings.names[0]]
        _draw_axes(axes, RAW_BYTES * next(iter(by_seed.values()))["num_train"], len(by_seed))
        axes.legend(handles=_legend(trainings), loc="lower right", frameon=True, framealpha=0.9, edgecolor="#cccccc")
        _label(figure, axes, [(label(trainings, name), places[name], errors[name]) for name in places])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def label(trainings: Trainings, name: str) -> str:
    """Return a scheme's title, shortened: shape and colour say the rest."""
    text = trainings.title(name).replace("`", "").replace(" both ways", "").replace("+zstd", "")
    return text.replace("half the tokens", "half").replace(":error=", " ").replace(":ratio=", " ")


def _draw_front(axes: Axes, front: list[Place]) -> None:
    """Draw the best accuracy that so many bytes buy, as steps."""
    axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)


def _draw_axes(axes: Axes, raw_bytes: int, num_seeds: int) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("all bytes of a training of 15 epochs with its evaluation, all agents, both ways (log scale)")
    axes.set_ylabel(f"test accuracy, % (mean of {num_seeds} seeds, bars: standard error)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda num_bytes, _: bytes_text(num_bytes).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvline(raw_bytes, color=MUTED, linewidth=1, zorder=0)
    axes.annotate(
        "raw training data, once",
        (raw_bytes, 0.02),
        xytext=(4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=MUTED,
        rotation=90,
    )


def _legend(trainings: Trainings) -> list[Line2D]:
    # A dictionary, as it keeps the order of the schemes.
    settings = dict.fromkeys((trainings.is_trained(name), trainings.mode(name)) for name in trainings.names)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            color=TRAINED if is_trained else FROZEN,
            marker=MARKERS[mode],
            markerfacecolor="white" if is_trained else FROZEN,
            markersize=7,
            markeredgewidth=1.6,
            label=f"{'trained' if is_trained else 'frozen'} tokenizers, {_HOW[mode]}",
        )
        for is_trained, mode in settings
    ]
    return [*handles, Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="Pareto front")]


def _label(figure: Figure, axes: Axes, labels: Sequence[tuple[str, Place, float]]) -> None:
    """Write each label at the first place around its point that is free, the nearest places first."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels shall not move what they were placed by
    taken = [_mark_box(axes, place, error) for _, place, error in labels]
    legend = axes.get_legend()
    assert legend is not None
    taken += [legend.get_window_extent(), *(text.get_window_extent() for text in axes.texts)]
    frame = axes.get_window_extent()
    for text, place, _ in sorted(labels, key=lambda entry: entry[1]):
        written = _annotation(axes, text, place, (0.0, 0.0))
        extent = written.get_window_extent()
        box = next((box for box in _boxes(axes, place, extent) if _is_free(box, frame, taken)), None)
        written.remove()
        if box is None:
            raise ValueError(f"there is no free place for the label {text!r}\n  fix: draw a larger picture")
        taken.append(box)
        _write(axes, text, place, box)


def _boxes(axes: Axes, place: Place, extent: Bbox) -> Iterator[Bbox]:
    """Give boxes of a text's size around a point: the nearest first, and of these right, left, above, below."""
    x, y = axes.transData.transform(place)
    width, height = extent.width + 2 * _CLEAR, extent.height + 2 * _CLEAR
    for far in (8, *range(16, 200, 8)):
        for degrees in (0, 180, 90, 270, *range(15, 360, 15)):
            across, up = round(math.cos(math.radians(degrees)), 3), round(math.sin(math.radians(degrees)), 3)
            # From the point to the nearest edge or corner of the box.
            left = x + far * across * _PIXELS + width * (0.5 * np.sign(across) - 0.5)
            low = y + far * up * _PIXELS + height * (0.5 * np.sign(up) - 0.5)
            yield Bbox.from_bounds(left, low, width, height)


def _is_free(box: Bbox, frame: Bbox, taken: Sequence[Bbox]) -> bool:
    """Return whether a box is inside the frame and overlaps nothing that is taken."""
    is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return is_inside and not any(box.overlaps(other) for other in taken)


def _write(axes: Axes, text: str, place: Place, box: Bbox) -> None:
    """Write a label into its box, with a line to its point where that is not near."""
    x, y = axes.transData.transform(place)
    nearest = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1) / _PIXELS
    middle = ((box.x0 + box.x1) / 2 - x) / _PIXELS, ((box.y0 + box.y1) / 2 - y) / _PIXELS
    line = {"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    _annotation(axes, text, place, middle, line if nearest > 10 else None)


def _annotation(
    axes: Axes, text: str, place: Place, middle: tuple[float, float], line: dict[str, Any] | None = None
) -> Annotation:
    """Write a label whose middle is so many points from its point."""
    return axes.annotate(
        text,
        place,
        xytext=middle,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8,
        color=INK,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        arrowprops=line,
    )


def _mark_box(axes: Axes, place: Place, error: float) -> Bbox:
    """Return where a point is, with its bar."""
    half = 6 * _PIXELS
    x, low = axes.transData.transform((place[0], place[1] - error))
    _, high = axes.transData.transform((place[0], place[1] + error))
    _, y = axes.transData.transform(place)
    return Bbox([[x - half, min(low, y - half)], [x + half, max(high, y + half)]])
