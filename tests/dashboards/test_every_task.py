"""A run of any task is shown by the task's own metric, with its unit and which way is better."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cutlayer.broker.tasks import TaskSpec
from cutlayer.dashboards.comparison import comparison_json, comparison_rows, load_runs
from cutlayer.dashboards.comparison_report import render_comparison
from cutlayer.dashboards.report import render_report
from cutlayer.dashboards.run_record import parse_run
from cutlayer.dashboards.summary import summary
from cutlayer.dashboards.units import metric_text
from support.html_page import Page
from support.synthetic_run import synthetic_run
from support.synthetic_tasks import AGE, AGE_AND_DOSE, FINDINGS, task_run


def summed_up(task: TaskSpec) -> str:
    console = Console(width=110, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(summary(parse_run(task_run(task))))
    return captured.get()


def labels_of(html: str) -> list[str | None]:
    return [attributes.get("aria-label") for tag, attributes in Page(html).tags if tag == "svg"]


def saved(folder: Path, **runs: dict[str, object]) -> list[Path]:
    paths = []
    for name, content in runs.items():
        path = folder / name / "run.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
        paths.append(path)
    return paths


def test_a_record_without_measures_is_of_a_classification() -> None:
    older = {key: value for key, value in synthetic_run().items() if key not in ("measures", "metrics")}
    older["history"] = [{key: value for key, value in row.items() if key != "metrics"} for row in older["history"]]
    record, now = parse_run(older), parse_run(synthetic_run())
    assert record.metric.name == "accuracy"
    assert (record.scores, record.curve) == (
        now.scores,
        [(old, value) for old, (_, value) in zip(record.history, now.curve, strict=True)],
    )


def test_the_best_epoch_is_the_one_with_the_least_error() -> None:
    best = parse_run(task_run(AGE)).best
    assert best is not None
    assert best.epoch == 8
    assert parse_run(task_run(FINDINGS)).best is not None


def test_the_report_of_a_regression_shows_errors_in_the_users_unit() -> None:
    html = render_report(task_run(AGE))
    words = Page(html).words
    assert "1.500 years test mean absolute error, all modalities" in words
    assert "Mean absolute error by modality given" in words
    assert "root mean square error less 1.500 years" in words
    assert "R2 more 0.9844" in words
    assert "(less is better)" in html
    assert labels_of(html)[:3] == [
        "Test mean absolute error against epoch",
        "Test mean absolute error against bytes on the wire",
        "Test mean absolute error by modality given",
    ]
    assert "guessing" not in html
    assert "ccuracy" not in html


def test_the_report_of_several_targets_shows_each_in_its_unit() -> None:
    words = Page(render_report(task_run(AGE_AND_DOSE))).words
    assert "0.1250 std test mean absolute error, all modalities" in words
    assert "mean absolute error of age less 1.500 years" in words
    assert "mean absolute error of dose less 0.006250 mg" in words


def test_the_report_of_several_classes_a_sample_shows_micro_f1_and_exact_match() -> None:
    html = render_report(task_run(FINDINGS))
    words = Page(html).words
    assert "94.1 % test micro-F1, all modalities" in words
    assert "exact match more 87.5 %" in words
    assert "guessing" not in html, "the level of guessing is one of a single class"


def test_the_summary_shows_the_metric_and_the_others() -> None:
    text = summed_up(AGE)
    assert "test mean absolute error, given" in text
    assert "less is better" in text
    assert [line.split()[:4] for line in text.splitlines() if "all modalities" in line] == [
        ["all", "modalities", "1.500", "years"]
    ]
    assert "all: R2" in text
    assert "test micro-F1, given" in summed_up(FINDINGS)


def test_a_comparison_of_regressions_prefers_the_least_error(tmp_path: Path) -> None:
    better = task_run(AGE)
    better["metrics"]["joint"]["mae"] = 1.25
    runs = load_runs(saved(tmp_path, worse=task_run(AGE), better=better))
    row = next(row for row in comparison_rows(runs) if (row.section, row.name) == ("test mean absolute error", "final"))
    assert row.texts == ("1.500 years", "1.250 years")
    assert row.best == {1}
    first, second = comparison_json(runs)["runs"]
    assert (first["score"]["final"], second["score"]["final"]) == (1.5, 1.25)
    assert first["metric"]["better"] == "less"
    assert first["accuracy"] == {"final": None, "best": None}
    assert "Mean absolute error against bytes" in Page(render_comparison(runs)).words


def test_runs_of_different_tasks_are_compared_in_a_row_each(tmp_path: Path) -> None:
    runs = load_runs(saved(tmp_path, digits=synthetic_run(), ages=task_run(AGE)))
    rows = {row.section: row.texts for row in comparison_rows(runs) if row.name == "final"}
    assert rows == {"test accuracy": ("90.4 %", "-"), "test mean absolute error": ("-", "1.500 years")}
    page = Page(render_comparison(runs))
    assert "test metric" in page.words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000 years"),
        (1.5, "1.500 years"),
        (12.3456, "12.35 years"),
        (1234.5, "1,234 years"),
        (0.00012345, "0.000123 years"),
        (-3.25, "-3.250 years"),
        (None, "-"),
    ],
)
def test_values_have_four_digits_and_their_unit(value: float | None, text: str) -> None:
    assert metric_text(parse_run(task_run(AGE)).metric, value) == text
