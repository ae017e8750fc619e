"""The pictures of docs/benchmarks.md: each scheme's metric with its interval, and what it costs the sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
from benchmarks.compression_plot import DOTS_AN_INCH, INK, STYLE
from benchmarks.task_results import PARTITION_TITLES, TITLES, Compared, Results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from cutlayer.dashboards.units import bytes_text

# Okabe and Ito's palette, which colour-blind readers tell apart; shapes say the same again.
LOOKS: Mapping[str, tuple[str, str]] = {
    "cutlayer": ("#0072b2", "o"),
    "cutlayer-agent-negatives": ("#56b4e9", "P"),
    "centralized": ("#222222", "D"),
    "fedavg": ("#d55e00", "s"),
    "local": ("#009e73", "^"),
}
WIDTH_IN, COLUMNS = 9.0, 3


def draw_metrics(results: Results, path: Path) -> None:
    """Draw each task's metric, a point a scheme, and write a PNG."""
    num_rows = -(-len(results.tasks) // COLUMNS)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_IN, 0.6 + 2.6 * num_rows), dpi=DOTS_AN_INCH, layout="constrained")
        for place, task in enumerate(results.tasks):
            axes = figure.add_subplot(num_rows, min(COLUMNS, len(results.tasks)), place + 1)
            _draw_task(axes, results, task)
        _add_legend(figure, results)
        _save(figure, path)


def _draw_task(axes: Axes, results: Results, task: str) -> None:
    partitions = results.partitions(task)
    metric = results.metric(task)
    scale = 100 if metric.is_share else 1
    for place, partition in enumerate(partitions):
        compared = results.compared(task, partition)
        step = 0.7 / max(len(compared.schemes) - 1, 1)
        for index, scheme in enumerate(compared.schemes):
            mean = compared.value(scheme)
            colour, marker = LOOKS[scheme]
            half_width = mean.half_width()
            axes.errorbar(
                place - 0.35 + index * step,
                scale * mean.value,
                yerr=None if half_width is None else scale * half_width,
                color=colour,
                marker=marker,
                markersize=6,
                elinewidth=1,
                capsize=2,
            )
    axes.set_title(results.title(task), fontsize=9, color=INK)
    axes.set_xticks(range(len(partitions)), [PARTITION_TITLES[partition] for partition in partitions])
    axes.set_xlim(-0.6, len(partitions) - 0.4)
    better = "" if metric.better == "more" else "\n(less is better)"
    unit = ", %" if metric.is_share else f", {metric.unit}" if metric.unit else ""
    axes.set_ylabel(f"{metric.title}{unit}{better}")
    axes.grid(visible=True, axis="y", color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)


def draw_costs(results: Results, path: Path) -> None:
    """Draw what each scheme costs the sites of each task, on logarithmic axes, and write a PNG."""
    places = [(task, partition) for task in results.tasks for partition in results.partitions(task)]
    costs: list[tuple[str, Callable[[Compared, str], float | None], Callable[[float], str]]] = [
        ("bytes of training, all sites, both ways", Compared.num_bytes, lambda value: bytes_text(value)),
        ("operations of all sites", Compared.flops, lambda value: f"{value:.0e}".replace("e+", "e")),
        ("processor seconds of all sites", Compared.cpu_s, lambda value: f"{value:g}"),
    ]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_IN, 1.2 + 0.32 * len(places)), dpi=DOTS_AN_INCH, layout="constrained")
        for column, (title, cost, text) in enumerate(costs):
            axes = figure.add_subplot(1, len(costs), column + 1)
            _draw_cost(axes, results, places, cost)
            axes.set_xscale("log")
            axes.set_xlabel(title)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", labelsize=7)
            names = [f"{results.title(task)}, {PARTITION_TITLES[partition]}" for task, partition in places]
            axes.set_yticks(range(len(places)), names if column == 0 else [""] * len(places), fontsize=8)
            axes.set_ylim(len(places) - 0.5, -0.5)
            axes.grid(visible=True, color="#e8e8e8", linewidth=0.7)
            axes.set_axisbelow(True)
        _add_legend(figure, results)
        _save(figure, path)


def _draw_cost(
    axes: Axes,
    results: Results,
    places: list[tuple[str, str]],
    cost: Callable[[Compared, str], float | None],
) -> None:
    for row, (task, partition) in enumerate(places):
        compared = results.compared(task, partition)
        values = {scheme: cost(compared, scheme) for scheme in compared.schemes}
        for scheme, value in values.items():
            if not value:
                continue  # nothing moves, or nobody has counted: no place on a logarithmic axis
            colour, marker = LOOKS[scheme]
            axes.plot([value], [row], color=colour, marker=marker, markersize=6, linestyle="")


def _add_legend(figure: Figure, results: Results) -> None:
    found = {
        scheme
        for task in results.tasks
        for partition in results.partitions(task)
        for scheme in results.compared(task, partition).schemes
    }
    handles = [
        Line2D([], [], linestyle="", color=colour, marker=marker, markersize=6, label=TITLES[scheme])
        for scheme, (colour, marker) in LOOKS.items()
        if scheme in found
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
