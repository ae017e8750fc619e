"""The worker's HTTP port: `/metrics` for Prometheus, `/healthz` for whoever restarts it. Read-only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from cutlayer.broker.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["HttpServer"]


REQUEST_TIMEOUT_S = 10.0
POLL_S = 0.1


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: who connects and says nothing keeps neither the others nor the end waiting."""

    daemon_threads = True
    block_on_close = False


class _QuietHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: a scrape every few seconds is no news."""


class HttpServer:
    """Serves in a thread of its own until `close`.

    Args:
        registry: What `/metrics` shows.
        health: Returns whether the worker is healthy and what to say of it.
        host: Address to bind.
        port: Port; 0 takes a free one (`port` says which).

    Raises:
        SettingsError: When the port is taken.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Callable[[], tuple[bool, dict[str, Any]]],
        *,
        host: str = "127.0.0.1",
        port: int = 9108,
    ) -> None:
        metrics = make_wsgi_app(registry)

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "/")
            if environ.get("REQUEST_METHOD") != "GET":
                start_response("405 Method Not Allowed", [("Allow", "GET"), ("Content-Type", "text/plain")])
                return [b"GET only\n"]
            if path == "/metrics":
                body: Iterable[bytes] = metrics(environ, start_response)
                return body
            if path == "/healthz":
                is_healthy, facts = health()
                status = "200 OK" if is_healthy else "503 Service Unavailable"
                start_response(status, [("Content-Type", "application/json")])
                return [json.dumps(facts).encode()]
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"try /metrics or /healthz\n"]

        try:
            self._server = make_server(host, port, application, _Server, _QuietHandler)
        except OSError as error:
            raise SettingsError(
                f"HTTP port {port} of {host} cannot be used: {error.strerror}",
                "choose another with --http-port, or 0 for a free one",
            ) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
