"""docs/data.md, carried out as a new user would: her folder, the plan, a worker, two agents."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.brokers import running_broker
from support.processes import Process

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
LONG_S = 400.0
"""A whole run on two cores that others use, too."""


def blocks(language: str) -> list[str]:
    pairs = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [text for found, text in pairs if found == language]


def commands() -> dict[str, list[str]]:
    """Return the page's commands of its first section, by their first words."""
    found: dict[str, list[str]] = {}
    for line in "".join(blocks("")).splitlines():
        found.setdefault(" ".join(line.split()[:2]), []).append(line)
    return found


def start(line: str, folder: Path, log: str, url: str) -> Process:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
    words = ["sh", "-c", f"cd {shlex.quote(str(folder))} && exec {line}"]
    return Process(words, folder / log, PATH=path, CUTLAYER_BROKER=url, OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.mosquitto
def test_page_leads_from_a_folder_to_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "make_scans.py").write_text(blocks("python")[0])
    (tmp_path / "scans.toml").write_text(blocks("toml")[0])
    lines = commands()
    assert lines["cutlayer broker"] == ["cutlayer broker start"]
    with ExitStack() as stack:
        url = stack.enter_context(running_broker("mosquitto")).url

        def run(line: str, log: str) -> Process:
            return stack.enter_context(start(line, tmp_path, log, url))

        made = run(lines["python make_scans.py"][0], "made.log")
        assert made.exit_code() == 0, made.text()
        planned = run(lines["cutlayer plan"][0], "plan.log")
        assert planned.exit_code(LONG_S) == 0, planned.text()
        worker = run(lines["server-worker start"][0] + " --http-port 0", "worker.log")
        worker.wait_for("serving run scans-")
        doctor = run(lines["cutlayer doctor"][0], "doctor.log")
        assert doctor.exit_code(LONG_S) == 0, doctor.text()
        assert "./scans fits the run" in " ".join(doctor.text().split())
        agents = [run(line, f"agent{place}.log") for place, line in enumerate(lines["edge-agent start"])]
        assert len(agents) == 2
        assert [process.exit_code(LONG_S) for process in [*agents, worker]] == [0, 0, 0], worker.text()
        promised = re.search(r"\n(\./scans: .*)\n", PAGE)
        assert promised is not None
        assert promised[1] in agents[0].text()
    report = json.loads((tmp_path / "runs" / "scans" / "run.json").read_text())
    assert report["run_id"].startswith("scans-")
