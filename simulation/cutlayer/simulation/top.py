"""Watches a run from any host that reaches its broker: once, or until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.live import Live

from cutlayer.broker.errors import BrokerUnreachable, RunError
from cutlayer.broker.messages import RunPhase
from cutlayer.broker.transport import Transport
from cutlayer.simulation.top_feed import TopFeed
from cutlayer.simulation.top_state import TopState
from cutlayer.simulation.top_view import TopScreen

__all__ = ["NothingToShow", "look_once", "watch"]

PICTURES: Final = 2
"""Rates are differences."""
FRAME_S: Final = 1.0
POLL_S: Final = 0.1


class NothingToShow(RunError):
    """No run reports itself on the broker.

    Args:
        url: The broker.
        detail: How far it came.
        fix: What to do.
    """

    def __init__(self, url: str, detail: str, fix: str) -> None:
        self.url = url
        self.detail = detail
        super().__init__(f"nothing to show from {url}: {detail}\n  fix: {fix}")


def look_once(transport: Transport, url: str, *, timeout_s: float) -> TopState:
    """Wait until all workers have reported twice, and return what is known then.

    Args:
        transport: A connection of its own; it is closed.
        url: What to call the broker.
        timeout_s: Seconds to wait at most, the connection included.

    Raises:
        BrokerUnreachable: When there is no connection in time.
        NothingToShow: When there are no two reports in time.
        CutlayerError: When the broker refuses this client for good.
    """
    feed = TopFeed(transport, url)
    try:
        _follow(feed, lambda: feed.num_pictures >= PICTURES, timeout_s)
        if not feed.has_connected:
            raise BrokerUnreachable(url, feed.problem or f"no connection within {timeout_s:g} s")
        state = feed.state()
        if feed.num_pictures < PICTURES:
            raise NothingToShow(url, *_missing(state, feed.num_pictures, timeout_s))
        return state
    finally:
        feed.close()


def watch(
    transport: Transport, url: str, console: Console, should_stop: Callable[[], bool], *, timeout_s: float
) -> None:
    """Draw the run in place until `should_stop`; the last screen stays behind.

    Args:
        transport: A connection of its own; it is closed.
        url: What to call the broker.
        console: A terminal.
        should_stop: Asked several times a second.
        timeout_s: Seconds that the first connection is tried.

    Raises:
        BrokerUnreachable: When there is no first connection in time.
        CutlayerError: When the broker refuses this client for good.
    """
    started_at = time.monotonic()
    feed = TopFeed(transport, url)
    try:
        _follow(feed, lambda: feed.is_connected or should_stop(), timeout_s)
        if not feed.has_connected:
            if should_stop():
                return
            raise BrokerUnreachable(url, feed.problem or f"no connection within {timeout_s:g} s")
        with Live(console=console, screen=True, auto_refresh=False) as live:
            drawn_at = 0.0
            while not should_stop():
                is_new = feed.pump()
                now = time.monotonic()
                if is_new or now >= drawn_at + FRAME_S:
                    drawn_at = now
                    screen = TopScreen(feed.state(), waited_s=now - started_at, height=console.height)
                    live.update(screen, refresh=True)
                feed.wait(POLL_S)
        # The alternate screen is gone with everything on it.
        console.print(TopScreen(feed.state(), waited_s=time.monotonic() - started_at))
    finally:
        feed.close()


def _follow(feed: TopFeed, is_done: Callable[[], bool], timeout_s: float) -> None:
    """Pump a feed until a condition holds or the time is over."""
    feed.start()
    end_at = time.monotonic() + timeout_s
    while not is_done() and time.monotonic() < end_at:
        feed.wait(POLL_S)
        feed.pump()


def _missing(state: TopState, num_pictures: int, timeout_s: float) -> tuple[str, str]:
    """Return how far it came, and what to do."""
    start = "start a worker: `server-worker start --run RUN.toml --broker ...`"
    waited = f"within {timeout_s:g} s"
    if state.manifest is None:
        return f"no run is announced, as far as this user can read ({waited})", start
    run = f"run {state.manifest.run_id}"
    if state.phase is RunPhase.ENDED:
        return f"{run} has ended", f"read its run.json, or {start}"
    if not any(worker.is_online for worker in state.workers):
        return f"{run} has no worker online ({waited})", start
    if not num_pictures:
        return (
            f"no worker of {run} has reported {waited}",
            "use the same release as the workers', and let this user read cutlayer/workers/+/report",
        )
    return f"the workers of {run} have reported once only {waited}", "give them longer with --timeout"
