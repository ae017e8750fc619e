"""What the worker's metrics cost: the time of a scrape with many agents, and their share of a training step.

A scrape goes over HTTP, as Prometheus does it, to a worker that a thousand agents have reported to. The share of a
step is measured in one run of the digits model, with its agents, over the in-memory transport: windows with all
metrics and windows with an event handler that does nothing come in turn, and what counts is the processor time that the
worker takes for each, which does not depend on what else the machine does. Windows differ by more than metrics cost, so
beside the ratio of neighbours stands what metrics took in all.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch

from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import Direction, MetricSums, StageTime, Telemetry, Traffic
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.metric_labels import AGENT_STAGES, OTHER_KINDS, TENSOR_KINDS
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.clients_route import clients_route
from cutlayer.server_worker.events import Event, TelemetryTaken
from cutlayer.server_worker.http_routes import metrics_route
from cutlayer.server_worker.http_server import HttpServer
from cutlayer.server_worker.metrics import WorkerMetrics
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.server_worker.worker_reports import WorkerReports

RUN = Path(__file__).with_name("digits_int8.toml")
SCRAPE_LIMIT_S = 0.05
LONGEST_PAGE = "/metrics/clients?top=200"
"""Ten times what Prometheus is set to ask for; shown beside the others, without a limit."""
SHARE_LIMIT = 0.01
NUM_SITES = 4
WARM_UP_WINDOWS = 20


def report(rng: random.Random, sequence: int) -> Telemetry:
    """Return what an agent could say that has trained for a while."""
    histograms = []
    for _ in range(1 + len(AGENT_STAGES)):
        histogram = LogHistogram()
        for _ in range(200 * sequence):
            histogram.add(rng.lognormvariate(-3.0, 0.7))
        histograms.append(histogram.counts())
    kinds = [(Direction(direction), kind, "fp16") for kind, direction in TENSOR_KINDS.items()]
    kinds += [(Direction(direction), kind, "") for kind, directions in OTHER_KINDS.items() for direction in directions]
    num_bytes = sequence * rng.randrange(10_000, 10_000_000)
    return Telemetry(
        incarnation=1,
        sequence=sequence,
        final=False,
        epoch=sequence,
        steps=200 * sequence,
        total_steps=1_000,
        samples=3_200 * sequence,
        train=MetricSums(100.0, 50, 3_200),
        recent=MetricSums(10.0, 50, 320),
        evaluations=(),
        traffic=tuple(Traffic(*key, 200 * sequence, 4 * num_bytes, num_bytes, num_bytes) for key in kinds),
        wire_sent_bytes=20 * num_bytes,
        wire_received_bytes=10 * num_bytes,
        round_trips=histograms[0],
        stages=tuple(
            StageTime(stage.value, 200 * sequence, 10.0 * sequence, counts)
            for stage, counts in zip(AGENT_STAGES, histograms[1:], strict=True)
        ),
        resends=sequence,
        duplicates=0,
        rejects=0,
        cpu_s=1.0,
        peak_rss_bytes=80_000_000,
    )


def scrapes(settings: RunSettings, num_agents: int, num_times: int) -> bool:
    """Print how long scrapes take, and what a report of an agent costs; return whether all are within the limit."""
    metrics = WorkerMetrics("w0", make_manifest(settings, build(settings, 0)))
    rng = random.Random(0)  # noqa: S311 - made-up figures
    reports = [(report(rng, 1), report(rng, 2)) for _ in range(num_agents)]
    start = time.perf_counter()
    for index, (first, second) in enumerate(reports):
        metrics(TelemetryTaken(f"clinic/{index:04d}", first, None))
        metrics(TelemetryTaken(f"clinic/{index:04d}", second, first))
    took_s = (time.perf_counter() - start) / (2 * num_agents)
    print(f"taking a report of 200 steps of one of {num_agents} agents: {1e6 * took_s:.0f} us")
    routes = {"/metrics": metrics_route(metrics.registry), "/metrics/clients": clients_route(metrics.agents.numbers)}
    server = HttpServer(routes, port=0)
    is_quick = True
    for path in ("/metrics", "/metrics/clients?top=20", LONGEST_PAGE):
        times_s, num_bytes = [], 0
        for _ in range(num_times):
            start = time.perf_counter()
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
                num_bytes = len(answer.read())
            times_s.append(time.perf_counter() - start)
        median_s = statistics.median(times_s)
        is_quick &= median_s < SCRAPE_LIMIT_S or path == LONGEST_PAGE
        print(
            f"{path:26} {num_bytes / 1000:6.1f} kB  median {1e3 * median_s:5.1f} ms  "
            f"({1e3 * min(times_s):.1f} to {1e3 * max(times_s):.1f} ms, {num_times} times)"
        )
    server.close()
    return is_quick


class Timed:
    """Does something, and notes the processor time that it takes.

    Args:
        function: What to do.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.total_s = 0.0
        self.is_on = True
        self._function = function

    def __call__(self, *arguments: object, **named: object) -> None:
        """Do it, where it is on."""
        if self.is_on:
            start = time.thread_time()
            self._function(*arguments, **named)
            self.total_s += time.thread_time() - start


