from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cutlayer.simulation.doctor_report import (
    Finding,
    as_json,
    exit_code,
    found,
    print_finding,
    print_summary,
    problem,
    seconds,
    skipped,
    warning,
)

FINDINGS = [
    found("name", "hub is 10.0.0.1", {"addresses": ["10.0.0.1"]}),
    warning("tls", "not used", "use mqtts://"),
    problem("port", "nothing listens", "start one", {"port": 1883}),
    problem("manifest", "another version", "same release", exit_code=4),
    skipped("rights", "the check `port` has failed"),
]


def printed(*findings: Finding, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=colour, width=40)
    previous = ""
    for finding in findings:
        print_finding(console, finding, previous_fix=previous)
        previous = finding.fix
    return out.getvalue()


def test_a_finding_is_one_line_however_narrow_the_terminal_and_its_fix_another() -> None:
    long = problem("port", "x" * 200, "y" * 200)
    assert printed(long).splitlines() == [f"problem  port         {'x' * 200}", f"{'':22}fix: {'y' * 200}"]


def test_a_fix_is_not_said_twice_in_a_row() -> None:
    text = printed(warning("rights", "one", "do it"), warning("rights", "two", "do it"))
    assert text.count("fix: do it") == 1


def test_what_a_peer_has_chosen_is_printed_and_not_obeyed() -> None:
    text = printed(found("workers", "[bold]w0[/bold] \x1b[2J"))
    assert "[bold]w0[/bold] \\x1b[2J" in text


def test_verdicts_are_coloured_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[32m" in printed(FINDINGS[0], colour=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in printed(FINDINGS[0], colour=True)


def test_the_exit_code_is_that_of_the_first_problem() -> None:
    assert exit_code(FINDINGS) == 3
    assert exit_code(FINDINGS[3:]) == 4
    assert exit_code(FINDINGS[:2]) == 0


@pytest.mark.parametrize(
    ("findings", "says"),
    [
        (FINDINGS, "2 problems, 1 warning, 1 skipped"),
        (FINDINGS[:2], "1 warning"),
        (FINDINGS[:1], "all ok"),
    ],
)
def test_the_last_line_counts(findings: list[Finding], says: str) -> None:
    out = io.StringIO()
    print_summary(Console(file=out), findings)
    assert out.getvalue() == f"{says}\n"


def test_json_holds_every_finding_with_its_values() -> None:
    document = json.loads(as_json("mqtt://hub", "clinic/07", FINDINGS))
    assert (document["broker"], document["topic"], document["exit_code"]) == ("mqtt://hub", "clinic/07", 3)
    assert [entry["verdict"] for entry in document["findings"]] == ["ok", "warning", "problem", "problem", "skipped"]
    assert document["findings"][2] == {
        "check": "port",
        "verdict": "problem",
        "fact": "nothing listens",
        "fix": "start one",
        "values": {"port": 1883},
    }


@pytest.mark.parametrize(
    ("duration_s", "text"), [(0.00004, "0.04 ms"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (7_200.0, "7,200 s")]
)
def test_durations_are_short(duration_s: float, text: str) -> None:
    assert seconds(duration_s) == text
