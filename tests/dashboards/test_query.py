"""Panels' queries as PromQL, and answered from snapshots; a real Prometheus is asked for the same elsewhere."""

from __future__ import annotations

import pytest

from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.promql import promql
from cutlayer.dashboards.query import Increase, Mean, Minus, Quantile, Query, Rate, Ratio, Times, Top, Value, metrics_of
from cutlayer.dashboards.snapshots import Snapshot, Snapshots, evaluate

WIRE, SAMPLES = "cutlayer_wire_bytes_total", "cutlayer_samples_total"
UP: dict[str, str | tuple[str, ...]] = {"direction": "up"}

WRITTEN: dict[str, tuple[Query, str]] = {
    "parts of workers are added": (
        Rate(WIRE, ("kind",), UP),
        'sum by (kind) (rate(cutlayer_wire_bytes_total{direction="up"}[$__rate_interval]))',
    ),
    "what each worker sees of the run is taken once": (
        Value("cutlayer_agents"),
        "max (sum by (instance) (cutlayer_agents))",
    ),
    "several values of a label": (
        Increase(WIRE, where={"kind": ("Outputs", "Activations")}),
        'sum (increase(cutlayer_wire_bytes_total{kind=~"Outputs|Activations"}[$__range]))',
    ),
    "a value that is not wanted": (
        Rate("cutlayer_agent_steps_total", ("agent",), unless={"agent": "other"}),
        "max by (agent) (sum by (instance, agent) "
        '(rate(cutlayer_agent_steps_total{agent!="other"}[$__rate_interval])))',
    ),
    "a mean is absent where nothing was counted": (
        Mean("cutlayer_stage_seconds", ("stage",)),
        "sum by (stage) (rate(cutlayer_stage_seconds_sum[$__rate_interval])) / "
        "(sum by (stage) (rate(cutlayer_stage_seconds_count[$__rate_interval])) > 0)",
    ),
    "a quantile keeps the buckets apart": (
        Quantile("cutlayer_stage_seconds", ("stage",), share=0.95),
        "histogram_quantile(0.95, sum by (le, stage) (rate(cutlayer_stage_seconds_bucket[$__rate_interval])))",
    ),
    "a ratio is absent where it would divide by zero": (
        Ratio(Value("cutlayer_agents"), Value("cutlayer_workers")),
        "(max (sum by (instance) (cutlayer_agents))) / (max (sum by (instance) (cutlayer_workers)) > 0)",
    ),
    "a variable takes a number's place": (
        Times(Value("cutlayer_agents"), 0.09, "price"),
        "(max (sum by (instance) (cutlayer_agents))) * $price",
    ),
}


@pytest.mark.parametrize(("query", "text"), WRITTEN.values(), ids=WRITTEN)
def test_promql(query: Query, text: str) -> None:
    assert promql(query, matchers="") == text


def test_dashboards_restrict_job_and_worker() -> None:
    assert 'cutlayer_agents{job=~"$job",instance=~"$worker"}' in promql(Value("cutlayer_agents"))
    one_agents = promql(Value("cutlayer_agent_progress_ratio", ("agent",)))
    assert "$job" not in one_agents, "agents' metrics are scraped by a job of their own"


def test_metrics_of_a_query_are_all_that_it_reads() -> None:
    query = Top(Ratio(Minus(Rate(WIRE), Rate(SAMPLES)), Times(Value("cutlayer_agents"), 2)), 3)
    assert metrics_of(query) == {WIRE, SAMPLES, "cutlayer_agents"}


def two_snapshots(*workers: str) -> tuple[Snapshots, dict[str, MetricStore]]:
    stores = {worker: MetricStore() for worker in workers or ("w0",)}
    snapshots = Snapshots(rate_s=10.0)
    snapshots.add(Snapshot.of(100.0, stores))
    return snapshots, stores


def test_rate_is_per_second_and_by_group() -> None:
    snapshots, stores = two_snapshots()
    stores["w0"].add(WIRE, 50, "up", "Activations", "int8")
    stores["w0"].add(WIRE, 30, "up", "Hello", "none")
    stores["w0"].add(WIRE, 70, "down", "Outputs", "fp16")
    snapshots.add(Snapshot.of(110.0, stores))
    assert evaluate(Rate(WIRE, where=UP), snapshots) == {(): 8.0}
    by_kind = evaluate(Rate(WIRE, ("kind",)), snapshots)
    assert (by_kind["Activations",], by_kind["Outputs",]) == (5.0, 7.0)


def test_rate_of_one_snapshot_is_unknown() -> None:
    snapshots, _ = two_snapshots()
    assert evaluate(Rate(WIRE), snapshots) == {}
    assert evaluate(Rate(WIRE), Snapshots()) == {}


def test_rate_looks_back_no_further_than_it_should() -> None:
    snapshots, stores = two_snapshots()
    for at in range(101, 131):
        stores["w0"].add(SAMPLES, 100 if at <= 115 else 2)
        snapshots.add(Snapshot.of(float(at), stores))
    assert evaluate(Rate(SAMPLES), snapshots) == {(): 2.0}


def test_counter_that_starts_anew_counts_from_zero() -> None:
    snapshots, stores = two_snapshots()
    stores["w0"].add(SAMPLES, 1_000)
    snapshots = Snapshots(rate_s=10.0)
    snapshots.add(Snapshot.of(100.0, stores))
    again = {"w0": MetricStore()}
    again["w0"].add(SAMPLES, 20)
    snapshots.add(Snapshot.of(110.0, again))
    assert evaluate(Rate(SAMPLES), snapshots) == {(): 2.0}


