from __future__ import annotations

import gzip
import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker import http_server
from cutlayer.server_worker.http_routes import Request, Response, Route
from cutlayer.server_worker.http_server import HttpServer
from support.waiting import LIMIT_S, ends, until

LONG = b"a line that is worth its compression\n" * 100


def hello(request: Request) -> Response:
    return Response(f"hello {request.query.get('name', 'world')}".encode())


def refuse(_: Request) -> Response:
    raise ValueError("top=many is no number")


def fail(_: Request) -> Response:
    raise RuntimeError("a table is empty")


ROUTES: Mapping[str, Route] = {
    "/": hello,
    "/api/stats.json": hello,
    "/metrics": hello,
    "/long": lambda _: Response(LONG),
    "/refuses": refuse,
    "/fails": fail,
}


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    running = HttpServer(ROUTES, port=0)
    yield running
    running.close()


def ask(server: HttpServer, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


def test_each_path_has_its_answer(server: HttpServer) -> None:
    answer = ask(server, "/metrics?name=you")
    assert (answer.status, answer.body) == (200, b"hello you")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_head_is_told_what_get_would_bring(server: HttpServer) -> None:
    head, get = ask(server, "/long", "HEAD"), ask(server, "/long")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(LONG))


@pytest.mark.parametrize("path", ["/metrics/", "/../etc/passwd", "/healthz.json", "/favicon.ico", "/assets/page.js"])
def test_other_paths_are_not_found_and_those_that_are_there_named(server: HttpServer, path: str) -> None:
    answer = ask(server, path)
    assert answer.status == 404
    for known in ROUTES:
        assert known.encode() in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/elsewhere"])
def test_other_methods_are_not_allowed(server: HttpServer, method: str, path: str) -> None:
    answer = ask(server, path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9108", "[::1]", "[::1]:9108"])
@pytest.mark.parametrize("path", ["/", "/api/stats.json"])
def test_page_is_served_under_the_names_of_this_machine(server: HttpServer, path: str, host: str) -> None:
    assert ask(server, path, Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9108", "localhost.evil.example", "", "127.0.0.1.nip.io"]
)
@pytest.mark.parametrize("path", ["/", "/api/stats.json"])
def test_page_is_refused_under_foreign_names(server: HttpServer, path: str, host: str) -> None:
    answer = ask(server, path, Host=host)
    assert answer.status == 403
    assert b"--http-allow-host" in answer.body


@pytest.mark.parametrize("host", ["server_worker:9108", "evil.example", ""])
def test_prometheus_is_served_under_any_name(server: HttpServer, host: str) -> None:
    assert ask(server, "/metrics", Host=host).status == 200


def test_other_addresses_than_loopback_serve_the_page_under_any_name() -> None:
    server = HttpServer(ROUTES, host="0.0.0.0", port=0)  # noqa: S104 - what a container binds
    try:
        assert ask(server, "/", Host="gpu-box.lan:9108").status == 200
    finally:
        server.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what a container binds
def test_given_names_are_served_and_no_others(address: str) -> None:
    server = HttpServer(ROUTES, host=address, port=0, allowed_hosts=["Monitor.Clinic.example"])
    try:
        assert ask(server, "/", Host="monitor.clinic.example:443").status == 200
        assert ask(server, "/", Host="localhost:9108").status == 200
        assert ask(server, "/", Host="evil.example").status == 403
    finally:
        server.close()


@pytest.mark.parametrize("path", ["/", "/metrics", "/elsewhere"])
def test_every_answer_forbids_guessing_framing_and_reading_from_elsewhere(server: HttpServer, path: str) -> None:
    headers = ask(server, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("accepted", ["gzip", "deflate, gzip;q=0.8", "br, *", "GZIP"])
def test_long_answers_are_compressed_for_whoever_takes_that(server: HttpServer, accepted: str) -> None:
    answer = ask(server, "/long", Accept_Encoding=accepted)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert len(answer.body) < len(LONG) / 5
    assert gzip.decompress(answer.body) == LONG


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0"])
def test_others_have_them_as_they_are(server: HttpServer, accepted: str) -> None:
    answer = ask(server, "/long", Accept_Encoding=accepted)
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert answer.body == LONG


def test_short_answers_are_not_compressed(server: HttpServer) -> None:
    assert "Content-Encoding" not in ask(server, "/metrics", Accept_Encoding="gzip").headers


def test_query_that_cannot_be_answered_says_why(server: HttpServer) -> None:
    answer = ask(server, "/refuses")
    assert (answer.status, answer.body) == (400, b"top=many is no number\n")


def test_route_that_fails_is_logged_and_the_others_go_on(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = ask(server, "/fails")
    assert (answer.status, b"a table is empty" in answer.body) == (500, False)
    assert "a table is empty" in caplog.text
    assert ask(server, "/metrics").status == 200


@pytest.mark.parametrize("query", ["&" * 500, "a=1&" * 500, "%ff%00=%zz", "since=" + "9" * 5000])
def test_strange_queries_do_no_harm(server: HttpServer, query: str) -> None:
    assert ask(server, f"/metrics?{query}").status in (200, 400)


def test_who_connects_and_says_nothing_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, server: HttpServer
) -> None:
    monkeypatch.setattr(http_server._QuietHandler, "timeout", 3_600.0)  # none is closed for its silence
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask(server, "/metrics").status == 200


def test_open_connection_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server._QuietHandler, "timeout", 3_600.0)  # none is closed for its silence
    server = HttpServer(ROUTES, port=0)
    before = set(threading.enumerate())
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"GET /met")
        until(lambda: set(threading.enumerate()) - before, "thread for the connection")
        assert ends(server.close)


