"""The live page as Chromium draws it, over a worker's HTTP port and figures that the test sets."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.live_page import load_live_page
from cutlayer.dashboards.live_stats import LiveStats, RunFacts
from cutlayer.dashboards.metric_labels import TENSOR_KINDS, Stage
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.overview_board import OVERVIEW, TASK_METRIC
from cutlayer.dashboards.panels import Shape
from cutlayer.server_worker.http_routes import page_route, stats_route
from cutlayer.server_worker.http_server import HttpServer
from support.headless_browser import HeadlessBrowser, headless_browser, needs_chromium
from support.manual_clock import ManualClock
from support.ports import free_port

pytestmark = [*needs_chromium]

HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"
DRAWN = "return document.querySelectorAll('.panel').length > 0"
NUM_PANELS = len(OVERVIEW.panels)
# A run whose task has an accuracy has no other metric, and that panel says so.
EMPTY = f"""return [...document.querySelectorAll('.panel')]
    .filter((panel) => panel.querySelector('h3').textContent !== '{TASK_METRIC.title}')
    .flatMap((panel) => [...panel.querySelectorAll('.empty:not([hidden])')].map((each) => each.textContent))"""
TIMEOUT_S = 120.0


class Worker:
    """Figures, and the port that shows them."""

    def __init__(self, port: int) -> None:
        self.store = MetricStore((*METRICS, *AGENT_METRICS))
        self.clock = ManualClock()
        self.phase = "waiting"
        self.stats = LiveStats({"w0": self.store}, self.facts, clock=self.clock)
        self.server = HttpServer(
            {"/": page_route(load_live_page()), "/api/stats.json": stats_route(self.stats)}, port=port
        )
        self.url = f"http://127.0.0.1:{self.server.port}/"
        self.store.set("cutlayer_broker_connected", 1)
        self.chance = random.Random(0)

    def facts(self) -> RunFacts:
        return RunFacts(
            "digits-1", "w0", "vit_tiny (depth=4)", "0.1.0", self.phase, "all agents have done their epochs"
        )

    def wait(self, seconds: int = 1) -> Worker:
        for _ in range(seconds):
            self.stats.sample()
            self.clock.now_s += 1.0
        return self

    def train(self, seconds: int = 1, *sites: str) -> Worker:
        """Let so many seconds of training happen, with everything that a panel may show."""
        store, chance = self.store, self.chance
        self.phase = "training"
        store.set("cutlayer_run_phase", 0, "waiting")
        store.set("cutlayer_run_phase", 1, "training")
        store.set("cutlayer_agents", 4)
        store.set("cutlayer_broker_reports", 1)
        for second in range(seconds):
            for kind, direction in TENSOR_KINDS.items():
                store.add("cutlayer_wire_bytes_total", chance.uniform(1e4, 1e6), direction, kind, "int8+zstd")
                store.add("cutlayer_messages_total", 3, direction, kind, "int8+zstd")
            for direction in ("up", "down"):
                for measure, size in (("raw", 4.0e6), ("payload", 1.0e6), ("wire", 1.1e6)):
                    store.add("cutlayer_run_bytes", size, direction, measure)
            for stage in Stage:
                store.observe("cutlayer_stage_seconds", chance.uniform(0.001, 0.1), stage.value)
            for _ in range(20):
                store.observe("cutlayer_round_trip_seconds", chance.uniform(0.05, 0.4))
            store.add("cutlayer_samples_total", chance.uniform(100, 200))
            store.set("cutlayer_run_progress_ratio", min(second / 600, 1.0))
            for split in ("train", "test"):
                store.set("cutlayer_accuracy_ratio", min(0.1 + second / 100, 0.9), split)
            for index, site in enumerate(sites or ("clinic/00", "clinic/01", "clinic/02", "clinic/03")):
                store.set("cutlayer_agent_round_trip_seconds", 0.2 + 0.8 * index, site, "0.95")
            for name in ("received", "sent"):
                store.add(f"cutlayer_broker_{name}_bytes_total", 1e6)
            self.wait()
        return self


@pytest.fixture(scope="module")
def browser() -> Iterator[HeadlessBrowser]:
    with headless_browser() as running:
        yield running


@pytest.fixture
def worker(browser: HeadlessBrowser) -> Iterator[Worker]:
    running = Worker(free_port())  # one that is nobody's while the worker is away
    browser.look(1440)
    browser.open("about:blank")
    browser.console()
    browser.requested()
    yield running
    running.server.close()


def opened(browser: HeadlessBrowser, worker: Worker) -> HeadlessBrowser:
    browser.open(worker.url)
    browser.wait_until(DRAWN, TIMEOUT_S)
    return browser


def test_every_panel_of_the_overview_is_there_in_its_order_and_filled(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(30))
    titles = browser.run("return [...document.querySelectorAll('.panel h3')].map((each) => each.textContent)")
    assert titles == [panel.title for panel in OVERVIEW.panels]
    assert browser.run(EMPTY) == []
    assert browser.run("return document.querySelectorAll('canvas').length") == sum(
        panel.shape in (Shape.LINES, Shape.STACK) for panel in OVERVIEW.panels if panel is not TASK_METRIC
    )


def test_page_has_no_complaint_and_asks_nobody_else(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(5))
    browser.wait_until("return performance.getEntriesByType('resource').length >= 3", TIMEOUT_S)
    assert browser.console() == []
    asked = [url for url in browser.requested() if not url.startswith(("data:", "about:"))]
    assert {url.partition("?")[0] for url in asked} == {worker.url, f"{worker.url}api/stats.json"}


def test_what_happens_is_drawn_without_loading_the_page_again(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(3))
    worker.store.set("cutlayer_agents", 17)
    worker.wait()
    browser.wait_until("return document.querySelector('[data-panel=\"0\"] b').textContent === '17'", TIMEOUT_S)
    assert browser.requested().count(worker.url) == 1
    assert browser.run("return 'board' in store.document") is False


def test_panels_without_data_say_what_they_wait_for(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.wait(3))
    texts = browser.run(EMPTY)
    assert "no data yet: waiting for agents" in texts
    assert browser.run("return document.querySelector('.headline strong').textContent") == "Waiting for sites"


def test_broker_that_tells_nothing_of_itself_is_said_to(browser: HeadlessBrowser, worker: Worker) -> None:
    worker.train(3)
    worker.store.set("cutlayer_broker_reports", 0)
    opened(browser, worker.wait(901))
    assert "this broker tells nothing of itself ($SYS)" in browser.run(EMPTY)


def test_names_that_peers_choose_stay_text(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(3, "clinic/00", HOSTILE))
    names = browser.run("return [...document.querySelectorAll('.bars .name')].map((each) => each.textContent)")
    assert HOSTILE in names
    assert browser.run("return document.querySelector('.headlines').textContent.includes(arguments[0])", HOSTILE)
    assert "taken over" not in browser.run("return document.title")
    assert browser.run("return document.querySelectorAll('img, script').length") == 1
    assert browser.console() == []


def test_worker_that_goes_silent_is_said_to_and_its_last_words_stay(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(5))
    worker.server.close()
    browser.wait_until("return !document.getElementById('banner').hidden", TIMEOUT_S)
    assert "has not answered" in browser.run("return document.getElementById('banner').textContent")
    assert browser.run(EMPTY) == []


def test_worker_that_comes_back_is_drawn_from_the_beginning(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(5))
    worker.server.close()
    browser.wait_until("return !document.getElementById('banner').hidden", TIMEOUT_S)
    again = Worker(worker.server.port)
    again.store.set("cutlayer_agents", 9)
    again.wait(2)
    browser.wait_until("return document.getElementById('banner').hidden", TIMEOUT_S)
    browser.wait_until("return document.querySelector('[data-panel=\"0\"] b').textContent === '9'", TIMEOUT_S)
    assert browser.run("return store.times.length") == 2
    again.server.close()


def test_end_of_the_run_is_told_and_the_page_keeps_what_it_has(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(5))
    worker.stats.finish(wait_s=TIMEOUT_S)
    worker.server.close()
    browser.wait_until("return !document.getElementById('banner').hidden", TIMEOUT_S)
    browser.wait_until("return numFailures > 2", TIMEOUT_S)
    text = browser.run("return document.getElementById('banner').textContent")
    assert text.startswith("The run has ended here (all agents have done their epochs).")
    assert browser.run("return document.getElementById('phase').textContent") == "ended"
    assert browser.run(EMPTY) == []


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440, 2560])
def test_page_fits_every_width(browser: HeadlessBrowser, worker: Worker, width: int) -> None:
    browser.look(width, 844)
    opened(browser, worker.train(20))
    assert browser.run("return document.documentElement.scrollWidth") <= width
    narrowest = browser.run(
        "return Math.min(...[...document.querySelectorAll('.panel')].map((each) => each.clientWidth))"
    )
    assert narrowest >= 100


def test_description_shows_on_focus_and_escape_hides_it(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(3))
    browser.run("document.querySelector('[data-panel=\"5\"] .info').focus()")
    text = browser.run("return document.getElementById('tip').textContent")
    assert OVERVIEW.panels[5].description in text
    assert "cutlayer_run_bytes" in text
    box = browser.run(
        "const box = document.getElementById('tip').getBoundingClientRect(); return [box.left, box.right]"
    )
    assert box[0] >= 0
    assert box[1] <= 1440
    browser.press("\ue00c")  # Escape
    assert browser.run("return document.getElementById('tip')") is None


def test_keys_move_one_crosshair_over_all_charts(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(30))
    browser.run("document.querySelector('.chart').focus()")
    browser.press("\ue012", "\ue012")  # Arrow left, twice
    times = browser.run(
        "return [...document.querySelectorAll('.legend li:last-child')].map((each) => each.textContent)"
    )
    assert len(times) == len(set(times)) + len(times) - 1
    assert times[0].startswith("at ")
    browser.press("\ue00c")
    assert not browser.run("return document.querySelector('.legend li:last-child').textContent").startswith("at ")


def test_charts_have_their_values_as_text(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(30))
    labels = browser.run(
        "return [...document.querySelectorAll('.chart')].map((each) => each.getAttribute('aria-label'))"
    )
    assert any(label.startswith("Accuracy: test 39 %, train 39 %") for label in labels)
    buttons = browser.run(
        "return [...document.querySelectorAll('.info')].map((each) => each.getAttribute('aria-label'))"
    )
    assert len(buttons) == NUM_PANELS
    assert all(panel.description in button for panel, button in zip(OVERVIEW.panels, buttons, strict=True))


def test_dark_and_light_are_the_readers_choice(browser: HeadlessBrowser, worker: Worker) -> None:
    opened(browser, worker.train(3))
    light = browser.run("return getComputedStyle(document.body).backgroundColor")
    browser.look(1440, dark=True)
    dark = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert light != dark
    assert browser.run(EMPTY) == []


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0, "decbytes", None, "0 B"),
        (999, "decbytes", None, "999 B"),
        (999.6, "decbytes", None, "1 kB"),
        (1536, "decbytes", None, "1.54 kB"),
        (14_100_000, "decbytes", None, "14.1 MB"),
        (2_500_000, "Bps", None, "2.5 MB/s"),
        (0.0123, "s", None, "12.3 ms"),
        (0.00042, "s", None, "420 µs"),
        (1.5, "s", None, "1.5 s"),
        (125, "s", None, "2.08 min"),
        (0.954, "percentunit", 0, "95 %"),
        (0.954, "percentunit", None, "95.4 %"),
        (34.84, "cps", None, "34.8 /s"),
        (3.84, "suffix:x", 1, "3.8x"),
        (12345.6, "none", None, "12,346"),
        (4, "none", 0, "4"),
        (None, "s", None, "-"),
    ],
)
def test_values_are_written_as_grafana_writes_them(
    browser: HeadlessBrowser, worker: Worker, value: float | None, unit: str, decimals: int | None, text: str
) -> None:
    if browser.run("return document.title") == "":
        opened(browser, worker)
    arguments = ", ".join(map(json.dumps, (value, unit, decimals)))
    assert browser.run(f"return formatValue({arguments})") == text
