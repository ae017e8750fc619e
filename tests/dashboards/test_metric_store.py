"""The values of metrics in one process, and how Prometheus sees them."""

from __future__ import annotations

import math
import threading
from collections import UserDict
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cutlayer.dashboards.catalogue import METRICS
from cutlayer.dashboards.metric_declaration import Kind
from cutlayer.dashboards.metric_store import Distribution, MetricStore, StoreCollector


def exposed(store: MetricStore) -> dict[str, float]:
    """Return what a scrape shows: series as text, and their values."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    text = generate_latest(registry).decode()
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_is_shown_from_the_start_at_zero() -> None:
    shown = exposed(MetricStore())
    for entry in METRICS:
        if not list(entry.initial()):
            continue
        name = f"{entry.name}_count" if entry.kind is Kind.HISTOGRAM else entry.name
        values = [value for series, value in shown.items() if series == name or series.startswith(f"{name},")]
        assert values, entry.name
        assert set(values) == {0.0}


def test_what_the_broker_counts_is_shown_from_its_first_figure_on() -> None:
    store = MetricStore()
    assert not [name for name in exposed(store) if name.startswith("cutlayer_broker_") and name.endswith("_total")]
    store.set("cutlayer_broker_received_bytes_total", 5e9)
    assert exposed(store)["cutlayer_broker_received_bytes_total"] == 5e9


def test_counters_add_up_and_gauges_are_set() -> None:
    store = MetricStore()
    store.add("cutlayer_resends_total", 2)
    store.add("cutlayer_resends_total", 3)
    store.set("cutlayer_agents", 7)
    store.set("cutlayer_agents", 4)
    shown = exposed(store)
    assert (shown["cutlayer_resends_total"], shown["cutlayer_agents"]) == (5, 4)


def test_labels_that_a_run_names_come_with_their_first_value() -> None:
    store = MetricStore()
    store.add("cutlayer_wire_bytes_total", 10, "up", "Activations", "int8+zstd")
    assert exposed(store)["cutlayer_wire_bytes_total,int8+zstd,up,Activations"] == 10


@pytest.mark.parametrize("labels", [(), ("up",), ("up", "Activations", "int8", "more")])
def test_another_number_of_labels_is_an_error(labels: tuple[str, ...]) -> None:
    with pytest.raises(KeyError, match="direction, kind, codec"):
        MetricStore().add("cutlayer_wire_bytes_total", 1, *labels)


def test_histograms_are_shown_cumulative_with_their_sum() -> None:
    store = MetricStore()
    for seconds in (0.0004, 0.0005, 0.02, 100.0):
        store.observe("cutlayer_stage_seconds", seconds, "forward")
    store.observe("cutlayer_stage_seconds", 0.02, "forward", times=3)
    shown = exposed(store)
    assert shown["cutlayer_stage_seconds_bucket,0.0005,forward"] == 2
    assert shown["cutlayer_stage_seconds_bucket,0.025,forward"] == 6
    assert shown["cutlayer_stage_seconds_bucket,+Inf,forward"] == shown["cutlayer_stage_seconds_count,forward"] == 7
    assert shown["cutlayer_stage_seconds_sum,forward"] == pytest.approx(100.0809)


def test_copies_do_not_change() -> None:
    store = MetricStore()
    store.observe("cutlayer_stage_seconds", 0.1, "forward")
    numbers, distributions = store.numbers(), store.distributions()
    store.add("cutlayer_resends_total")
    store.observe("cutlayer_stage_seconds", 0.1, "forward")
    assert numbers["cutlayer_resends_total", ()] == 0
    assert distributions["cutlayer_stage_seconds", ("forward",)].count == 1


def test_scrapes_while_series_are_added_see_whole_numbers() -> None:
    store = MetricStore()
    stop = threading.Event()

    def write() -> None:
        for number in range(20_000):
            if stop.is_set():
                return
            store.add("cutlayer_wire_bytes_total", 1, "up", "Activations", f"codec{number % 500}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            assert all(not math.isnan(value) for value in exposed(store).values())
    finally:
        stop.set()
        writer.join()


def test_quantiles_are_linear_within_a_bucket() -> None:
    distribution = Distribution((1.0, 2.0, 4.0))
    assert math.isnan(distribution.quantile(0.5))
    for value in (0.5, 1.5, 1.5, 3.0):
        distribution.add(value)
    assert distribution.quantile(0.25) == 1.0
    assert distribution.quantile(0.5) == 1.5
    distribution.add(100.0, times=100)
    assert distribution.quantile(0.99) == 4.0


def test_the_sum_of_a_histogram_never_falls_while_values_are_added() -> None:
    store = MetricStore()
    seen: list[float] = []

    class Watched(UserDict[float, int]):
        def __iter__(self) -> Iterator[float]:
            """Look at the store, as another thread may, after each value."""
            for value in self.data:
                yield value
                seen.append(store.distributions()["cutlayer_stage_seconds", ("loss",)].total)

    for _ in range(2):
        store.observe_all("cutlayer_stage_seconds", Watched({0.02: 3, 0.5: 1}), "loss", total=0.4)
        seen.append(store.distributions()["cutlayer_stage_seconds", ("loss",)].total)
    assert seen == sorted(seen)
    assert seen[-1] == 0.8
