"""The four questions of the overview, answered in words: for somebody who has never seen a panel of it.

Each answer comes from the metrics that the panels show, by the same queries; what is not known yet says so.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

from cutlayer.dashboards.overview_board import SENT_AGAIN, run_bytes
from cutlayer.dashboards.panels import Colour
from cutlayer.dashboards.query import Query, Rate, Value, metrics_of
from cutlayer.dashboards.snapshots import Snapshots, evaluate
from cutlayer.dashboards.units import bytes_text, latency_text, percent_text

__all__ = ["AGENTS", "HEADLINE_METRICS", "Headline", "headlines"]

STANDS_OUT: Final = 2.0
"""A site is slow when it takes so many times as long as the median site."""
SLOWEST_WORTH_NAMING_S: Final = 0.05
"""Below this, differences between sites are of no use to anybody."""
SOME_AGAIN: Final = 0.01
MUCH_AGAIN: Final = 0.05
"""Share of messages sent again or not taken, as the panel's thresholds have it."""
GONE_AFTER_S: Final = 60.0
"""Who has not reported for so long is not slow but away."""
EVEN_SHARE: Final = 0.55
"""A direction costs more than the other from this share on."""

AGENTS: Final = Value("cutlayer_agents")
_PHASE: Final = Value("cutlayer_run_phase", ("phase",))
_CONNECTED: Final = Value("cutlayer_broker_connected")
MANY_A_MINUTE: Final = 10.0
"""Messages that are not taken: a few at a start are of agents that know an earlier run."""
IN_WORDS: Final = {
    "version": "another release's",
    "codec": "a release that lacks a codec",
    "manifest": "of another run",
    "late": "gradients that came late",
    "lease": "without a lease",
    "incarnation": "of an earlier process",
    "departed": "of an agent that has left",
    "credits": "more than the credits",
}
"""Reasons as people call them; the others' names say it."""
_REJECTS: Final = Rate("cutlayer_rejects_total", ("reason",))
_MESSAGES: Final = Rate("cutlayer_messages_total", where={"kind": ("Activations", "OutputGradients")})
_SITES: Final = Value("cutlayer_agent_round_trip_seconds", ("agent",), {"share": "0.95"})
_SILENCE: Final = Value("cutlayer_agent_silence_seconds", ("agent",))
_UP: Final = run_bytes("wire", "up")
_DOWN: Final = run_bytes("wire", "down")
_RAW: Final = run_bytes("raw")
_QUERIES: Final[tuple[Query, ...]] = (
    AGENTS, _PHASE, _CONNECTED, _REJECTS, _MESSAGES, _SITES, _SILENCE, _UP, _DOWN, _RAW, SENT_AGAIN,
)  # fmt: skip
HEADLINE_METRICS: Final = frozenset(name for query in _QUERIES for name in metrics_of(query))


@dataclass(frozen=True, slots=True)
class Headline:
    """One question and its answer.

    Attributes:
        question: As a person asks it.
        answer: A few words.
        detail: The figures behind them; may be empty.
        meaning: Whether that is good or bad.
    """

    question: str
    answer: str
    detail: str
    meaning: Colour


def headlines(snapshots: Snapshots) -> tuple[Headline, ...]:
    """Answer the questions of the overview.

    Args:
        snapshots: The values now and a while ago.
    """
    return (_health(snapshots), _slow_site(snapshots), _direction(snapshots), _savings(snapshots))


