"""Grafana and the pages without Prometheus cannot disagree: a real Prometheus answers every query as `evaluate` does.

A made-up history of two workers is loaded into Prometheus, and kept as snapshots. Counters grow by chance and gauges
jump, so that no two answers are equal by accident.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from prometheus_client.registry import Collector

from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.catalogue import AGENT_METRICS, LATENCY_BUCKETS_S, METRICS
from cutlayer.dashboards.communication_board import DEFAULT_PRICE_PER_GB
from cutlayer.dashboards.latency_board import DEFAULT_SLO_S
from cutlayer.dashboards.metric_declaration import Kind, Metric
from cutlayer.dashboards.metric_store import MetricStore, StoreCollector
from cutlayer.dashboards.promql import promql
from cutlayer.dashboards.query import (
    Buckets,
    Increase,
    Mean,
    Minus,
    Quantile,
    Query,
    Rate,
    Ratio,
    Times,
    Top,
    Value,
    Within,
    Written,
)
from cutlayer.dashboards.snapshots import Group, Snapshot, Snapshots, evaluate
from support.prometheus import Labels, Prometheus, backfill, needs_prometheus, running_prometheus
from support.promql import with_variables

pytestmark = needs_prometheus

STEP_S = 5.0
RATE_S = 15.0
NUM_STEPS = 12
BEGIN_S = 1_700_006_400.0
"""Within one of the two-hour blocks of Prometheus' storage."""
END_S = BEGIN_S + NUM_STEPS * STEP_S
RATE_WINDOW, SPAN = "15001ms", f"{int(NUM_STEPS * STEP_S)}001ms"
"""A millisecond more than the samples span: Prometheus 3 leaves out what lies on the left edge, 2 does not."""

RUN_NAMES = {
    "codec": ("int8+zstd", "fp16"),
    "kind": ("Activations", "Outputs"),
    "agent": tuple(f"clinic/{number:02d}" for number in range(30)),
    "worker": ("w0",),
    "model": ("vit",),
    "version": ("1",),
    "split": ("train", "test"),
    "metric": ("mean absolute error, years",),
    "better": ("less",),
}
WORKERS = ("w0:9108", "w1:9108")
QUERIES = [
    pytest.param(target.query, id=f"{board.title}: {panel.title}: {target.legend}")
    for board in BOARDS
    for panel in board.panels
    for target in panel.targets
    if not isinstance(target.query, Written)
]


def series_of(entry: Metric) -> list[tuple[str, ...]]:
    """Return the label values of a metric's series; those that a run names are a few."""
    found: list[tuple[str, ...]] = [()]
    for label, values in entry.labels.items():
        found = [(*labels, value) for labels in found for value in values or RUN_NAMES[label]]
    return sorted({*found, *entry.combinations})


class Worker:
    """A worker whose figures go on by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store = MetricStore((*METRICS, *AGENT_METRICS))
        for entry in self.store.metrics:
            for labels in series_of(entry):
                self.store.initialise(entry.name, *labels)

    def go_on(self) -> None:
        for entry in self.store.metrics:
            for labels in series_of(entry):
                match entry.kind:
                    case Kind.COUNTER:
                        self.store.add(entry.name, self.chance.uniform(1.0, 1e6), *labels)
                    case Kind.GAUGE:
                        self.store.set(entry.name, self.chance.uniform(0.1, 1e6), *labels)
                    case Kind.HISTOGRAM:
                        # Where the first bucket is empty, Prometheus says NaN for the share 0, which nobody asks for.
                        self.store.observe(entry.name, 0.0, *labels)
                        for _ in range(5):
                            self.store.observe(entry.name, self.chance.lognormvariate(-2.0, 3.0), *labels)


class History:
    """All samples of the workers, as Prometheus would have scraped them."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, Labels], dict[float, float]] = {}

    def scrape(self, collector: Collector, instance: str, at_s: float) -> None:
        for family in collector.collect():
            for sample in family.samples:
                labels = {**sample.labels, "job": "cutlayer", "instance": instance}
                key = (f"{family.name} {family.type}", sample.name, tuple(sorted(labels.items())))
                self.series.setdefault(key, {})[at_s] = sample.value

    def by_family(self) -> dict[tuple[str, str, Labels], dict[float, float]]:
        return dict(sorted(self.series.items()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Snapshots]]:
    workers = {name: Worker(seed) for seed, name in enumerate(WORKERS)}
    history, snapshots = History(), Snapshots(RATE_S)
    for step in range(NUM_STEPS + 1):
        at_s = BEGIN_S + step * STEP_S
        for name, worker in workers.items():
            worker.go_on()
            history.scrape(StoreCollector(worker.store), name, at_s)
        snapshots.add(Snapshot.of(at_s, {name: worker.store for name, worker in workers.items()}))
    folder = tmp_path_factory.mktemp("history")
    backfill(folder, history.by_family())
    config = folder / "prometheus.yml"
    config.write_text("{}\n")
    with running_prometheus(folder, config, "--storage.tsdb.retention.time=100y") as prometheus:
        yield prometheus, snapshots


