import json
import subprocess
import sys
from pathlib import Path

import pytest

from cutlayer.dashboards.comparison import load_runs
from cutlayer.dashboards.comparison_report import render_comparison
from cutlayer.dashboards.report import render_report
from cutlayer.simulation.demo_processes import console_script
from support.synthetic_run import synthetic_run
from support.waiting import LIMIT_S


def cutlayer(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [console_script("cutlayer"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.fixture
def run_json(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(synthetic_run()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        (["--help"], ["cutlayer demo", "cutlayer broker start", "edge-agent start --topic clinic/07", "Exit codes"]),
        (["demo", "--help"], ["cutlayer demo --agents 8", "--alpha", "--no-live", "runs/NAME/logs", "Exit codes"]),
        (
            ["report", "--help"],
            ["cutlayer report runs/demo/run.json", "cutlayer report runs/*/run.json --json", "--output"],
        ),
        (["broker", "start", "--help"], ["cutlayer broker start"]),
    ],
)
def test_help_teaches(arguments: list[str], taught: list[str]) -> None:
    done = cutlayer(*arguments)
    words = " ".join(done.stdout.split())
    assert done.returncode == 0
    for text in taught:
        assert text in words


def test_version_is_printed() -> None:
    assert cutlayer("--version").stdout.startswith("cutlayer ")


@pytest.mark.parametrize("module", ["cutlayer.simulation.cli", "cutlayer.simulation.demo"])
def test_neither_help_nor_demo_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'timm', 'amqtt', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_loads_no_plotting() -> None:
    code = "import sys, cutlayer.simulation.cli; print('matplotlib' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_report_is_written_beside_the_record(run_json: Path) -> None:
    done = cutlayer("report", str(run_json))
    report = run_json.with_name("report.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{report}\n", "")
    assert report.read_text(encoding="utf-8") == render_report(synthetic_run())


def test_report_is_written_where_asked(run_json: Path, tmp_path: Path) -> None:
    wanted = tmp_path / "other.html"
    assert cutlayer("report", str(run_json), "--output", str(wanted)).stdout == f"{wanted}\n"
    assert wanted.is_file()
    assert not (tmp_path / "report.html").exists()


def test_report_that_cannot_be_written_is_an_error_with_a_fix(run_json: Path, tmp_path: Path) -> None:
    done = cutlayer("report", str(run_json), "--output", str(tmp_path / "missing" / "report.html"))
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "fix: choose another --output" in done.stderr


def test_several_runs_are_compared_in_a_table_and_on_a_page_beside_the_first(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, run_id) for name, run_id in (("a", "digits-1"), ("b", "digits-2"))]
    done = cutlayer("report", *map(str, paths))
    page = tmp_path / "a" / "comparison.html"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(page)
    assert "digits-2" in done.stdout
    assert page.read_text(encoding="utf-8") == render_comparison(load_runs(paths))
    assert not (tmp_path / "a" / "report.html").exists()


def test_comparison_for_scripts_is_json_and_writes_nothing(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, name) for name in ("a", "b")]
    done = cutlayer("report", *map(str, paths), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [run["label"] for run in json.loads(done.stdout)["runs"]] == ["a", "b"]
    assert [path.name for path in tmp_path.rglob("*.html")] == []


def test_one_run_of_another_format_stops_the_comparison(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "a", "a"), tmp_path / "other.json"
    bad.write_text('{"format": 2}', encoding="utf-8")
    done = cutlayer("report", str(good), str(bad))
    assert done.returncode == 2
    assert f"{bad} is no record of a run: format" in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.rglob("*.html")] == []


def write_run(folder: Path, run_id: str) -> Path:
    folder.mkdir()
    path = folder / "run.json"
    path.write_text(json.dumps(synthetic_run() | {"run_id": run_id}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["report", "missing.json"], "missing.json cannot be read: No such file or directory"),
        (["report", "broken.json"], "broken.json is no JSON"),
        (["report", "other.json"], "no record of a run: format"),
        (["demo"], "no run settings examples/digits.toml"),
        (["demo", "--run", "other.json", "--agents", "0"], "--agents is 0"),
        (["demo", "--run", "other.json", "--broker", "mosquito"], "'mosquito' is not mqtt://"),
        (["demo", "--epochs", "none"], "--epochs"),
        (["demo", "--colour"], "--colour"),
        (["train"], "train"),
    ],
)
def test_wrong_use_exits_with_2_and_names_what_is_wrong(tmp_path: Path, arguments: list[str], named: str) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    done = cutlayer(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["demo", "report"])
def test_plots_that_cannot_be_drawn_are_refused_before_a_run_is_paid_for(command: str) -> None:
    code = f"""
import sys
sys.modules["matplotlib"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "matplotlib" else found(name, *more)
sys.argv = ["cutlayer", {command!r}, *(["run.json"] if {command!r} == "report" else [])]
from cutlayer.simulation.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "fix: pip install 'cutlayer[server]'" in done.stderr


def test_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    done = cutlayer("report", str(tmp_path / "missing.json"), "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_broker_that_does_not_answer_exits_with_3(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    # Port 9 (discard) is reserved and has no listener: refused at once.
    done = cutlayer("demo", "--run", "run.toml", "--broker", "mqtt://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 3
    assert "no broker at mqtt://127.0.0.1:9" in done.stderr
