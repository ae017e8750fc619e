import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cutlayer.broker.errors import SettingsError
from cutlayer.dashboards.comparison import (
    ComparedRun,
    ComparisonRow,
    comparison_json,
    comparison_rows,
    differing_settings,
    load_runs,
)
from cutlayer.dashboards.comparison_table import ComparisonTable
from support.synthetic_run import synthetic_run


def heavy_run() -> dict[str, Any]:
    """Return a run that moved four times the bytes in half the time, and is a little better."""
    run = synthetic_run()
    for direction in ("up", "down"):
        run["bytes"][direction] = {key: 4 * value for key, value in run["bytes"][direction].items()}
    run["bytes_per_sample"] *= 4
    run |= {"run_id": "digits-00000002", "duration_s": 48.2, "training_s": 44.1, "reconnects": 3}
    run["accuracy"]["joint"] = 0.931
    run["manifest"]["window"]["mode"] = "synchronous"
    run["manifest"]["codecs"]["activations"] = "identity"
    return run


def write(folder: Path, content: Any, name: str = "run.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[ComparedRun]:
    return load_runs([write(tmp_path / "light", synthetic_run()), write(tmp_path / "heavy", heavy_run())])


def row(runs: list[ComparedRun], name: str, section: str = "") -> ComparisonRow:
    return next(each for each in comparison_rows(runs) if each.name == name and section in ("", each.section))


def shown(runs: list[ComparedRun], width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(ComparisonTable(runs))
    return captured.get()


def test_run_is_called_by_its_folder(runs: list[ComparedRun]) -> None:
    assert [run.label for run in runs] == ["light", "heavy"]


def test_folders_of_one_name_are_told_apart_by_what_is_above_them(tmp_path: Path) -> None:
    paths = [write(tmp_path / site / "digits", synthetic_run()) for site in ("east", "west")]
    assert [run.label for run in load_runs(paths)] == ["east/digits", "west/digits"]


def test_file_of_another_name_is_called_by_that(tmp_path: Path) -> None:
    paths = [write(tmp_path, synthetic_run(), name) for name in ("monday.json", "tuesday.json")]
    assert [run.label for run in load_runs(paths)] == ["monday", "tuesday"]


def test_run_that_is_named_twice_is_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "digits", synthetic_run())
    assert [run.label for run in load_runs([path, path])] == ["digits", "digits (2)"]


@pytest.mark.parametrize(
    ("content", "named"),
    [("{", "is no JSON"), ("[]", "holds no JSON object"), ('{"format": 2}', "is no record of a run: format")],
)
def test_file_that_is_no_record_of_a_run_is_named(tmp_path: Path, content: str, named: str) -> None:
    good, bad = write(tmp_path / "good", synthetic_run()), tmp_path / "bad.json"
    bad.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=named) as caught:
        load_runs([good, bad])
    assert str(bad) in str(caught.value)


def test_bytes_are_compared_with_the_first_run_and_with_the_lowest(runs: list[ComparedRun]) -> None:
    assert row(runs, "wire", "bytes").texts == ("106.2 MB", "424.8 MB")
    assert row(runs, "wire / the first run's").texts == ("1.00x", "4.00x")
    assert row(runs[::-1], "wire / the first run's").texts == ("1.00x", "0.25x")
    assert row(runs[::-1], "wire / the lowest run's").texts == ("4.00x", "1.00x")
    assert row(runs, "raw / wire").texts == ("3.97x", "3.97x")


def test_references_are_the_raw_bytes_and_federated_averaging(runs: list[ComparedRun]) -> None:
    assert row(runs, "without a codec").texts == ("421.5 MB", "1.7 GB")
    assert row(runs, "federated averaging").texts == ("210.7 MB", "210.7 MB")
    assert row(runs, "that / wire").texts == ("2.0x", "0.5x")


