"""`scripts/verify_grafana` finds what is wrong with a Grafana.

There is no Grafana here: a small server stands in for it. That proves the script's logic, and nothing of Grafana.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.grafana import dashboard_json
from support.ports import free_port
from support.waiting import LIMIT_S

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_grafana"
Json = dict[str, Any]
FRAME: Json = {
    "schema": {"fields": [{"name": "Time", "type": "time"}, {"name": "Value", "type": "number"}]},
    "data": {"values": [[1, 2], [None, 3.0]]},
}
NAN_ONLY: Json = {**FRAME, "data": {"values": [[1, 2], [None, None]]}}


class FakeGrafana:
    """What the script asks of Grafana; `result` answers a query."""

    def __init__(self) -> None:
        self.dashboards: dict[str, Json] = {board.uid: dashboard_json(board) for board in BOARDS}
        self.health: Json = {"database": "ok", "version": "0.0.0"}
        self.needs_login = False
        self.result: Callable[[Json], Json] = lambda _: {"status": 200, "frames": [FRAME]}
        self.asked: list[Json] = []

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/api/health":
            return 200, self.health
        if self.needs_login:
            return 401, {"message": "Unauthorized"}
        if path == "/api/search?type=dash-db":
            return 200, [{"uid": uid} for uid in self.dashboards]
        uid = path.removeprefix("/api/dashboards/uid/")
        return (200, {"dashboard": self.dashboards[uid]}) if uid in self.dashboards else (404, {"message": "not found"})

    def post(self, body: Json) -> tuple[int, Any]:
        self.asked += body["queries"]
        results = {query["refId"]: self.result(query) for query in body["queries"]}
        return (400 if any("error" in result for result in results.values()) else 200), {"results": results}


@contextmanager
def served(fake: FakeGrafana) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*fake.get(self.path))

        def do_POST(self) -> None:
            assert self.path == "/api/ds/query"
            self._answer(*fake.post(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--url", url, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


def verified(fake: FakeGrafana, *flags: str) -> subprocess.CompletedProcess[str]:
    with served(fake) as url:
        return run(url, *flags)


def failures(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.removeprefix("FAIL").strip() for line in result.stdout.splitlines() if line.startswith("FAIL")]


def test_a_grafana_that_shows_everything_passes() -> None:
    fake = FakeGrafana()
    result = verified(fake)
    assert (result.returncode, failures(result)) == (0, []), result.stdout + result.stderr
    assert result.stdout.endswith("all is well\n")
    num_targets = sum(len(panel.targets) for board in BOARDS for panel in board.panels)
    assert len(fake.asked) == num_targets


def test_queries_reach_grafana_with_its_own_variables_only() -> None:
    fake = FakeGrafana()
    verified(fake)
    for query in fake.asked:
        assert set(re.findall(r"\$\w+", query["expr"])) <= {"$__rate_interval", "$__range"}
        assert query["datasource"] == {"type": "prometheus", "uid": "prometheus"}
    priced = [query["expr"] for query in fake.asked if query["expr"].endswith("* 0.09")]
    assert priced
    assert [query for query in fake.asked if query["interval"] == "15s"]


def test_a_dashboard_that_is_not_there_is_named_with_the_fix() -> None:
    fake = FakeGrafana()
    del fake.dashboards["cutlayer-sites"]
    result = verified(fake)
    assert result.returncode == 1
    assert failures(result) == ["cutlayer-sites is missing: is sites.json mounted where the provider looks?"]


def test_a_panel_that_differs_from_the_shipped_one_is_named() -> None:
    fake = FakeGrafana()
    panel = next(panel for panel in fake.dashboards["cutlayer-latency"]["panels"] if panel["title"] == "Credits")
    panel["targets"][0]["expr"] = "up"
    result = verified(fake)
    assert result.returncode == 1
    (failure,) = failures(result)
    assert failure.startswith(f"cutlayer-latency: panel Credits ({panel['id']}) differs")


def test_a_query_that_fails_is_named_with_what_is_wrong() -> None:
    fake = FakeGrafana()
    wrong = {"status": 400, "error": "parse error"}
    fake.result = lambda query: wrong if "cutlayer_credits" in query["expr"] else {"frames": [FRAME]}
    result = verified(fake)
    assert result.returncode == 1
    assert failures(result) == ["cutlayer-latency: Credits A: parse error"]


def test_a_query_without_data_fails_while_a_run_goes_on() -> None:
    fake = FakeGrafana()
    fake.result = lambda query: {"frames": [NAN_ONLY if "cutlayer_loss" in query["expr"] else FRAME]}
    result = verified(fake)
    assert result.returncode == 1
    (failure,) = failures(result)
    assert failure.startswith("cutlayer-latency: Loss A: no data")
    assert verified(fake, "--without-run").returncode == 0


def test_what_a_healthy_run_lacks_is_no_failure() -> None:
    fake = FakeGrafana()
    lacking = ("ALERTS", "cutlayer_pool_round_seconds")
    fake.result = lambda query: {"frames": [] if any(name in query["expr"] for name in lacking) else [FRAME]}
    result = verified(fake)
    assert result.returncode == 0
    assert "note cutlayer-broker: Alerts that fire A: no data (nothing is wrong)" in result.stdout


def test_a_grafana_that_wants_a_login_is_told_how_to_do_without() -> None:
    fake = FakeGrafana()
    fake.needs_login = True
    result = verified(fake)
    assert result.returncode == 1
    (failure,) = failures(result)
    assert "GF_AUTH_ANONYMOUS_ENABLED" in failure


def test_a_sick_database_is_told() -> None:
    fake = FakeGrafana()
    fake.health = {"database": "failing"}
    assert verified(fake).returncode == 1


def test_no_grafana_at_all_is_another_exit_code() -> None:
    result = run(f"http://127.0.0.1:{free_port()}")
    assert result.returncode == 2
    assert "fix: docker compose up" in result.stderr


def test_an_address_that_is_none_is_refused() -> None:
    result = run("file:///etc")
    assert result.returncode == 2
    assert "write http://HOST:PORT" in result.stderr


def test_the_script_can_be_run_as_it_stands() -> None:
    assert SCRIPT.stat().st_mode & 0o111
    assert SCRIPT.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