def share_of_a_step(settings: RunSettings, num_windows: int) -> bool:
    """Print what metrics add to the worker's time for a window; return whether it is within the limit."""
    torch.set_num_threads(1)  # so that this thread's processor time is all that a window takes
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    session = make_session(settings, manifest, "w0")
    metrics = WorkerMetrics("w0", manifest)
    handler = Timed(metrics)

    def on_event(event: Event) -> None:
        handler(event)

    broker = MemoryBroker(time.monotonic)
    runtime = WorkerRuntime(
        MemoryTransport(broker, "w0"),
        session,
        make_engine(settings, built),
        built.tokenizer_file,
        RunBook(manifest, built.num_tokenizer_parameters),
        on_event=on_event,
        reports=WorkerReports(metrics.store, metrics.agents),
        options=WorkerOptions(asks_broker=True, checkpoint_every_windows=1_000_000_000),
    )
    look = Timed(runtime._observer.look)
    runtime._observer.look = look  # type: ignore[method-assign]
    agents = [_agent(broker, index, settings) for index in range(NUM_SITES)]
    runtime.start()
    times_s: dict[bool, list[float]] = {True: [], False: []}
    metrics_s: list[float] = []
    spent_s, window = 0.0, 0
    while window < WARM_UP_WINDOWS + num_windows:
        start = time.thread_time()
        runtime.pump(time.monotonic())
        spent_s += time.thread_time() - start
        for agent in agents:
            agent.pump(time.monotonic())
        if session.window > window:
            window = session.window
            is_on = handler.is_on
            if window > WARM_UP_WINDOWS:
                times_s[is_on].append(spent_s)
                # Events of a sample count in both: this says rather too much than too little.
                metrics_s += [look.total_s + handler.total_s] if is_on else []
            spent_s = handler.total_s = look.total_s = 0.0
            handler.is_on = look.is_on = not is_on
    ratios = [on / off for on, off in zip(times_s[True], times_s[False], strict=False)]
    share = sum(metrics_s) / sum(times_s[True])
    print(
        f"a window: {1e3 * statistics.median(times_s[True]):.1f} ms with metrics, "
        f"{1e3 * statistics.median(times_s[False]):.1f} ms without; ratio of neighbours {_spread(ratios)}, "
        f"{len(ratios)} pairs"
    )
    print(
        f"metrics took {1e3 * statistics.median(metrics_s):.3f} ms a window in the median, "
        f"{100 * share:.2f} % of the worker's time in all"
    )
    return share < SHARE_LIMIT


def _spread(ratios: list[float]) -> str:
    first, median, third = statistics.quantiles(ratios, n=4)
    return f"{median:.3f} (half of them {first:.3f} to {third:.3f})"


def _agent(broker: MemoryBroker, index: int, settings: RunSettings) -> AgentRuntime:
    data = open_dataset("demo:digits", shard=Shard(index, NUM_SITES), seed=settings.run.seed)
    incarnation = time.time_ns() // 1_000_000
    agent = AgentRuntime(MemoryTransport(broker, f"site-{index}"), f"site/{index}", incarnation, lambda _: data)
    agent.start()
    return agent


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--scrapes", type=int, default=50)
    parser.add_argument("--windows", type=int, default=300)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    settings = load_run_settings(RUN, {"run.min_agents": NUM_SITES, "run.epochs": 1_000, "evaluation.every_epochs": 0})
    is_quick = scrapes(settings, arguments.agents, arguments.scrapes)
    is_light = share_of_a_step(settings, arguments.windows)
    print(
        f"scrapes under {1e3 * SCRAPE_LIMIT_S:.0f} ms: {is_quick}; under {100 * SHARE_LIMIT:g} % of a step: {is_light}"
    )
    raise SystemExit(not (is_quick and is_light))


if __name__ == "__main__":
    main()
