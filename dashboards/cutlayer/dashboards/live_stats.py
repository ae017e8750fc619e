"""The worker's own numbers, kept for a quarter of an hour and served as JSON: `/api/stats.json`.

A thread takes a snapshot once a second and answers every query of the overview from it; requests only read what is
there. The training thread never waits: a snapshot copies the stores, which Python does in single steps (metric_store).

The document, format 1:

    boot        names this process; a page that sees another one starts over
    taken       samples since the start; ask with `?boot=...&since=<taken>` for those after it
    kept        samples that the worker keeps, and a page should
    interval_s  seconds from one sample to the next
    now         the worker's clock, seconds since 1970
    run         facts: run, worker, model, version, phase, reason, is_over
    num_agents  agents that hold a lease
    headlines   the overview's questions, answered in words
    board       titles, units, descriptions, shapes and widths; left out where `since` was given
    times       of the samples, seconds since 1970
    series      panel and target (places on the board), name, colour (a meaning, or empty) and values: one for each
                time, null for none; of bars the last value only
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cutlayer.dashboards.headlines import AGENTS, HEADLINE_METRICS, headlines
from cutlayer.dashboards.live_history import History, Series
from cutlayer.dashboards.metric_store import MetricStore, SeriesKey
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panel_text import group_labels, legend_text
from cutlayer.dashboards.panels import Board, Panel
from cutlayer.dashboards.snapshots import Snapshot, Snapshots, evaluate

__all__ = ["LiveStats", "RunFacts", "board_as_json"]

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
KEEP_S: Final = 15 * 60.0
RATE_S: Final = 15.0
"""As far as a rate looks back in Grafana, too: three scrapes of 5 s."""
NUMBERS_SHARE: Final = 0.001
"""Of a core, for the numbers of single agents."""
WATCHED_S: Final = 3.0
"""A page that has asked within this time is one that somebody looks at."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a page says of the run.

    Attributes:
        run: Its id.
        worker: The worker's name.
        model: Name of the encoder.
        version: Of Cutlayer.
        phase: Such as training.
        reason: Why it is over; told only once it is.
    """

    run: str
    worker: str
    model: str
    version: str
    phase: str
    reason: str = ""


class LiveStats:
    """Samples in a thread of its own from `start` to `finish`.

    Args:
        stores: Values by worker. Other threads may write them.
        facts: Returns what to say of the run.
        numbers: Returns more numbers of this worker, of single agents; None for none.
        worker: Whose they are; the first of `stores` by default.
        board: The panels.
        interval_s: Seconds from one sample to the next.
        keep_s: Seconds that are kept.
        clock: Seconds, monotonic.
        wall_clock: Seconds since 1970, read once.
    """

    def __init__(
        self,
        stores: Mapping[str, MetricStore],
        facts: Callable[[], RunFacts],
        *,
        numbers: Callable[[], Mapping[SeriesKey, float]] | None = None,
        worker: str | None = None,
        board: Board = OVERVIEW,
        interval_s: float = INTERVAL_S,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._stores = stores
        self._facts = facts
        self._numbers = numbers
        self._worker = worker or next(iter(stores))
        self._board = board
        self._interval_s = interval_s
        self._clock = clock
        # Times grow evenly even when somebody sets the machine's clock.
        self._epoch = wall_clock() - clock()
        self._boot = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._history = History(board, max(round(keep_s / interval_s), 2), RATE_S)
        self._recent = Snapshots(RATE_S)
        self._taken_numbers: Mapping[SeriesKey, float] = {}
        self._numbers_due_at = -math.inf
        self._asked_at: float | None = None
        self._is_over = False
        self._last_seen = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-stats", daemon=True)

    def start(self) -> None:
        """Take a sample now and one each interval from now on."""
        self._thread.start()

    def sample(self) -> None:
        """Take one sample."""
        now = self._clock()
        snapshot = Snapshot.of(now, self._stores)
        if self._numbers is not None:
            own = {**snapshot.numbers[self._worker], **self._latest_numbers(self._numbers, now)}
            snapshot = Snapshot(now, {**snapshot.numbers, self._worker: own}, snapshot.distributions)
        with self._lock:
            self._history.add(round(self._epoch + now, 3), snapshot)
            self._recent.add(_for_headlines(snapshot))

    def finish(self, wait_s: float = 2.0) -> None:
        """Take the last sample, end the thread, and let a page that somebody looks at fetch that sample.

        Args:
            wait_s: Longest time to wait for that page.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._sample_or_say_why()
        with self._lock:
            self._is_over = True
            is_watched = self._asked_at is not None and self._clock() - self._asked_at < WATCHED_S
        if is_watched:
            self._last_seen.wait(wait_s)

    def as_json(self, since: int | None = None, boot: str = "") -> dict[str, Any]:
        """Return the document.

        Args:
            since: Samples that whoever asks has already; None for none.
            boot: Which process they are of.
        """
        facts = self._facts()
        with self._lock:
            self._asked_at = self._clock()
            is_new = since is None or boot != self._boot or not 0 <= since <= self._history.num_taken
            start = 0 if since is None or is_new else since
            document: dict[str, Any] = {
                "format": 1,
                "boot": self._boot,
                "taken": self._history.num_taken,
                "kept": self._history.num_kept,
                "interval_s": self._interval_s,
                "now": round(self._epoch + self._clock(), 3),
                "run": {
                    **asdict(facts),
                    "reason": facts.reason if self._is_over else "",
                    "is_over": self._is_over,
                },
                "num_agents": round(evaluate(AGENTS, self._recent).get((), 0.0)),
                "headlines": [asdict(headline) for headline in headlines(self._recent)],
            }
            times, series = self._history.times(start), self._history.series(start)
            if self._is_over:
                self._last_seen.set()
        if is_new:
            document["board"] = board_as_json(self._board)
        panels = self._board.panels
        document["times"] = times
        document["series"] = [_series_as_json(each, panels[each.key[0]]) for each in series]
        return document

    def _latest_numbers(self, take: Callable[[], Mapping[SeriesKey, float]], now: float) -> Mapping[SeriesKey, float]:
        """Return the numbers of single agents: of now, or of a few seconds ago where there are very many agents."""
        if now >= self._numbers_due_at:
            start = time.thread_time()
            self._taken_numbers = take()
            self._numbers_due_at = now + (time.thread_time() - start) / NUMBERS_SHARE
        return self._taken_numbers

    def _sample_or_say_why(self) -> None:
        try:
            self.sample()
        except Exception:  # a page without news is no reason to end a training
            log.exception("the live page misses a sample")

    def _run(self) -> None:
        next_at = self._clock()
        while True:
            self._sample_or_say_why()
            # Where the machine was too busy, samples are missed and not made up for.
            next_at = max(next_at + self._interval_s, self._clock())
            if self._stop.wait(next_at - self._clock()):
                return


