"""The doctor's look at a site's own data."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.tasks import ClassificationSpec
from cutlayer.simulation.doctor_data import SiteData, check_site_data
from cutlayer.simulation.doctor_report import Verdict
from support.processes import script
from support.small_side import small_manifest
from support.user_data import AUDIO, CLASSES, IMAGE, site
from support.waiting import LIMIT_S

MANIFEST: Manifest = small_manifest().model_copy(
    update={"modalities": {"image": IMAGE, "audio": AUDIO}, "task": ClassificationSpec(classes=CLASSES)}
)


def test_data_that_fit_are_counted(tmp_path: Path) -> None:
    finding = check_site_data(MANIFEST, SiteData(str(site(tmp_path))))
    assert finding.verdict is Verdict.OK
    assert finding.fact == f"{tmp_path} fits the run: 16 samples for training, 4 for testing, with audio and image"
    assert finding.values == {"num_train": 16, "num_test": 4, "lacking": []}


def test_modality_that_the_site_has_none_of_is_a_warning(tmp_path: Path) -> None:
    table = site(tmp_path) / "data.csv"
    table.write_text(table.read_text().replace("audio", "sound", 1))
    finding = check_site_data(MANIFEST, SiteData(str(tmp_path)))
    assert finding.verdict is Verdict.WARNING
    assert finding.fact.endswith("with image; without audio")
    assert check_site_data(MANIFEST, SiteData(str(tmp_path), options={"audio": "sound"})).verdict is Verdict.OK


def test_data_that_do_not_fit_are_a_problem_with_the_agents_exit_code(tmp_path: Path) -> None:
    manifest = MANIFEST.model_copy(update={"task": ClassificationSpec(classes=("cat", "bird"))})
    finding = check_site_data(manifest, SiteData(str(site(tmp_path))))
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 2)
    assert "line 3, column 'label': 'dog' is none of the run's classes" in finding.fact
    assert finding.fix
    finding = check_site_data(manifest, SiteData("demo:digits"))
    assert (finding.verdict, finding.exit_code) == (Verdict.PROBLEM, 4)


def test_without_a_run_only_the_path_and_the_options_are_looked_at(tmp_path: Path) -> None:
    assert check_site_data(None, SiteData(str(site(tmp_path)))).verdict is Verdict.WARNING
    finding = check_site_data(None, SiteData(str(tmp_path / "none")))
    assert finding.verdict is Verdict.PROBLEM
    assert "no such file or folder" in finding.fact


@pytest.mark.parametrize(("name", "verdict"), [("none", "problem"), (".", "warning")])
def test_command_takes_the_agents_flags(tmp_path: Path, name: str, verdict: str) -> None:
    site(tmp_path)
    words = [script("cutlayer"), "doctor", "--broker", "mqtt://127.0.0.1:1", "--timeout", "1", "--json"]
    words += ["--data", str(tmp_path / name), "--shard", "0/2", "--data-option", "fit=pad"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 3  # of the broker's port, which comes first
    last = json.loads(done.stdout)["findings"][-1]
    assert (last["check"], last["verdict"]) == ("data", verdict)
