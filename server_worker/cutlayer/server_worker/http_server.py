"""The worker's HTTP port: a table of paths, served read-only.

Nothing there changes anything or asks for a password, so the port is bound to loopback by default. A browser on the
same machine could still be led there by a page from elsewhere whose name resolves to 127.0.0.1 (DNS rebinding): what is
made for browsers is refused under foreign host names. Prometheus scrapes by whatever name it knows the worker, so
other paths are never refused.
"""

from __future__ import annotations

import gzip
import ipaddress
import logging
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.http_routes import Request, Response, Route

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["HttpServer"]

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 10.0
MAX_CONNECTIONS: Final = 64
POLL_S: Final = 0.1
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
WORTH_COMPRESSING_BYTES: Final = 1024
GZIP_LEVEL: Final = 3
"""A quarter of an hour of made-up numbers takes 6 ms; level 9 takes thirteen times as long for a tenth less."""
METHODS: Final = ("GET", "HEAD")
SECURITY_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: who connects and says nothing keeps neither the others nor the end waiting.

    Beyond `MAX_CONNECTIONS` at once a connection is closed unanswered.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * MAX_CONNECTIONS
    """The library's 5 makes the system drop what connects faster than it is accepted: those wait for seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that come to nothing: browsers open some on suspicion."""
        del request
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("a connection from %s came to nothing: %s", client_address[0], error)
        else:
            log.exception("a request from %s failed", client_address[0])


class _QuietHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: a scrape every few seconds is no news."""


class HttpServer:
    """Serves in a thread of its own until `close`.

    Args:
        routes: What each path answers.
        host: Address to bind.
        port: Port; 0 takes a free one (`port` says which).
        allowed_hosts: Host names under which `/` and `/api/...` are served, besides those of loopback. Where there
            are none, an address other than loopback serves them under any name.

    Raises:
        SettingsError: When the port is taken.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        host: str = "127.0.0.1",
        port: int = 9108,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self._routes = dict(routes)
        names = frozenset(name.lower() for name in allowed_hosts)
        self._host_names = LOOPBACK_NAMES | names if names or _is_loopback(host) else None
        try:
            self._server = make_server(host, port, self._application, _Server, _QuietHandler)
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

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = self._respond(environ)
        body, headers = response.body, [*response.headers, *SECURITY_HEADERS, ("Content-Type", response.content_type)]
        if len(body) >= WORTH_COMPRESSING_BYTES:
            headers.append(("Vary", "Accept-Encoding"))
            if _takes_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")):
                body = gzip.compress(body, GZIP_LEVEL, mtime=0)
                headers.append(("Content-Encoding", "gzip"))
        headers.append(("Content-Length", str(len(body))))
        start_response(response.status, headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _respond(self, environ: WSGIEnvironment) -> Response:
        path = environ.get("PATH_INFO") or "/"
        if environ.get("REQUEST_METHOD") not in METHODS:
            return Response(b"GET and HEAD only\n", status="405 Method Not Allowed", headers=(("Allow", "GET, HEAD"),))
        route = self._routes.get(path)
        if route is None:
            return Response(f"there are {', '.join(self._routes)}\n".encode(), status="404 Not Found")
        if _is_for_browsers(path) and not self._is_own_name(environ.get("HTTP_HOST", "")):
            text = "this host name is not served here: use http://localhost or allow it with --http-allow-host\n"
            return Response(text.encode(), status="403 Forbidden")
        try:
            return route(Request.of(environ.get("QUERY_STRING", ""), environ.get("HTTP_ACCEPT", "")))
        except ValueError as error:
            return Response(f"{error}\n".encode(), status="400 Bad Request")
        except Exception:  # one answer that fails must not take the others' server along
            log.exception("no answer to %s", path)
            return Response(b"the worker's log says why\n", status="500 Internal Server Error")

    def _is_own_name(self, host: str) -> bool:
        return self._host_names is None or _without_port(host).lower() in self._host_names


def _is_for_browsers(path: str) -> bool:
    return path == "/" or path.startswith("/api/")


def _without_port(host: str) -> str:
    """Return the name in a Host header: `[::1]:9108` is `[::1]`."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _takes_gzip(accept_encoding: str) -> bool:
    for entry in accept_encoding.lower().split(","):
        name, _, parameters = entry.partition(";")
        if name.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