def board_as_json(board: Board) -> dict[str, Any]:
    """Return what a page has to know of a board to draw it."""
    indices = {id(panel): index for index, panel in enumerate(board.panels)}
    return {
        "title": board.title,
        "description": board.description,
        "rows": [
            {"title": row.title, "panels": [_panel_as_json(indices[id(panel)], panel) for panel in row.panels]}
            for row in board.rows
        ],
    }


def _panel_as_json(index: int, panel: Panel) -> dict[str, Any]:
    return {
        "index": index,
        "title": panel.title,
        "description": panel.description,
        "metrics": panel.metrics,
        "unit": panel.unit.value,
        "shape": panel.shape.value,
        "width": panel.width,
        "height": panel.height,
        "decimals": panel.decimals,
        "thresholds": [asdict(threshold) for threshold in panel.thresholds],
        "empty_text": panel.empty_text,
        "targets": [{"colour": target.colour, "is_below": target.is_below} for target in panel.targets],
    }


def _series_as_json(series: Series, panel: Panel) -> dict[str, Any]:
    panel_index, target_index = series.key
    target = panel.targets[target_index]
    return {
        "panel": panel_index,
        "target": target_index,
        "name": legend_text(target, series.group),
        # Directions have a colour of their own, wherever they stand.
        "colour": target.colour or group_labels(target.query, series.group).get("direction", ""),
        "values": series.values,
    }


def _for_headlines(snapshot: Snapshot) -> Snapshot:
    """Return the few series that the headlines read: fifteen snapshots of them are kept."""
    numbers = {
        worker: {key: value for key, value in series.items() if key[0] in HEADLINE_METRICS}
        for worker, series in snapshot.numbers.items()
    }
    return Snapshot(snapshot.at, numbers, {worker: {} for worker in numbers})
