"""The main job, end to end: a broker, a server worker and several edge agents, each a process of its own.

The demo starts worker and agents through the same command lines that a person types, follows them over the broker
as any onlooker could, and puts together what the run has cost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.command_line import GracefulStop
from cutlayer.broker.errors import BrokerUnreachable
from cutlayer.broker.launcher import BrokerProcess, launch_broker
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.dashboards.report import render_report
from cutlayer.dashboards.run_record import load_run, parse_run
from cutlayer.dashboards.summary import summary
from cutlayer.simulation.demo_processes import Children, Command, ProcessDied, last_lines, usage_of
from cutlayer.simulation.demo_settings import WORKER, DemoSettings, agent_commands, make_run_folder, worker_command
from cutlayer.simulation.live_view import LiveTable, PlainLines, View
from cutlayer.simulation.telemetry_feed import TelemetryFeed

__all__ = ["REPORT_FILE", "RUN_FILE", "run_demo", "write_text"]

RUN_FILE: Final = "run.json"
REPORT_FILE: Final = "report.html"
CONNECT_TIMEOUT_S: Final = 5.0
OWN_BROKER_TIMEOUT_S: Final = 60.0
"""For the connection to the broker that the demo itself has started: on a loaded machine it is there, and slow."""
AGENTS_END_TIMEOUT_S: Final = 20.0
"""Agents say goodbye when the run has ended; a reply that is lost costs them a deadline or two."""
POLL_S: Final = 0.1
_PAGE: Final = re.compile(r"live page at (\S+), metrics at \S+\n")
"""The worker's port is a free one, so that demos can run side by side: only its log tells which."""


def run_demo(settings: DemoSettings, console: Console, *, live: bool) -> Path:
    """Run the demo; nothing that it has started outlives it.

    Args:
        settings: What it is called with.
        console: Where progress and summary go.
        live: Whether to draw a table in place; lines otherwise.

    Returns:
        Path of `run.json`; the report is beside it.

    Raises:
        SettingsError: When a setting is wrong or a program is missing.
        BrokerUnreachable: When the broker named in the settings does not answer.
        ProcessDied: When a process ends before the run does.
        KeyboardInterrupt: After Ctrl-C, when everything has ended.
        SystemExit: After SIGTERM, likewise, with status 143.
    """
    settings, folder = make_run_folder(settings)
    return _Demo(settings, folder, console, live=live).run()


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece: a reader sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class _Stopped(Exception):
    """A signal asks the demo to end."""


