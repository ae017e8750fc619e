"""A run of real processes, looked at in a real browser until it has ended."""

from __future__ import annotations

import json
from pathlib import Path

from cutlayer.dashboards.overview_board import OVERVIEW, TASK_METRIC
from support.brokers import mosquitto_test, running_broker
from support.headless_browser import headless_browser, needs_chromium
from support.processes import DIGITS_FILE, SMALL_DIGITS, Process, script
from support.waiting import LIMIT_S

pytestmark = [*needs_chromium]

SITES = ("clinic/00", "clinic/01")
# The digits have an accuracy and so no other metric, and that panel says so.
EMPTY = f"""return [...document.querySelectorAll('.panel')]
    .filter((panel) => panel.querySelector('h3').textContent !== '{TASK_METRIC.title}')
    .filter((panel) => panel.querySelector('.empty:not([hidden])'))"""
SHOWS_EVERY_SITE = f"""const names = [...document.querySelectorAll('.bars .name')].map((each) => each.textContent)
    return {json.dumps(SITES)}.every((site) => names.includes(site))"""
FILLED = f"{EMPTY}.length === 0 && document.querySelectorAll('.panel').length === {len(OVERVIEW.panels)}"


def settings() -> list[str]:
    flags = []
    for key, value in (SMALL_DIGITS | {"run.epochs": 12}).items():
        if isinstance(value, dict):
            text = "{" + ", ".join(f"{name} = {number}" for name, number in value.items()) + "}"
        else:
            text = json.dumps(value)
        flags += ["--set", f"{key}={text}"]
    return flags


@mosquitto_test
def test_run_shows_every_panel_and_then_that_it_has_ended(tmp_path: Path) -> None:
    with running_broker("mosquitto", figures_s=1) as broker, headless_browser() as browser:
        worker = [script("server-worker"), "start", "--run", str(DIGITS_FILE), "--broker", broker.url, "--name", "w0"]
        worker += ["--http-port", "0", "--min-agents", str(len(SITES)), "--output", str(tmp_path / "run"), *settings()]
        agents = [
            [script("edge-agent"), "start", "--topic", site, "--data", "demo:digits", "--shard", f"{index}/16"]
            for index, site in enumerate(SITES)
        ]
        with Process(worker, tmp_path / "worker.log") as serving:
            serving.wait_for("live page at ")
            url = serving.text().partition("live page at ")[2].partition(",")[0]
            assert url.startswith("http://127.0.0.1:")
            browser.open(url)
            browser.wait_until("return document.querySelectorAll('.panel').length > 0", LIMIT_S)
            assert browser.run("return document.getElementById('phase').textContent") == "waiting"
            with (
                Process([*agents[0], "--broker", broker.url], tmp_path / "agent-0.log"),
                Process([*agents[1], "--broker", broker.url], tmp_path / "agent-1.log"),
            ):
                browser.wait_until(FILLED, LIMIT_S)
                assert browser.console() == []
                asked = {address.partition("?")[0] for address in browser.requested()}
                assert {address for address in asked if not address.startswith("data:")} == {
                    url,
                    f"{url}api/stats.json",
                }
                # An agent that starts later is in no panel yet when the first has filled them all.
                browser.wait_until(SHOWS_EVERY_SITE, LIMIT_S)
                browser.wait_until("return document.getElementById('phase').textContent === 'ended'", 2 * LIMIT_S)
            assert serving.exit_code() == 0
        text = browser.run("return document.getElementById('banner').textContent")
        assert text.startswith("The run has ended here")
        assert browser.run(f"{EMPTY}.length") == 0
