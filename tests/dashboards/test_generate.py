"""What is generated and committed is what the code of today generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.generate import generated_files, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", generated_files(), ids=str)
def test_the_committed_file_is_what_is_generated_now(path: Path) -> None:
    assert (ROOT / path).read_bytes() == generated_files()[path].encode()


def test_no_dashboard_lies_there_that_nobody_generates() -> None:
    assert {path.relative_to(ROOT) for path in (ROOT / "dashboards").glob("*.json")} == {
        path for path in generated_files() if path.suffix == ".json"
    }


def test_dashboards_are_written_as_json_without_what_it_has_not() -> None:
    for path, text in generated_files().items():
        if path.suffix == ".json":
            json.loads(text, parse_constant=pytest.fail)


def test_every_file_is_written_into_an_empty_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("wrote ") == len(generated_files())
    assert main(["--root", str(tmp_path), "--check"]) == 0


def test_a_file_that_differs_is_named_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(tmp_path)])
    changed = tmp_path / "dashboards" / "sites.json"
    changed.write_text("{}")
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert "dashboards/sites.json differs" in capsys.readouterr().err
    assert changed.read_text() == "{}"


def test_the_page_of_metrics_names_every_metric() -> None:
    page = generated_files()[Path("docs/metrics.md")]
    for entry in (*METRICS, *AGENT_METRICS):
        assert f"`{entry.name}" in page
        assert entry.help in page