def test_best_of_each_figure_is_marked_by_its_own_measure(runs: list[ComparedRun]) -> None:
    assert row(runs, "wire", "bytes").best == {0}
    assert row(runs, "whole run").best == {1}
    assert row(runs, "final").best == {1}
    assert row(runs, "round trip, median").best == frozenset()
    assert row(runs, "federated averaging").best == frozenset()


def test_best_may_be_an_earlier_epochs(tmp_path: Path) -> None:
    run = synthetic_run()
    run["history"][2]["accuracy"] = 0.99
    compared = load_runs([write(tmp_path / "a", run)])[0]
    assert (compared.final, compared.best) == (0.904, 0.99)


def test_run_without_a_final_evaluation_has_that_of_its_last_epoch(tmp_path: Path) -> None:
    run = synthetic_run() | {"accuracy": {}}
    compared = load_runs([write(tmp_path / "a", run)])[0]
    assert compared.final == run["history"][-1]["accuracy"]


def test_run_in_which_nothing_was_measured_can_be_compared(tmp_path: Path, runs: list[ComparedRun]) -> None:
    empty = synthetic_run() | {"accuracy": {}, "history": [], "traffic": [], "bytes_per_sample": None, "processes": []}
    empty |= {"round_trip_s": {"p50": None, "p95": None}, "training_s": 0.0, "samples": 0}
    empty["bytes"] = {direction: {"raw": 0, "payload": 0, "wire": 0} for direction in ("up", "down")}
    all_runs = [*load_runs([write(tmp_path / "empty", empty)]), *runs]
    assert row(all_runs, "final").texts[0] == "-"
    assert row(all_runs, "wire / the first run's").texts == ("-", "-", "-")
    json.dumps(comparison_json(all_runs), allow_nan=False)
    assert "empty" in shown(all_runs)


def test_settings_that_differ_are_listed_and_no_others(runs: list[ComparedRun]) -> None:
    assert differing_settings(runs) == [
        ("codecs.activations", ("int8+zstd", "identity")),
        ("window.mode", ("asynchronous", "synchronous")),
    ]


def test_scripts_get_numbers_in_base_units(runs: list[ComparedRun]) -> None:
    document = json.loads(json.dumps(comparison_json(runs), allow_nan=False))
    light, heavy = document["runs"]
    assert document["format"] == 1
    assert (light["label"], heavy["mode"], heavy["codecs"]["activations"]) == ("light", "synchronous", "identity")
    assert light["bytes"]["both"]["wire"] == light["bytes"]["up"]["wire"] + light["bytes"]["down"]["wire"]
    assert (heavy["of_first"], light["of_lowest"], heavy["reconnects"]) == (4.0, 1.0, 3)
    assert light["accuracy"] == {"final": 0.904, "best": 0.904}
    assert light["bytes_per_agent_day"] == pytest.approx(light["bytes"]["both"]["wire"] / 4 / 96.4 * 86_400)


def test_table_has_a_column_a_run_and_fits_80_columns(runs: list[ComparedRun]) -> None:
    text = shown(runs)
    assert max(map(len, text.splitlines())) <= 80
    assert "light" in text
    assert "heavy" in text


def test_runs_that_do_not_fit_go_in_further_tables_beside_the_first(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"run-{index}", synthetic_run()) for index in range(7)]
    lines = shown(load_runs(paths)).splitlines()
    heads = [line.split() for line in lines if "run-0" in line]
    assert max(map(len, lines)) <= 80
    assert len(heads) > 1
    assert all(head[0] == "run-0" for head in heads)
    assert {label for head in heads for label in head} == {f"run-{index}" for index in range(7)}


def test_names_that_a_run_brings_cannot_style_or_steer_the_terminal(tmp_path: Path) -> None:
    run = synthetic_run() | {"run_id": "[bold red]x[/]\x1b[2J"}
    text = shown(load_runs([write(tmp_path / "a", run)]))
    assert "\x1b[2J" not in text
    assert "[bold red]x" in text
