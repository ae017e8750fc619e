"""Writes the tables of docs/compression.md, between their markers, and its picture, from benchmark results.

A marker is `<!-- table: NAME -->`, the end of a table `<!-- end -->`. The same results give the same page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.compression_plot import draw
from benchmarks.compression_results import Row, Trainings, read_trainings
from benchmarks.compression_statistics import Mean
from benchmarks.compression_tensor_tables import TENSOR_TABLES

HEADLINES = (
    "once-lowrank-0.1",
    "once-lowrank-0.2",
    "every-step-lowrank-0.1",
    "trained-lowrank-0.1",
    "trained-lowrank-0.1-delta",
)
REDUCTIONS = ("once-int8", "once-random-half", "once-content-half", "once-merge-half")
_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "No results yet.\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a line that says so, if it has no rows."""
    if not rows:
        return NOTHING
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def filled(page: str, tables: dict[str, str]) -> str:
    """Return a page with its tables in their places.

    Raises:
        ValueError: A table has no place, or a place no table.
    """
    places = {match[2] for match in _MARKED.finditer(page)}
    if places != set(tables):
        raise ValueError(
            f"the page has places for {sorted(places)}, and there are tables {sorted(tables)}\n"
            "  fix: write <!-- table: NAME --> and <!-- end --> around each table's place"
        )
    return _MARKED.sub(lambda match: match[1] + "\n" + tables[match[2]] + "\n" + match[3], page)


def points(mean: Mean | None) -> str:
    """Return a mean difference in points of accuracy with its 95 % confidence interval."""
    if mean is None:
        return ""
    half_width = mean.half_width()
    interval = "" if half_width is None else f" ± {100 * half_width:.2f}"
    return f"{100 * mean.value:+.2f}{interval}"


def headline_table(trainings: Trainings) -> str:
    """Return the table of what counts most."""
    rows = []
    for name in HEADLINES:
        if name not in trainings.names:
            continue
        setting, difference = trainings.setting(name), trainings.difference(name, trainings.reference(name))
        rows.append(
            [
                f"{trainings.title(name)}, {setting}",
                str(0 if difference is None else difference.num_seeds),
                points(difference),
                f"{trainings.published_ratio(name):.0f}",
                _ratio(trainings.measured_ratio(name)),
                f"{trainings.bytes_a_sample(name):,.0f}",
                f"{100 * trainings.share_of_raw(name):.0f} %",
            ]
        )
    return table(
        [
            "scheme",
            "seeds",
            "accuracy against float32, points",
            "times fewer bytes than published",
            "than float32 measured",
            "bytes a training sample",
            "of the raw data's 14,728",
        ],
        rows,
    )


def training_table(trainings: Trainings) -> str:
    """Return the table of all schemes."""
    rows = []
    for name in trainings.names:
        accuracy, reference = trainings.accuracy(name), trainings.reference(name)
        error = "" if accuracy.error is None else f" ({100 * accuracy.error:.2f})"
        rows.append(
            [
                trainings.title(name),
                trainings.setting(name),
                str(accuracy.num_seeds),
                f"{100 * accuracy.value:.2f}{error}",
                "" if name == reference else points(trainings.difference(name, reference)),
                f"{trainings.num_bytes(name).value / 1e6:,.1f}",
                f"{trainings.bytes_a_sample(name):,.0f}",
                _short(trainings.published_ratio(name)),
                _ratio(trainings.measured_ratio(name)),
            ]
        )
    return table(
        [
            "scheme",
            "tokenizers, activations",
            "seeds",
            "accuracy, % (standard error)",
            "against float32, points",
            "all bytes, MB",
            "a training sample",
            "times fewer than published",
            "than float32 measured",
        ],
        rows,
    )


def reduction_table(trainings: Trainings) -> str:
    """Return the table of token reduction, against all tokens under the same codec."""
    whole, *_ = REDUCTIONS
    rows = []
    for name in REDUCTIONS:
        if whole not in trainings.names or name not in trainings.names:
            continue
        accuracy = trainings.accuracy(name)
        rows.append(
            [
                trainings.title(name),
                str(accuracy.num_seeds),
                f"{100 * accuracy.value:.2f}",
                "" if name == whole else points(trainings.difference(name, whole)),
                f"{trainings.num_bytes(name).value / 1e6:,.1f}",
                f"{100 * trainings.num_bytes(name).value / trainings.num_bytes(whole).value:.0f} %",
            ]
        )
    return table(
        ["tokens", "seeds", "accuracy, %", "against all tokens, points", "all bytes, MB", "of all tokens'"], rows
    )


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else _short(ratio)


def _short(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


TRAINING_TABLES: dict[str, Callable[[Trainings], str]] = {
    "headline": headline_table,
    "training": training_table,
    "reduction": reduction_table,
}


def read_lines(path: Path) -> list[Row]:
    """Read a file of JSON lines; one that is not there has none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=Path, default=Path("runs/compression/tensors.jsonl"))
    parser.add_argument("--training", type=Path, default=Path("runs/compression/training.jsonl"))
    parser.add_argument("--page", type=Path, default=Path("docs/compression.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/compression-pareto.png"))
    arguments = parser.parse_args()
    measured, trainings = read_lines(arguments.tensors), read_trainings(read_lines(arguments.training))
    tables = {name: table(*make(measured)) for name, make in TENSOR_TABLES.items()}
    tables |= {name: make(trainings) for name, make in TRAINING_TABLES.items()}
    page = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(filled(page, tables), encoding="utf-8")
    if trainings.names:
        draw(trainings, arguments.picture)
    print(f"{arguments.page}: {len(measured)} rows of tensors, {len(trainings.names)} schemes")


if __name__ == "__main__":
    main()
