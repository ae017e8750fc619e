from __future__ import annotations

import json

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cutlayer.dashboards.live_page import load_live_page
from cutlayer.dashboards.live_stats import LiveStats, RunFacts
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.http_routes import Request, health_route, metrics_route, page_route, stats_route

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("cutlayer_windows", "Windows.", registry=registry).inc(7)
    return registry


@pytest.fixture
def stats() -> LiveStats:
    stats = LiveStats({"w0": MetricStore()}, lambda: RunFacts("digits-1", "w0", "vit", "0.1.0", "training"))
    for _ in range(3):
        stats.sample()
    return stats


def test_metrics_are_shown_as_prometheus_reads_them(registry: CollectorRegistry) -> None:
    response = metrics_route(registry)(Request())
    assert response.content_type.startswith("text/plain; version=")
    assert b"cutlayer_windows_total 7.0" in response.body


def test_whoever_prefers_openmetrics_has_it(registry: CollectorRegistry) -> None:
    response = metrics_route(registry)(Request(accept=OPENMETRICS))
    assert response.content_type.startswith("application/openmetrics-text")
    families = {family.name for family in text_string_to_metric_families(response.body.decode())}  # type: ignore[no-untyped-call]
    assert "cutlayer_windows" in families


@pytest.mark.parametrize(("is_healthy", "status"), [(True, "200 OK"), (False, "503 Service Unavailable")])
def test_health_is_a_status_and_what_the_worker_does(is_healthy: bool, status: str) -> None:
    response = health_route(lambda: (is_healthy, {"agents": 3}))(Request())
    assert (response.status, response.content_type) == (status, "application/json")
    assert json.loads(response.body) == {"agents": 3}


def test_numbers_are_never_kept_by_a_cache(registry: CollectorRegistry, stats: LiveStats) -> None:
    for route in (metrics_route(registry), stats_route(stats), health_route(lambda: (True, {}))):
        assert ("Cache-Control", "no-store") in route(Request()).headers


def test_page_comes_with_its_policy() -> None:
    page = load_live_page()
    response = page_route(page)(Request())
    assert (response.body, response.content_type) == (page.html, "text/html; charset=utf-8")
    assert ("Content-Security-Policy", page.policy) in response.headers


def test_page_asks_for_what_is_new(stats: LiveStats) -> None:
    route = stats_route(stats)
    whole = json.loads(route(Request.of("")).body)
    assert (len(whole["times"]), "board" in whole) == (3, True)
    news = json.loads(route(Request.of(f"boot={whole['boot']}&since=2")).body)
    assert (len(news["times"]), "board" in news) == (1, False)


@pytest.mark.parametrize("since", ["", "x", "-1", "1.5", "1e3", "٣", "9" * 5000])
def test_since_that_is_no_number_is_as_none(stats: LiveStats, since: str) -> None:
    boot = stats.as_json()["boot"]
    assert "board" in json.loads(stats_route(stats)(Request({"since": since, "boot": boot})).body)


def test_last_value_of_a_parameter_counts() -> None:
    assert Request.of("top=3&top=5&since=").query == {"top": "5"}


def test_query_with_far_too_many_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="fields"):
        Request.of("&".join(f"a{index}=1" for index in range(100)))
