"""What Prometheus watches for: each alert says what is wrong, what to do, and which page to look at.

They name symptoms that cost somebody something (no progress, slow answers, lost bytes), not causes. Thresholds are
starting points for runs on ordinary links.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["ALERTS", "Alert", "names_in", "rules_text"]

JOB: Final = 'job="cutlayer"'
FIVE_MINUTES: Final = "5m"
LOSSLESS: Final = "none|identity.*"
"""Codecs that promise no smaller tensors."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Its name.
        expression: PromQL; it fires for what this returns.
        hold: How long that has to last.
        severity: `critical` where the training stands still, `warning` where it costs more than it should.
        summary: What is wrong, in a line.
        action: What to do.
        board: Identifier of the dashboard to look at.
    """

    name: str
    expression: str
    hold: str
    severity: Literal["critical", "warning"]
    summary: str
    action: str
    board: str


def _rate(name: str, *matchers: str) -> str:
    return f"sum by (job) (rate({name}{{{','.join((JOB, *matchers))}}}[{FIVE_MINUTES}]))"


def _in_phase(phases: str) -> str:
    return f'max by (job) (cutlayer_run_phase{{{JOB},phase=~"{phases}"}}) == 1'


_UP_TENSORS: Final = ('direction="up"', 'kind=~"Activations|OutputGradients"')

ALERTS: Final = (
    Alert(
        "WorkerDown",
        f"up{{{JOB}}} == 0",
        "1m",
        "critical",
        "The worker {{ $labels.instance }} does not answer",
        "Look at its log and start it again with --resume: agents wait for it and go on where the run stands.",
        "cutlayer-broker",
    ),
    Alert(
        "WorkerGone",
        f'(last_over_time(cutlayer_run_phase{{{JOB},phase="training"}}[10m]) == 1 '
        f"unless on (job, instance) up{{{JOB}}}) "
        f"and on (job, instance) last_over_time(cutlayer_run_progress_ratio{{{JOB}}}[10m]) < 1",
        "1m",
        "critical",
        "The worker {{ $labels.instance }} has vanished in the middle of a run",
        "Its container or host has gone, and with it its address. Start it again with --resume. This alert ends ten "
        "minutes after the worker was last seen, whether or not it is back.",
        "cutlayer-broker",
    ),
    Alert(
        "BrokerDisconnected",
        f"cutlayer_broker_connected{{{JOB}}} == 0",
        "1m",
        "critical",
        "The worker {{ $labels.instance }} has no connection to the broker",
        "Look whether the broker runs, and at the worker's log for a refusal (password, ACL, TLS). `cutlayer doctor` "
        "at the worker's host says what is missing.",
        "cutlayer-broker",
    ),
    Alert(
        "NoAgents",
        f"max by (job) (cutlayer_agents{{{JOB}}}) == 0 and on (job) {_in_phase('waiting|training')}",
        "10m",
        "warning",
        "No agent is there, and the run is not over",
        "Start agents, or run `cutlayer doctor` at a site to see why its agent does not come through.",
        "cutlayer-sites",
    ),
    Alert(
        "RunStalled",
        f"max by (job) (cutlayer_agents{{{JOB}}}) > 0 and on (job) {_in_phase('training')} "
        f"and on (job) max by (job) (rate(cutlayer_samples_total{{{JOB}}}[{FIVE_MINUTES}])) == 0",
        "5m",
        "critical",
        "Agents are there, but nothing has been committed for ten minutes",
        "In synchronous mode one absent agent holds the window: see who is silent. Otherwise look at rejects and "
        "messages that were sent again.",
        "cutlayer-sites",
    ),
    Alert(
        "RoundTripSlow",
        "histogram_quantile(0.95, sum by (job, le) "
        f"(rate(cutlayer_round_trip_seconds_bucket{{{JOB}}}[{FIVE_MINUTES}]))) > 5",
        "5m",
        "warning",
        "One microbatch in twenty waits longer than {{ $value | humanizeDuration }} for its outputs",
        "See which stage grows: network points to a link, queue to a worker that is too small for its agents.",
        "cutlayer-latency",
    ),
    Alert(
        "SiteSilent",
        'cutlayer_agent_silence_seconds{agent!="other"} > 120 '
        'and on (instance, agent) cutlayer_agent_progress_ratio{agent!="other"} < 1',
        "1m",
        "warning",
        "{{ $labels.agent }} has not reported for {{ $value | humanizeDuration }}",
        "Its machine or link is down, or somebody has stopped it. Its work is kept: it goes on where it stands when it "
        "comes back. Only the 20 sites with most bytes are watched, and one that is silent for 15 minutes is no longer "
        "listed: then this alert ends, too.",
        "cutlayer-sites",
    ),
    Alert(
        "BrokerDrops",
        f"max by (job) (rate(cutlayer_broker_publish_dropped_total{{{JOB}}}[{FIVE_MINUTES}])) / "
        f"(max by (job) (rate(cutlayer_broker_publish_sent_total{{{JOB}}}[{FIVE_MINUTES}])) > 0) > 0.01",
        "2m",
        "warning",
        "The broker drops {{ $value | humanizePercentage }} of its packets",
        "Its queues are full: raise max_queued_messages and memory_limit (the worker logs its budget at its start), "
        "or lower worker.credits.",
        "cutlayer-broker",
    ),
    Alert(
        "SentAgain",
        f"{_rate('cutlayer_resends_total')} / ({_rate('cutlayer_messages_total', *_UP_TENSORS)} > 0) > 0.05",
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the microbatches' messages are sent again, and paid for again",
        "A link loses packets, or a worker answers later than the agents' deadlines: see which site it is.",
        "cutlayer-sites",
    ),
    Alert(
        "CompressionCollapsed",
        "sum by (job, codec) (rate(cutlayer_raw_bytes_total"
        f'{{{JOB},kind="Activations",codec!~"{LOSSLESS}"}}[{FIVE_MINUTES}])) / '
        "(sum by (job, codec) (rate(cutlayer_payload_bytes_total"
        f'{{{JOB},kind="Activations",codec!~"{LOSSLESS}"}}[{FIVE_MINUTES}])) > 0) < 1.2',
        "5m",
        "warning",
        "{{ $labels.codec }} makes activations only {{ $value | humanize }} times smaller",
        "The microbatches may be too small for their headers, or an agent has no byte stage. See the ratio by codec.",
        "cutlayer-communication",
    ),
    Alert(
        "RejectsHigh",
        f"""{_rate("cutlayer_rejects_total", 'reason!="busy"')} / """
        f"""({_rate("cutlayer_messages_total", 'direction="up"', 'kind!="mqtt"')} > 0) > 0.01""",
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the messages are not taken",
        "See the reasons: version and codec point to a site with another release, late to slow links, "
        "lease to agents that come and go, malformed and topic to somebody who should not be on this broker.",
        "cutlayer-broker",
    ),
    Alert(
        "PoolRoundsFailing",
        f"""{_rate("cutlayer_pool_rounds_total", 'result="failed"')} / """
        f"({_rate('cutlayer_pool_rounds_total')} > 0) > 0.2",
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the pool's rounds fail",
        "A worker hangs without dying, or the workers' network loses packets: see who is missing, and stop it.",
        "cutlayer-broker",
    ),
    Alert(
        "TrainingDiverged",
        f"cutlayer_gradient_norm{{{JOB}}} != cutlayer_gradient_norm{{{JOB}}} "
        f"or abs(cutlayer_gradient_norm{{{JOB}}}) == Inf",
        "0s",
        "critical",
        "The gradient is no number any more",
        "Stop the run, and start another with a lower optimizer.lr, or a lower optimizer.clip_norm.",
        "cutlayer-latency",
    ),
)


def rules_text(alerts: tuple[Alert, ...] = ALERTS) -> str:
    """Return the rules as Prometheus reads them."""
    lines = [
        "# Written by `python -m cutlayer.dashboards.generate` from dashboards/cutlayer/dashboards/alerts.py.",
        "groups:",
        "  - name: cutlayer",
        "    rules:",
    ]
    for alert in alerts:
        # JSON's strings are YAML's.
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expression)}",
            f"        for: {alert.hold}",
            "        labels:",
            "          service: cutlayer",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary)}",
            f"          action: {json.dumps(alert.action)}",
            f"          dashboard: /d/{alert.board}",
        ]
    return "\n".join(lines) + "\n"


def names_in(expression: str) -> set[str]:
    """Return the names of metrics that an expression reads: every word before a brace."""
    return set(re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{", expression))
