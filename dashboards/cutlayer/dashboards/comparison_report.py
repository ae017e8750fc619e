"""The HTML page that compares runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from cutlayer.dashboards.comparison import ComparedRun, ComparisonRow, comparison_rows, differing_settings
from cutlayer.dashboards.comparison_plots import MAX_DRAWN, bytes_of_runs, metrics_by_bytes
from cutlayer.dashboards.federated_comparison import federated_averaging_text
from cutlayer.dashboards.html_parts import folded, page, pair, section
from cutlayer.dashboards.units import bytes_text, count_text, metric_text

__all__ = ["render_comparison"]


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Return the comparison as a self-contained HTML document; the same runs give the same bytes."""
    return page("comparison of runs", _parts(runs))


def _parts(runs: Sequence[ComparedRun]) -> Iterable[str]:
    labels = [run.label for run in runs]
    yield (
        f"<header><h1>{count_text(len(runs))} runs compared</h1><p>{escape(', '.join(labels))}. The best of each "
        "line is bold.</p></header>"
    )
    more = f" The first {MAX_DRAWN} runs are drawn." if len(runs) > MAX_DRAWN else ""
    curves, title = "", runs[0].record.metric.title
    if any(run.record.curve for run in runs):
        curves = section(
            f"{title[:1].upper()}{title[1:]} against bytes",
            metrics_by_bytes(runs),
            f"After each epoch, on the agents' own test samples. Further left for the same height is cheaper.{more}",
        )
    yield pair(
        curves,
        section(
            "Bytes",
            bytes_of_runs(runs),
            "Filled: on the wire, up and then down. Outline: the same tensors as float32, without a codec. Federated "
            f"averaging is computed from the model's size.{more}",
        ),
    )
    yield section("Figures", _figures(labels, comparison_rows(runs)))
    different = [ComparisonRow("", key, texts) for key, texts in differing_settings(runs)]
    if different:
        yield section("Settings that differ", _figures(labels, different))
    sentences = "".join(
        f"<p><b>{escape(run.label)}</b>: {escape(federated_averaging_text(run.record))}</p>" for run in runs
    )
    yield section("Federated averaging, for comparison", sentences)
    rows = [
        (
            run.label,
            count_text(row.epoch),
            metric_text(run.record.metric, value),
            f"{row.loss:.3f}",
            bytes_text(row.wire_bytes),
        )
        for run in runs
        for row, value in run.record.curve
    ]
    if rows:
        titles = {run.record.metric.title for run in runs}
        metric = f"test {titles.pop() if len(titles) == 1 else 'metric'}"
        yield folded("Every evaluation", ("run", "epoch", metric, "loss", "bytes until then"), rows)


def _figures(labels: Sequence[str], rows: Iterable[ComparisonRow]) -> str:
    """Return rows as a table, a column a run; a section's name stands above its rows."""
    lines = [f'<tr><th class="name"></th>{"".join(f"<th>{escape(label)}</th>" for label in labels)}</tr>']
    current = ""
    for row in rows:
        if row.section != current:
            head = f'<th class="name" colspan="{len(labels) + 1}">{escape(row.section)}</th>'
            lines.append(f'<tr class="part">{head}</tr>')
            current = row.section
        cells = "".join(
            f"<td><b>{escape(text)}</b></td>" if index in row.best else f"<td>{escape(text)}</td>"
            for index, text in enumerate(row.texts)
        )
        lines.append(f'<tr><td class="name">{escape(row.name)}</td>{cells}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'
