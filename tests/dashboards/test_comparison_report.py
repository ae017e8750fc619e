import json
from pathlib import Path

from cutlayer.dashboards.comparison import load_runs
from cutlayer.dashboards.comparison_report import render_comparison
from support.html_page import Page
from support.synthetic_run import synthetic_run

ATTACK = "<script>alert('\"$x_{$&amp;')</script>"


def page(tmp_path: Path, num_runs: int = 2, label: str = "run") -> Page:
    return Page(render_comparison(load_runs(paths(tmp_path, num_runs, label))))


def paths(tmp_path: Path, num_runs: int, label: str) -> list[Path]:
    found = []
    for index in range(num_runs):
        path = tmp_path / f"{index}.json"
        run = synthetic_run() | {"run_id": f"{label}-{index}"}
        run["manifest"]["seed"] = index
        path.write_text(json.dumps(run), encoding="utf-8")
        found.append(path.rename(tmp_path / f"{label.replace('/', '')}-{index}.json"))
    return found


def test_page_has_plots_figures_and_the_settings_that_differ(tmp_path: Path) -> None:
    shown = page(tmp_path)
    assert shown.count("svg") == 2
    for text in ("2 runs compared", "Accuracy against bytes", "Settings that differ", "seed 0 1", "wire 106.2 MB"):
        assert text in shown.words


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    for tag, attributes in page(tmp_path).tags:
        assert tag not in {"script", "img", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    shown = page(tmp_path, label=ATTACK)
    assert shown.count("script") == 0
    assert ATTACK in shown.words


def test_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    runs = load_runs(paths(tmp_path, 2, "run"))
    assert render_comparison(runs) == render_comparison(runs)


def test_more_runs_than_there_are_colours_are_said_to_be_left_out(tmp_path: Path) -> None:
    shown = page(tmp_path, num_runs=10)
    assert "The first 8 runs are drawn." in shown.words
    assert "10 runs compared" in shown.words


def test_federated_averaging_is_told_apart_where_it_differs_between_runs(tmp_path: Path) -> None:
    found = []
    for name, parameters in (("small", 100_000), ("large", 900_000)):
        found.append(tmp_path / f"{name}.json")
        found[-1].write_text(json.dumps(synthetic_run(num_parameters=parameters)), encoding="utf-8")
    words = Page(render_comparison(load_runs(found))).words
    assert "FedAvg for small" in words
    assert "FedAvg for large" in words
    assert "FedAvg" not in page(tmp_path).words


def test_runs_that_were_never_evaluated_are_compared_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(synthetic_run() | {"history": [], "accuracy": {}}), encoding="utf-8")
    shown = Page(render_comparison(load_runs([path, path])))
    assert shown.count("svg") == 1
    assert "a (2)" in shown.words
