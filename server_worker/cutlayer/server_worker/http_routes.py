"""What the worker's HTTP port answers: the live page, its numbers, Prometheus' metrics, and whether all is well."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from cutlayer.dashboards.live_page import LivePage
from cutlayer.dashboards.live_stats import LiveStats

__all__ = ["Request", "Response", "Route", "health_route", "metrics_route", "page_route", "stats_route"]

NO_STORE: Final = ("Cache-Control", "no-store")


@dataclass(frozen=True, slots=True)
class Request:
    """What a route may go by.

    Attributes:
        query: The last value of each query parameter.
        accept: The header of that name, or empty.
    """

    query: Mapping[str, str] = field(default_factory=dict)
    accept: str = ""

    @classmethod
    def of(cls, query_string: str, accept: str = "") -> Request:
        """Parse a query string.

        Raises:
            ValueError: When it has far more parameters than any route takes.
        """
        return cls({name: values[-1] for name, values in parse_qs(query_string, max_num_fields=20).items()}, accept)


@dataclass(frozen=True, slots=True)
class Response:
    """What a route answers.

    Attributes:
        body: All of it; the server compresses it where that helps.
        content_type: Its type.
        status: Status line without the version.
        headers: More headers.
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = (NO_STORE,)


Route = Callable[[Request], Response]
"""Answers one path. It runs in a thread of the request's own, and may not change anything.

A ValueError says that a query cannot be answered; who has asked is told its text.
"""


def metrics_route(registry: CollectorRegistry) -> Route:
    """Return a route that shows a registry to Prometheus."""

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.accept)
        return Response(encode(registry), content_type)

    return metrics


def health_route(health: Callable[[], tuple[bool, dict[str, Any]]]) -> Route:
    """Return a route that says whether the worker is well.

    Args:
        health: Returns whether it is, and what to say of it.
    """

    def healthz(_: Request) -> Response:
        is_healthy, facts = health()
        return _json(facts, "200 OK" if is_healthy else "503 Service Unavailable")

    return healthz


def stats_route(stats: LiveStats) -> Route:
    """Return a route for the live page's numbers; `?boot=...&since=...` leaves out what the page has already."""

    def stats_json(request: Request) -> Response:
        since = request.query.get("since", "")
        # More digits than any count of seconds has would only cost time to parse.
        is_number = since.isascii() and since.isdigit() and len(since) <= 12
        return _json(stats.as_json(int(since) if is_number else None, request.query.get("boot", "")))

    return stats_json


def page_route(page: LivePage) -> Route:
    """Return a route for the live page."""
    headers = (("Content-Security-Policy", page.policy), ("Cache-Control", "no-cache"))
    response = Response(page.html, "text/html; charset=utf-8", headers=headers)
    return lambda _: response


def _json(content: Mapping[str, Any], status: str = "200 OK") -> Response:
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, "application/json", status)
