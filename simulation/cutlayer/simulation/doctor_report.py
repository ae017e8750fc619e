"""What the doctor has found: one finding a line, for people, or all of them as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from cutlayer.broker.command_line import printable

__all__ = [
    "EXIT_RUN",
    "EXIT_SETTINGS",
    "Finding",
    "Values",
    "Verdict",
    "as_json",
    "exit_code",
    "found",
    "print_finding",
    "print_summary",
    "problem",
    "seconds",
    "skipped",
    "warning",
]

EXIT_SETTINGS: Final = 2
EXIT_BROKER: Final = 3
EXIT_RUN: Final = 4
"""The exit codes of `cutlayer.broker.errors`: what the agent itself would end with."""


Values = Mapping[str, JsonValue]
NOTHING: Final[Values] = MappingProxyType({})


class Verdict(StrEnum):
    """What a finding means for an agent. `skipped`: it could not be looked at, and the fact says why."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


STYLES: Final = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red", Verdict.SKIPPED: "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: What was looked at, one word.
        verdict: What it means.
        fact: What was measured or answered.
        fix: What to do; empty where nothing is to be done.
        exit_code: What the command ends with for the sake of this finding.
        values: The measured values, for programs.
    """

    check: str
    verdict: Verdict
    fact: str
    fix: str = ""
    exit_code: int = 0
    values: Values = field(default_factory=dict)


def found(check: str, fact: str, values: Values = NOTHING) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.OK, fact, values=values)


def warning(check: str, fact: str, fix: str, values: Values = NOTHING) -> Finding:
    """Return something that an agent can live with, or that could not be proven."""
    return Finding(check, Verdict.WARNING, fact, fix, values=values)


def problem(check: str, fact: str, fix: str, values: Values = NOTHING, *, exit_code: int = EXIT_BROKER) -> Finding:
    """Return something that keeps an agent from its work."""
    return Finding(check, Verdict.PROBLEM, fact, fix, exit_code, values)


def skipped(check: str, why: str) -> Finding:
    """Return that a check could not be made."""
    return Finding(check, Verdict.SKIPPED, why)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return what the command ends with: the code of the first problem, or 0."""
    return next((finding.exit_code for finding in findings if finding.verdict is Verdict.PROBLEM), 0)


def print_finding(console: Console, finding: Finding, *, previous_fix: str = "") -> None:
    """Print a finding's line, and its fix below unless the line above has said the same.

    Args:
        console: Where to.
        finding: The finding.
        previous_fix: The fix that was printed last.
    """
    line = Text(f"{finding.verdict:<8}", style=STYLES[finding.verdict])
    line.append(f" {finding.check:<12}", style="bold")
    # Not coloured: a peer chooses some of it. `printable` spells control characters out.
    line.append(f" {printable(finding.fact)}", style="default")
    console.print(line, soft_wrap=True, highlight=False)
    if finding.fix and finding.fix != previous_fix:
        console.print(Text(f"{'':22}fix: {printable(finding.fix)}"), soft_wrap=True, highlight=False)


def print_summary(console: Console, findings: Sequence[Finding]) -> None:
    """Print how many findings of each kind there are."""
    counts = [
        f"{count} {verdict}{'s' if count != 1 and verdict is not Verdict.SKIPPED else ''}"
        for verdict in (Verdict.PROBLEM, Verdict.WARNING, Verdict.SKIPPED)
        if (count := sum(finding.verdict is verdict for finding in findings))
    ]
    console.print(Text(", ".join(counts) if counts else "all ok"), highlight=False)


def as_json(broker: str, topic: str | None, findings: Sequence[Finding]) -> str:
    """Return everything as one JSON object.

    Args:
        broker: The broker's URL.
        topic: The agent's topic, if one was given.
        findings: In the order of the checks.
    """
    return json.dumps(
        {
            "broker": broker,
            "topic": topic,
            "exit_code": exit_code(findings),
            "findings": [
                {
                    "check": finding.check,
                    "verdict": finding.verdict,
                    "fact": finding.fact,
                    "fix": finding.fix,
                    "values": dict(finding.values),
                }
                for finding in findings
            ],
        },
        indent=2,
        ensure_ascii=False,
    )


def seconds(duration_s: float) -> str:
    """Return a duration for people, with three digits."""
    if abs(duration_s) < 1.0:
        return f"{duration_s * 1_000:.3g} ms"
    return f"{duration_s:.3g} s" if abs(duration_s) < 1_000 else f"{duration_s:,.0f} s"