def kept_labels(query: Query) -> tuple[str, ...]:
    """Return the labels that the answers of a query have, in the order of its groups."""
    match query:
        case Ratio():
            return kept_labels(query.above)
        case Minus():
            return kept_labels(query.first)
        case Times() | Top():
            return kept_labels(query.query)
        case Buckets():
            return (*query.by, "le")
        case Written():
            raise AssertionError("no snapshot answers it")
        case _:
            return query.by


def asked(prometheus: Prometheus, query: Query) -> dict[Group, float]:
    expression = with_variables(
        promql(query),
        __rate_interval=RATE_WINDOW,
        __range=SPAN,
        slo=repr(DEFAULT_SLO_S),
        price_per_gb=repr(DEFAULT_PRICE_PER_GB),
    )
    answers = prometheus.ask(expression, END_S)
    return {tuple(dict(labels)[name] for name in kept_labels(query)): value for labels, value in answers.items()}


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_shows_the_same_with_prometheus_and_without(world: tuple[Prometheus, Snapshots], query: Query) -> None:
    prometheus, snapshots = world
    expected = evaluate(query, snapshots)
    assert expected
    assert asked(prometheus, query) == pytest.approx(expected, rel=1e-4)


ROUND_TRIP = "cutlayer_round_trip_seconds"
WIRE = "cutlayer_wire_bytes_total"


@pytest.mark.parametrize(
    "query",
    [
        Value("cutlayer_accuracy_ratio", ("split",)),
        Value("cutlayer_agents"),
        Rate(WIRE, ("direction", "codec")),
        Rate(WIRE, where={"kind": ("Activations", "Outputs")}),
        Increase("cutlayer_samples_total"),
        Mean("cutlayer_stage_seconds", ("stage",)),
        *(Quantile(ROUND_TRIP, share=share) for share in (0.0, 0.01, 0.5, 0.95, 0.99, 1.0)),
        Quantile("cutlayer_staleness_versions", share=0.05),
        Buckets("cutlayer_stage_seconds", ("stage",)),
        *(Within(ROUND_TRIP, bound=bound) for bound in LATENCY_BUCKETS_S),
        Within("cutlayer_stage_seconds", ("stage",), {"stage": ("queue", "wait")}, bound=0.5),
        Ratio(Rate(WIRE, ("direction",)), Rate("cutlayer_raw_bytes_total", ("direction",))),
        Minus(Value("cutlayer_run_bytes", where={"measure": "raw"}), Value("cutlayer_live_samples")),
        Times(Ratio(Rate(WIRE), Value("cutlayer_agents")), 0.25),
        Top(Value("cutlayer_agent_wire_bytes_total", ("agent",)), 5),
    ],
    ids=promql,
)
def test_every_kind_of_query_means_the_same_in_both(world: tuple[Prometheus, Snapshots], query: Query) -> None:
    prometheus, snapshots = world
    assert asked(prometheus, query) == pytest.approx(evaluate(query, snapshots), rel=1e-4)


def test_what_would_divide_by_zero_is_absent_in_both(world: tuple[Prometheus, Snapshots]) -> None:
    prometheus, snapshots = world
    nothing = Minus(Value("cutlayer_agents"), Value("cutlayer_agents"))
    query = Ratio(Value("cutlayer_workers"), nothing)
    assert asked(prometheus, query) == evaluate(query, snapshots) == {}
