"""Every query of every dashboard has an answer over a real run, scraped by a real Prometheus as it is shipped.

Two workers of a pool and two agents train the small digits over Mosquitto; the agents have evaluated once when the
first query is asked, and the run does not end before the last is answered.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.grafana import dashboard_json
from support.brokers import mosquitto_test, running_broker
from support.pool_processes import Lighthouse
from support.ports import free_port
from support.processes import DIGITS_FILE, Process, script
from support.prometheus import Prometheus, needs_prometheus, promtool, running_prometheus, shipped_config
from support.promql import with_variables
from support.waiting import LIMIT_S, until

pytestmark = [pytest.mark.slow, needs_prometheus]

NUM_AGENTS = 2
WORKERS = ("w0", "w1")
SETTINGS = {
    "run.epochs": "1000",
    "run.microbatch_samples": "16",
    "model.options.embed_dim": "16",
    "model.options.depth": "1",
    "model.options.num_heads": "2",
    "window.samples": "64",
    "worker.threads": "1",
    "worker.round_timeout_s": "5.0",
    "telemetry_s": "0.5",
}

NO_ANSWER: Mapping[str, str] = {
    "ALERTS": "nothing is wrong in this run",
    "cutlayer_task_metric": "the task has an accuracy",
}
"""Series that are not there in a healthy run."""
ALL_ZERO: Mapping[str, str] = {
    "cutlayer_broker_publish_dropped_total": "the broker drops nothing",
    "cutlayer_codec_changes_total": "no limit of bytes is set",
    "cutlayer_duplicates_total": "nothing comes twice",
    "cutlayer_paced_seconds_total": "no limit of the uplink is set",
    "cutlayer_pool_takeovers_total": "both workers are there from the start",
    "cutlayer_reconnects_total": "no connection is lost",
    "cutlayer_rejects_total": "every message is taken",
    "cutlayer_resends_total": "no message is lost",
    "cutlayer_agent_resends_total": "no message is lost",
    "cutlayer_checkpoint_window": "the first checkpoint may not be due yet",
    "cutlayer_checkpoint_seconds": "the first checkpoint may not be due yet",
    "cutlayer_window_open_samples": "the window may just have been committed",
    "cutlayer_live_samples": "no graph may be alive between two steps",
    "cutlayer_staleness_versions": "no window may have gone on between forward pass and commit",
    'result="failed"': "every round succeeds",
}
"""Series that are there, but 0 in a healthy run, or may be at the moment that is looked at."""


@dataclass
class World:
    """The run, as Prometheus sees it."""

    prometheus: Prometheus
    workers: tuple[str, ...]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("live")
    with ExitStack() as stack:
        ports = [free_port() for _ in WORKERS]
        targets = tuple(f"127.0.0.1:{port}" for port in ports)
        config = shipped_config(folder, targets, interval="1s")
        prometheus = stack.enter_context(running_prometheus(folder, config))
        broker = stack.enter_context(running_broker("mosquitto", figures_s=1)).url
        lighthouse = Lighthouse(folder / "lighthouse.log")
        stack.callback(lighthouse.kill)
        settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        for name, port in zip(WORKERS, ports, strict=True):
            command = [script("server-worker"), "start", "--run", str(DIGITS_FILE), *settings, "--name", name]
            command += ["--min-agents", str(NUM_AGENTS), "--broker", broker, "--http-port", str(port)]
            command += ["--output", str(folder / name), "--pool", lighthouse.url]
            stack.enter_context(Process(command, folder / f"{name}.log"))
        for index in range(NUM_AGENTS):
            command = [script("edge-agent"), "start", "--topic", f"clinic/{index:02d}", "--data", "demo:digits"]
            command += ["--shard", f"{index}/4", "--data-option", "views=1", "--data-option", "test_views=1"]
            stack.enter_context(Process([*command, "--broker", broker], folder / f"agent-{index}.log"))
        prometheus.wait_until('sum(cutlayer_accuracy_ratio{split="test"}) > 0', "evaluation")
        prometheus.wait_until("sum(rate(cutlayer_samples_total[15s] offset 15s)) > 0", "fifteen seconds of training")
        yield World(prometheus, targets)


TARGETS = [
    pytest.param(target["expr"], id=f"{board.title}: {panel['title']} {target['refId']}")
    for board in BOARDS
    for panel in dashboard_json(board)["panels"]
    for target in panel.get("targets", ())
]


@mosquitto_test
@pytest.mark.parametrize("expression", TARGETS)
def test_a_query_has_an_answer(world: World, expression: str) -> None:
    if any(name in expression for name in NO_ANSWER):
        assert world.prometheus.ask(with_variables(expression)) == {}
        return
    written = with_variables(expression, __range="30s")
    # A rate is of the last seconds, in which a loaded machine may have scraped nothing.
    if any(name in expression for name in ALL_ZERO):
        until(lambda: world.prometheus.ask(written), "data", every_s=0.2)
    else:
        until(lambda: any(world.prometheus.ask(written).values()), "data that are not all zero", every_s=0.2)


@mosquitto_test
def test_every_variable_finds_its_values(world: World) -> None:
    found = {}
    for board in BOARDS:
        for variable in dashboard_json(board)["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
                answers = world.prometheus.ask(with_variables(selector))
                found[variable["name"]] = {dict(labels)[label] for labels in answers}
    assert found["job"] == {"cutlayer"}
    assert found["worker"] == set(world.workers)
    assert found["agent"] >= {"clinic/00", "clinic/01"}
    assert set(found["codec"]) == {"lowrank:error=0.1", "int8:block=all", "store"}


@mosquitto_test
def test_both_pages_of_both_workers_are_scraped_and_pass_promtools_lint(world: World) -> None:
    until(lambda: len(world.prometheus.ask("up == 1")) == 2 * len(WORKERS), "scrapes of all pages", every_s=0.2)
    for worker in world.workers:
        for path in ("metrics", "metrics/clients?top=20"):
            with urllib.request.urlopen(f"http://{worker}/{path}", timeout=LIMIT_S) as answer:
                result = promtool("check", "metrics", text=answer.read().decode())
            assert (result.returncode, result.stdout) == (0, ""), path


@mosquitto_test
def test_the_shipped_rules_are_evaluated_without_errors_and_find_nothing_wrong(world: World) -> None:
    groups: list[dict[str, Any]] = world.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} == {"ok"}, json.dumps(rules, indent=1)
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
