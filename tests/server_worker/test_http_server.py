from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.http_server import HttpServer

FACTS = {"connected": True, "agents": 3}


@pytest.fixture
def health() -> dict[str, Any]:
    return {"is_healthy": True}


@pytest.fixture
def server(health: dict[str, Any]) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Counter("cutlayer_windows", "Windows.", registry=registry).inc(7)
    running = HttpServer(registry, lambda: (health["is_healthy"], FACTS), port=0)
    yield running
    running.close()


def ask(server: HttpServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request(method, path)
    response = connection.getresponse()
    answer = response.status, response.getheader("Content-Type", ""), response.read()
    connection.close()
    return answer


def test_metrics_are_shown_as_prometheus_reads_them(server: HttpServer) -> None:
    status, kind, body = ask(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert b"cutlayer_windows_total 7.0" in body


def test_healthy_worker_says_200_and_what_it_does(server: HttpServer) -> None:
    status, kind, body = ask(server, "/healthz")
    assert (status, kind, json.loads(body)) == (200, "application/json", FACTS)


def test_worker_without_a_broker_says_503(server: HttpServer, health: dict[str, Any]) -> None:
    health["is_healthy"] = False
    status, _, body = ask(server, "/healthz")
    assert (status, json.loads(body)) == (503, FACTS)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/healthz.json", "/favicon.ico"])
def test_other_paths_are_not_found(server: HttpServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert b"/metrics" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/elsewhere"])
def test_other_methods_are_not_allowed(server: HttpServer, method: str, path: str) -> None:
    status, _, _ = ask(server, path, method)
    assert status == 405


def test_who_connects_and_says_nothing_keeps_nobody_waiting(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask(server, "/healthz")[0] == 200


def test_open_connection_does_not_delay_the_end() -> None:
    server = HttpServer(CollectorRegistry(), lambda: (True, {}), port=0)
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"GET /met")
        time.sleep(0.1)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 2.0


def test_closed_server_listens_no_more() -> None:
    server = HttpServer(CollectorRegistry(), lambda: (True, {}), port=0)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_port_that_is_taken_is_named_with_the_fix(server: HttpServer) -> None:
    with pytest.raises(SettingsError) as caught:
        HttpServer(CollectorRegistry(), lambda: (True, {}), port=server.port)
    assert str(server.port) in caught.value.problem
    assert "--http-port" in caught.value.fix


def test_host_that_is_no_address_is_named() -> None:
    with pytest.raises(SettingsError, match=r"no\.such\.host\.invalid"):
        HttpServer(CollectorRegistry(), lambda: (True, {}), host="no.such.host.invalid", port=0)
