"""An agent's own /metrics: off by default, in the worker's names, and what the agent has reported."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.metrics import AGENT_SHOWS, AgentMetrics
from support.message_values import TELEMETRY
from support.waiting import LIMIT_S


@pytest.fixture
def metrics() -> Iterator[AgentMetrics]:
    with AgentMetrics(0) as serving:
        yield serving


def scrape(metrics: AgentMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return values by name and label values, these in the order of their labels' names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=LIMIT_S) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_of_an_agent_is_there_before_it_has_reported(metrics: AgentMetrics) -> None:
    names = {name for name, _ in scrape(metrics)}
    for entry in AGENT_SHOWS:
        expected = {"histogram": f"{entry.name}_count", "info": f"{entry.name}_info"}.get(entry.kind, entry.name)
        assert expected in names
    assert "process_resident_memory_bytes" in names
    assert not [name for name in names if name.endswith("_created")]


def test_reports_are_shown_as_totals(metrics: AgentMetrics) -> None:
    metrics.take(TELEMETRY)
    metrics.take(replace(TELEMETRY, sequence=TELEMETRY.sequence + 1, resends=TELEMETRY.resends + 4))
    values = scrape(metrics)
    (sent,) = TELEMETRY.traffic
    key = (sent.codec, sent.direction.value, sent.kind)
    assert values["cutlayer_wire_bytes_total", key] == sent.wire_bytes
    assert values["cutlayer_raw_bytes_total", key] == sent.raw_bytes
    assert values["cutlayer_resends_total", ()] == TELEMETRY.resends + 4
    assert values["cutlayer_stage_seconds_count", ("tokenize",)] == 40
    assert values["cutlayer_codec_changes_total", ()] == TELEMETRY.codec_changes > 0
    assert values["cutlayer_paced_seconds_total", ()] == TELEMETRY.paced_s > 0
    assert values["cutlayer_rejects_total", ("lease", "agent")] == 3


def test_port_that_is_taken_is_one_error_with_a_fix() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match=r"metrics port .* cannot be used") as refused:
            AgentMetrics(taken.getsockname()[1])
    assert "--metrics-port" in str(refused.value)
