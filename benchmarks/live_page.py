"""What the live page costs the worker: a sample a second, and the answers to a page that is open.

Agents have reported to a worker's metrics; samples are taken under a clock of the benchmark's, so that a quarter of an
hour takes seconds, and between two samples some more reports come. Times are of the processor, which do not depend on
what else the machine does.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

from cutlayer.broker.messages import Direction, MetricSums, StageTime, Telemetry, Traffic
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.live_stats import LiveStats, RunFacts
from cutlayer.dashboards.metric_labels import AGENT_STAGES, OTHER_KINDS, TENSOR_KINDS, Stage
from cutlayer.server_worker.agent_table import MAX_TOP
from cutlayer.server_worker.events import StageTimed, TelemetryTaken
from cutlayer.server_worker.http_server import GZIP_LEVEL
from cutlayer.server_worker.metrics import WorkerMetrics
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import load_run_settings

RUN = Path(__file__).parent.parent / "examples" / "digits.toml"
SHARE_LIMIT = 0.01
KINDS = [
    *((Direction(direction), kind, "int8+zstd") for kind, direction in TENSOR_KINDS.items()),
    *((Direction(direction), kind, "") for kind, directions in OTHER_KINDS.items() for direction in directions),
]


def reports(chance: random.Random) -> Iterator[Telemetry]:
    """Yield what one agent says, a report after the other."""
    histograms = [LogHistogram() for _ in range(1 + len(AGENT_STAGES))]
    for sequence in itertools.count(1):
        for histogram in histograms:
            for _ in range(3):
                histogram.add(chance.lognormvariate(-1.0, 0.7))
        moved = sequence * 200_000
        yield Telemetry(
            incarnation=1,
            sequence=sequence,
            final=False,
            epoch=1,
            steps=3 * sequence,
            total_steps=100_000,
            samples=48 * sequence,
            train=MetricSums(100.0, 50, 3_200),
            recent=MetricSums(10.0, 50, 320),
            evaluations=(),
            traffic=tuple(Traffic(*key, 3 * sequence, 4 * moved, moved, moved) for key in KINDS),
            wire_sent_bytes=20 * moved,
            wire_received_bytes=10 * moved,
            round_trips=histograms[0].counts(),
            stages=tuple(
                StageTime(stage.value, 3 * sequence, 0.1 * sequence, histogram.counts())
                for stage, histogram in zip(AGENT_STAGES, histograms[1:], strict=True)
            ),
            resends=0,
            duplicates=0,
            rejects=0,
            cpu_s=1.0,
            peak_rss_bytes=80_000_000,
        )


def measure(num_agents: int, num_samples: int) -> bool:
    """Print what samples and answers cost beside so many agents; return whether it is within the limit."""
    settings = load_run_settings(RUN, {})
    metrics = WorkerMetrics("w0", make_manifest(settings, build(settings, 0)))
    now_s = 0.0
    stats = LiveStats(
        {"w0": metrics.store},
        lambda: RunFacts("digits", "w0", "vit", "0.1.0", "training"),
        numbers=lambda: metrics.agents.numbers(MAX_TOP),
        clock=lambda: now_s,
    )
    chance = random.Random(0)  # noqa: S311 - made-up figures
    agents = {f"clinic/{index:04d}": reports(chance) for index in range(num_agents)}
    before: dict[str, Telemetry] = {}
    took_s = 0.0
    for second in range(num_samples):
        for agent, told in itertools.islice(agents.items(), None if second < 2 else 4):
            report = next(told)
            metrics(TelemetryTaken(agent, report, before.get(agent)))
            before[agent] = report
        for stage in Stage:
            metrics(StageTimed(stage.value, chance.random(), 64))
        start = time.process_time()
        stats.sample()
        took_s += time.process_time() - start
        now_s += 1.0
    sample_s = took_s / num_samples
    start = time.process_time()
    document = stats.as_json()
    whole = json.dumps(document, separators=(",", ":")).encode()
    packed = gzip.compress(whole, GZIP_LEVEL)
    whole_s = time.process_time() - start
    start = time.process_time()
    for _ in range(20):
        news = json.dumps(stats.as_json(document["taken"] - 1, document["boot"]), separators=(",", ":")).encode()
        gzip.compress(news, GZIP_LEVEL)
    news_s = (time.process_time() - start) / 20
    print(
        f"{num_agents:5} agents: a sample {1e3 * sample_s:.2f} ms, {sample_s:.2%} of a core; "
        f"first answer {len(whole) / 1e3:.0f} kB, {len(packed) / 1e3:.0f} kB packed, {1e3 * whole_s:.1f} ms; "
        f"each further one {len(news) / 1e3:.1f} kB, {1e3 * news_s:.2f} ms"
    )
    return sample_s < SHARE_LIMIT


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[4, 200, 1000], help="agents that have reported")
    parser.add_argument("--samples", type=int, default=900, help="samples, one a second (default: all that are kept)")
    options = parser.parse_args()
    costs = [measure(num_agents, options.samples) for num_agents in options.agents]
    if not all(costs):
        raise SystemExit(f"a sample takes more than {SHARE_LIMIT:.0%} of a core")


if __name__ == "__main__":
    main()