def test_what_a_broker_had_counted_before_the_worker_came_is_no_rate() -> None:
    received = "cutlayer_broker_received_bytes_total"
    snapshots, stores = two_snapshots()
    stores["w0"].set(received, 5e9)
    snapshots.add(Snapshot.of(102.0, stores))
    assert evaluate(Rate(received), snapshots) == {(): 0.0}
    stores["w0"].set(received, 5e9 + 600)
    snapshots.add(Snapshot.of(112.0, stores))
    assert evaluate(Rate(received), snapshots) == {(): pytest.approx(60.0)}


def test_workers_are_put_together_as_the_catalogue_says() -> None:
    snapshots, stores = two_snapshots("w0", "w1")
    for store, num_bytes in zip(stores.values(), (10, 30), strict=True):
        store.add(WIRE, num_bytes, "up", "Activations", "int8")  # each counts its own part
        store.add(SAMPLES, 100)  # both count the same windows
        store.set("cutlayer_agents", 4)
    snapshots.add(Snapshot.of(110.0, stores))
    assert evaluate(Rate(WIRE, where=UP), snapshots) == {(): 4.0}
    assert evaluate(Rate(SAMPLES), snapshots) == {(): 10.0}
    assert evaluate(Value("cutlayer_agents"), snapshots) == {(): 4.0}


def test_worker_that_has_just_come_has_no_rate_yet() -> None:
    snapshots, stores = two_snapshots("w0")
    stores["w1"] = MetricStore()
    stores["w1"].add(WIRE, 10_000, "up", "Activations", "int8")
    stores["w0"].add(WIRE, 10, "up", "Activations", "int8")
    snapshots.add(Snapshot.of(110.0, stores))
    assert evaluate(Rate(WIRE, where=UP), snapshots) == {(): 1.0}


def test_quantile_and_mean_are_of_the_last_while() -> None:
    snapshots, stores = two_snapshots("w0", "w1")
    for store in stores.values():
        store.observe("cutlayer_stage_seconds", 0.02, "forward", times=50)
    snapshots = Snapshots(rate_s=10.0)
    snapshots.add(Snapshot.of(100.0, stores))
    stores["w0"].observe("cutlayer_stage_seconds", 2.0, "forward", times=3)
    stores["w1"].observe("cutlayer_stage_seconds", 4.0, "forward")
    snapshots.add(Snapshot.of(110.0, stores))
    assert evaluate(Mean("cutlayer_stage_seconds", ("stage",)), snapshots) == {("forward",): 2.5}
    assert evaluate(Quantile("cutlayer_stage_seconds", ("stage",), share=0.5), snapshots) == {
        ("forward",): pytest.approx(2.0)
    }


def test_what_would_divide_by_zero_is_absent() -> None:
    snapshots, stores = two_snapshots()
    stores["w0"].set("cutlayer_run_bytes", 100, "up", "raw")
    snapshots.add(Snapshot.of(101.0, stores))
    raw, wire = (Value("cutlayer_run_bytes", where={"measure": measure}) for measure in ("raw", "wire"))
    assert evaluate(Ratio(raw, wire), snapshots) == {}
    assert evaluate(Ratio(wire, raw), snapshots) == {(): 0.0}
    assert evaluate(Minus(raw, Times(wire, 2.0)), snapshots) == {(): 100.0}


def test_the_largest_few_in_order() -> None:
    snapshots, stores = two_snapshots()
    for number in range(6):
        stores["w0"].set("cutlayer_agent_progress_ratio", number / 10, f"clinic/{number}")
    snapshots.add(Snapshot.of(101.0, stores))
    top = evaluate(Top(Value("cutlayer_agent_progress_ratio", ("agent",)), 2), snapshots)
    assert list(top.items()) == [(("clinic/5",), 0.5), (("clinic/4",), 0.4)]


def test_an_agent_that_comes_to_be_listed_has_no_rate_of_all_that_it_has_moved_so_far() -> None:
    snapshots, stores = two_snapshots()
    moved = Rate("cutlayer_agent_wire_bytes_total", ("agent",))
    stores["w0"].set("cutlayer_agent_wire_bytes_total", 8e9, "clinic/7", "up")
    snapshots.add(Snapshot.of(105.0, stores))
    assert evaluate(moved, snapshots) == {("clinic/7",): 0.0}


def test_values_that_are_not_wanted_are_left_out() -> None:
    snapshots, stores = two_snapshots()
    for agent in ("clinic/1", "other"):
        stores["w0"].set("cutlayer_agent_progress_ratio", 0.5, agent)
    snapshots.add(Snapshot.of(101.0, stores))
    query = Value("cutlayer_agent_progress_ratio", ("agent",), unless={"agent": "other"})
    assert evaluate(query, snapshots) == {("clinic/1",): 0.5}


def test_increase_is_since_the_first_snapshot() -> None:
    snapshots, stores = two_snapshots()
    for at in range(101, 161):
        stores["w0"].add(SAMPLES, 2)
        snapshots.add(Snapshot.of(float(at), stores))
    assert evaluate(Increase(SAMPLES), snapshots) == {(): 120.0}
