"""The `cutlayer plan` command as a process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.processes import DIGITS_FILE, script
from support.waiting import LIMIT_S

CHANGES = ("--set", "tokenizers.mode=trainable", "--set", "activations.mode=delta")


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script("cutlayer"), "plan", "--run", str(DIGITS_FILE), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
    )


def test_help_teaches() -> None:
    words = " ".join(plan("--help").stdout.split())
    for text in ("cutlayer plan --run examples/digits.toml --data demo:digits", "--link", "--samples", "Exit codes"):
        assert text in words


def test_a_plan_of_the_agents_own_data_fits_a_terminal_and_says_what_is_cheaper() -> None:
    done = plan("--agents", "2", "--data-option", "alpha=0.5", "--data-option", "views=1", "--epochs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 100
    for text in ("each later epoch", "the whole run", "clinic/01", "federated, LoRA of rank 8", "raw data, once"):
        assert text in done.stdout
    words = " ".join(done.stdout.split())
    assert "federated averaging of all parameters" in words
    assert "to tokenize and" in words
    assert "upper bound" not in words


def test_json_adds_up_and_is_all_that_is_printed() -> None:
    done = plan("--samples", "4000", "--agents", "3", "--hours", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["is_upper_bound"] is True
    assert found["duration_s"] == 7_200
    parts = [ways for name, ways in found["bytes"].items() if name != "whole_run"]
    for way in ("up", "down"):
        whole = found["bytes"]["whole_run"][way]
        assert sum(part[way] for part in parts) == pytest.approx(whole, abs=len(parts))
        assert sum(site[way] for site in found["sites"]) == pytest.approx(whole, abs=3)
    assert [site["train_samples"] for site in found["sites"]] == [1334, 1333, 1333]
    assert found["agent"]["tokenize_s"] is None
    assert sum(found["agent"]["memory_bytes"].values()) > 20_000_000


@pytest.mark.slow
def test_trained_tokenizers_and_changes_say_what_their_sizes_rest_on() -> None:
    done = plan("--agents", "2", "--data-option", "views=1", "--epochs", "2", *CHANGES)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 100
    words = " ".join(done.stdout.split())
    for text in (
        "activations as changes, as",
        "; tokenizers trainable.",
        "changes of activations",
        "tokenizers' gradients, weights",
        "as in a rehearsal of the whole run without its model",
        "rest on a trial",
        "what workers have of samples",
    ):
        assert text in words


def test_json_of_trained_tokenizers_without_data_adds_up() -> None:
    done = plan("--samples", "2000", "--agents", "2", "--json", *CHANGES)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["activations"], found["tokenizers"]) == ("delta", "trainable")
    parts = [ways for name, ways in found["bytes"].items() if name != "whole_run"]
    for way in ("up", "down"):
        assert sum(part[way] for part in parts) == pytest.approx(found["bytes"]["whole_run"][way], abs=len(parts))
        assert found["bytes"]["tokenizers"][way] > 0
    assert found["trial"] is None
    assert 0 < found["rehearsal"]["gradients_share"][0] <= 0.25
    assert found["agent"]["learning_flops"] == found["agent"]["projection_flops"]


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (["--samples", "10", "--data", "demo:digits"], "--samples stands in the place of data", "leave out"),
        (["--test-samples", "10"], "--test-samples is for a plan without data", "give --samples"),
        (["--link", "5mbit"], "--link '5mbit' is not UP/DOWN", "5mbit/50mbit"),
        (["--link", "5mbit/fast"], "--link, down 'fast' is no rate", "600kbit"),
        (["--mqtt", "4"], "--mqtt '4' is unknown", "use 5 or 3.1.1"),
        (["--activations", "never"], "--activations 'never' is unknown", "every-step"),
        (["--data", "demo:letters"], "no data set 'demo:letters'", "demo:digits"),
        (["--samples", "100", "--fed-blocks", "9"], "--fed-blocks 9 of a model that has 4", "choose 1 to 4"),
    ],
)
def test_what_cannot_be_planned_is_an_error_with_a_fix(arguments: list[str], problem: str, fix: str) -> None:
    done = plan(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert fix in done.stderr.partition("fix:")[2]


def test_retrieval_is_planned_without_data(tmp_path: Path) -> None:
    text = (
        DIGITS_FILE.read_text().replace('fusion = "early"', 'fusion = "late"').replace("modality_dropout = 0.3\n", "")
    )
    head, _, behind = text.partition("[task]")
    task = '[task]\nkind = "retrieval"\nbetween = ["audio", "image"]\n\n[codecs]'
    run = tmp_path / "pairs.toml"
    run.write_text(head + task + behind.partition("[codecs]")[2])
    done = plan("--run", str(run), "--samples", "100", "--json")
    assert done.returncode == 0, done.stderr
    evaluated = json.loads(done.stdout)["bytes"]["evaluation"]
    # Embeddings come down, and of training a number a sample: nothing is evaluated given one modality alone.
    assert 0 < evaluated["down"] < evaluated["up"]
