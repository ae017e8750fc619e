"""The files that Prometheus and Grafana are started with say what the dashboards count on."""

from __future__ import annotations

from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest

from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.grafana_panels import AGENT_SCRAPE_INTERVAL
from cutlayer.dashboards.metric_declaration import Kind
from cutlayer.dashboards.metric_store import MetricStore, StoreCollector
from support.prometheus import SHIPPED, needs_prometheus, promtool

PROVISIONING = SHIPPED.parent / "provisioning"


def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    return found


@needs_prometheus
def test_promtool_takes_the_configuration() -> None:
    result = promtool("check", "config", SHIPPED / "prometheus.yml")
    assert result.returncode == 0, result.stdout
    assert "1 rule files found" in result.stdout


@needs_prometheus
def test_promtool_takes_the_names_and_units_of_all_metrics() -> None:
    store = MetricStore((*METRICS, *AGENT_METRICS))
    for entry in store.metrics:
        labels = [(values or ("x",))[0] for values in entry.labels.values()]
        if entry.kind is Kind.HISTOGRAM:
            store.observe(entry.name, 1.0, *labels)
        else:
            store.set(entry.name, 1.0, *labels)
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    result = promtool("check", "metrics", text=generate_latest(registry).decode())
    assert (result.returncode, result.stdout) == (0, "")


def test_workers_are_found_by_the_name_of_their_service_and_asked_for_both_pages() -> None:
    workers, agents = config()["scrape_configs"]
    assert (workers["job_name"], workers["metrics_path"]) == ("cutlayer", "/metrics")
    assert (agents["job_name"], agents["metrics_path"]) == ("cutlayer-agents", "/metrics/clients")
    assert agents["params"] == {"top": ["20"]}
    for job in (workers, agents):
        (discovery,) = job["dns_sd_configs"]
        assert (discovery["names"], discovery["type"], discovery["port"]) == (["server_worker"], "A", 9108)


def test_grafana_counts_on_the_intervals_that_prometheus_has() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    settings = config()
    assert source["jsonData"]["timeInterval"] == settings["global"]["scrape_interval"]
    assert settings["scrape_configs"][1]["scrape_interval"] == AGENT_SCRAPE_INTERVAL
    assert (source["uid"], source["url"], source["editable"]) == ("prometheus", "http://prometheus:9090", False)


def test_dashboards_are_read_from_the_folder_they_are_mounted_at() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "cutlayer.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert not provider["allowUiUpdates"]
    for board in BOARDS:
        assert (SHIPPED.parent / f"{board.uid.removeprefix('cutlayer-')}.json").is_file()