class _Demo:
    def __init__(self, settings: DemoSettings, folder: Path, console: Console, *, live: bool) -> None:
        self._settings = settings
        self._folder = folder
        self._console = console
        self._live = live
        self._started_at = time.monotonic()
        self._stop = GracefulStop()
        self._broker: BrokerProcess | None = None
        self._logs = folder / "logs"
        self._logs.mkdir()
        self._children = Children(self._logs)
        self._commands: list[Command] = []
        self._page = ""

    def run(self) -> Path:
        try:
            with self._stop, ExitStack() as stack:
                url = self._start_broker(stack)
                feed = self._start_feed(stack, url)
                self._start_children(stack, url)
                self._follow(feed)
                broker_usage = self._broker_usage()
                self._say("stopping the broker" if self._broker else "done")
        except _Stopped:
            self._say(f"stopped; the logs are in {self._logs}")
            if self._stop.received is signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + signal.SIGTERM) from None
        return self._conclude(broker_usage)

    def _start_broker(self, stack: ExitStack) -> str:
        kind = self._settings.broker_kind
        if kind is None:
            return self._settings.broker
        self._say("starting the broker")
        log_file = self._logs / "broker.log"
        self._broker = stack.enter_context(launch_broker(BrokerOptions(kind=kind, log_file=log_file)))
        return self._broker.url

    def _start_feed(self, stack: ExitStack, url: str) -> TelemetryFeed:
        transport = MqttTransport(BrokerSettings(url=url), f"cutlayer-demo-{os.getpid()}")
        feed = TelemetryFeed(transport, self._settings.topics, WORKER, since_ms=time.time_ns() // 1_000_000)
        stack.callback(feed.close)
        feed.start()
        timeout_s = CONNECT_TIMEOUT_S if self._broker is None else OWN_BROKER_TIMEOUT_S
        end_at = time.monotonic() + timeout_s
        while not feed.is_connected:
            self._check()
            if time.monotonic() >= end_at:
                raise BrokerUnreachable(url, feed.problem or f"no connection within {timeout_s:g} s")
            feed.wait(POLL_S)
            feed.pump()
        return feed

    def _start_children(self, stack: ExitStack, url: str) -> None:
        # Entered after the broker, so ended before it: they say goodbye over it.
        stack.enter_context(self._children)
        kind = f"{self._broker.kind} at " if self._broker else ""
        self._say(f"starting {WORKER} and {self._settings.agents} agents on {kind}{url}; logs: {self._logs}")
        self._commands = [
            worker_command(self._settings, url, self._folder),
            *agent_commands(self._settings, url),
        ]
        for command in self._commands:
            self._children.start(command)

    def _follow(self, feed: TelemetryFeed) -> None:
        view: View = LiveTable(self._console) if self._live else PlainLines(self._say)

        def look() -> None:
            self._check()
            self._tell_of_page()
            feed.pump()
            view.show(feed.status, time.monotonic() - self._started_at)

        with view:
            while self._children.is_running(WORKER):
                look()
                feed.wait(POLL_S)
            all_ended = self._children.wait(AGENTS_END_TIMEOUT_S, look)
            look()
        if not all_ended:
            late = ", ".join(self._children.running())
            self._say(f"still running {AGENTS_END_TIMEOUT_S:g} s after the end of the run, now stopped: {late}")

    def _tell_of_page(self) -> None:
        if not self._page:
            found = _PAGE.search((self._logs / f"{WORKER}.log").read_text(encoding="utf-8", errors="replace"))
            if found:
                self._page = found[1]
                self._say(f"live page at {self._page}")

    def _check(self) -> None:
        """Look for a signal, and for a process that has ended too early."""
        if self._stop.should_stop():
            self._say("stopping everything; Ctrl-C kills it at once")
            raise _Stopped
        self._children.check()
        broker = self._broker
        if broker is not None and not broker.is_running():
            raise ProcessDied(
                f"broker ({broker.kind})", broker.wait() or 0, broker.log_file, last_lines(broker.log_file)
            )

    def _broker_usage(self) -> list[dict[str, Any]]:
        usage = usage_of(self._broker.pid) if self._broker is not None else None
        if self._broker is None or usage is None:
            return []
        return [
            {
                "role": "broker",
                "id": self._broker.kind,
                "peak_rss_bytes": usage.peak_rss_bytes,
                "cpu_s": usage.cpu_s,
            }
        ]

    def _conclude(self, broker_usage: list[dict[str, Any]]) -> Path:
        path = self._folder / RUN_FILE
        if not path.is_file():
            log_file = self._logs / f"{WORKER}.log"
            raise ProcessDied(WORKER, 0, log_file, last_lines(log_file))
        run = load_run(path)
        settings = self._settings
        processes = run.get("processes")
        run["processes"] = [*(processes if isinstance(processes, list) else []), *broker_usage]
        run["demo"] = {
            "agents": settings.agents,
            "alpha": settings.alpha,
            "broker": {"kind": self._broker.kind if self._broker else "running already", "wanted": settings.broker},
            "commands": {command.name: str(command) for command in self._commands},
            "duration_s": round(time.monotonic() - self._started_at, 3),
        }
        record = parse_run(run, str(path))
        write_text(path, json.dumps(run, indent=2) + "\n")
        report = self._folder / REPORT_FILE
        write_text(report, render_report(run))
        self._console.print(summary(record))
        self._say(f"report: {report}")
        return path

    def _say(self, text: str) -> None:
        # Paths stay in one piece, so that they can be copied.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