def _health(snapshots: Snapshots) -> Headline:
    question = "Is the run well?"
    phase = next((group[0] for group, value in evaluate(_PHASE, snapshots).items() if value > 0), "")
    num_agents = int(_number(AGENTS, snapshots) or 0)
    sites = f"{num_agents} site{'' if num_agents == 1 else 's'}"
    again = _number(SENT_AGAIN, snapshots) or 0.0
    rejects = evaluate(_REJECTS, snapshots)
    rejected = sum(rejects.values())
    if phase == "ended":
        return Headline(question, "It has ended", "What is shown is its last minutes.", "neutral")
    if not _number(_CONNECTED, snapshots):
        return Headline(question, "No broker", "The worker has no connection to its broker.", "bad")
    if not num_agents:
        return Headline(question, "Waiting for sites", "No agent is here yet, or none any more.", "warn")
    if phase == "waiting":
        return Headline(question, "Waiting to start", f"{sites} here, more are wanted.", "neutral")
    if again >= MUCH_AGAIN:
        text = f"{percent_text(again)} of messages: packets get lost, or a link is too slow."
        return Headline(question, "Much is sent again", text, "bad")
    details = []
    if again >= SOME_AGAIN:
        details.append(f"{percent_text(again)} of messages are sent again.")
    if rejected * 60 >= MANY_A_MINUTE:
        reason = max(rejects, key=lambda group: rejects[group])[0]
        details.append(f"{rejected * 60:.0f} a minute are not taken (most: {IN_WORDS.get(reason, reason)}).")
    if rejected > SOME_AGAIN * (_number(_MESSAGES, snapshots) or 0.0) and rejected * 60 >= MANY_A_MINUTE:
        return Headline(question, "Messages are rejected", " ".join(details), "warn")
    if again >= SOME_AGAIN:
        return Headline(question, f"{sites} {phase}", " ".join(details), "warn")
    return Headline(question, f"Yes: {sites} {phase}", " ".join(details) or "Nothing is lost or rejected.", "good")


def _slow_site(snapshots: Snapshots) -> Headline:
    question = "Which site is slow?"
    silence = evaluate(_SILENCE, snapshots)
    sites = {
        group[0]: value
        for group, value in evaluate(_SITES, snapshots).items()
        if value > 0 and silence.get(group, 0.0) < GONE_AFTER_S
    }
    if not sites:
        return Headline(question, "Not known yet", "No site has reported a round trip.", "neutral")
    slowest = max(sites, key=lambda site: sites[site])
    if len(sites) == 1:
        return Headline(question, "One site only", f"{slowest} waits {latency_text(sites[slowest])}.", "neutral")
    usual = statistics.median_low(sites.values())
    figures = f"{latency_text(sites[slowest])} for a round trip (95 %); the sites' median is {latency_text(usual)}."
    bound = max(STANDS_OUT * usual, SLOWEST_WORTH_NAMING_S)
    slow = sorted((site for site in sites if sites[site] >= bound), key=lambda site: (-sites[site], site))
    if not slow:
        return Headline(question, "None stands out", f"The slowest, {slowest}: {figures}", "good")
    more = f" and {len(slow) - 1} more" if len(slow) > 1 else ""
    return Headline(question, f"{slow[0]}{more}", figures, "warn")


def _direction(snapshots: Snapshots) -> Headline:
    question = "Which direction costs most?"
    up, down = _number(_UP, snapshots) or 0.0, _number(_DOWN, snapshots) or 0.0
    if up + down <= 0:
        return Headline(question, "Not known yet", "No site has reported bytes.", "neutral")
    name, share = ("Up", up / (up + down)) if up >= down else ("Down", down / (up + down))
    figures = f"{bytes_text(up)} from the sites (up), {bytes_text(down)} to them (down)."
    if share < EVEN_SHARE:
        return Headline(question, "Both alike", figures, "neutral")
    return Headline(question, f"{name}: {share * 100:.0f} % of the bytes", figures, "up" if up >= down else "down")


def _savings(snapshots: Snapshots) -> Headline:
    question = "What does the codec save?"
    raw = _number(_RAW, snapshots) or 0.0
    wire = (_number(_UP, snapshots) or 0.0) + (_number(_DOWN, snapshots) or 0.0)
    if raw <= 0:
        return Headline(question, "Not known yet", "No site has sent tensors.", "neutral")
    figures = f"{bytes_text(raw)} of tensors took {bytes_text(wire)} on the wire."
    if wire >= raw:
        return Headline(question, "Nothing", figures, "bad")
    return Headline(question, f"{(1 - wire / raw) * 100:.0f} % of the bytes", figures, "good")


def _number(query: Query, snapshots: Snapshots) -> float | None:
    return evaluate(query, snapshots).get(())