def test_closed_server_listens_no_more() -> None:
    server = HttpServer(ROUTES, port=0)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_port_that_is_taken_is_named_with_the_fix(server: HttpServer) -> None:
    with pytest.raises(SettingsError) as caught:
        HttpServer(ROUTES, port=server.port)
    assert str(server.port) in caught.value.problem
    assert "--http-port" in caught.value.fix


def test_host_that_is_no_address_is_named() -> None:
    with pytest.raises(SettingsError, match=r"no\.such\.host\.invalid"):
        HttpServer(ROUTES, host="no.such.host.invalid", port=0)


def test_connection_that_says_nothing_is_no_news(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], server: HttpServer
) -> None:
    """Browsers open connections on suspicion; each printed a traceback."""
    monkeypatch.setattr(http_server._QuietHandler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as silent:
        assert silent.recv(1) == b"", "it is closed after a while"
    assert ask(server, "/metrics").status == 200
    assert capfd.readouterr().err == ""


def test_connections_beyond_the_limit_are_closed_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, server: HttpServer
) -> None:
    monkeypatch.setattr(http_server._QuietHandler, "timeout", 600.0)  # none is closed for its silence
    address = ("127.0.0.1", server.port)
    held = [socket.create_connection(address, timeout=LIMIT_S) for _ in range(http_server.MAX_CONNECTIONS + 8)]
    try:
        for connection in held:
            connection.settimeout(0.01)
        closed: set[socket.socket] = set()

        def all_that_shall() -> bool:
            closed.update(connection for connection in held if is_closed(connection))
            return len(closed) >= 8

        until(all_that_shall, "end of the eight connections too many")
        # Accepted in this order; were there more to be closed, this one's refusal would come after theirs.
        with socket.create_connection(address, timeout=LIMIT_S) as one_more:
            until(lambda: is_closed(one_more), "end of one connection more")
        all_that_shall()
        assert len(closed) == 8
    finally:
        for connection in held:
            connection.close()

    def answers() -> bool:
        try:
            return ask(server, "/metrics").status == 200
        except (ConnectionError, http.client.HTTPException):
            return False  # the threads are about to notice

    until(answers, "answer of the server")


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
