"""`/metrics/clients`: bounded, as Prometheus reads it, and clear about a wrong `top`."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cutlayer.server_worker.agent_table import AgentTable
from cutlayer.server_worker.clients_route import clients_route
from cutlayer.server_worker.http_server import HttpServer
from support.synthetic_run import synthetic_telemetry
from support.waiting import LIMIT_S


@pytest.fixture
def server() -> Iterator[HttpServer]:
    table = AgentTable()
    for index in range(30):
        table.take(f"clinic/{index:02d}", synthetic_telemetry(), None)
    running = HttpServer({"/metrics/clients": clients_route(table.numbers)}, port=0)
    yield running
    running.close()


def ask(server: HttpServer, query: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    connection.request("GET", f"/metrics/clients{query}")
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def agents(text: str) -> set[str]:
    return {sample.labels["agent"] for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.mark.parametrize(("query", "num_listed"), [("", 20), ("?top=3", 3), ("?top=200", 30), ("?top=003", 3)])
def test_as_many_agents_as_wanted_are_listed_and_the_rest_together(
    server: HttpServer, query: str, num_listed: int
) -> None:
    status, text = ask(server, query)
    assert status == 200
    assert len(agents(text) - {"other"}) == num_listed
    assert "other" in agents(text)


def test_each_metric_says_what_it_is(server: HttpServer) -> None:
    families = {family.name: family for family in text_string_to_metric_families(ask(server)[1])}
    assert families["cutlayer_agent_wire_bytes"].type == "counter"
    assert families["cutlayer_agent_round_trip_seconds"].type == "gauge"
    assert all(family.documentation for family in families.values())


@pytest.mark.parametrize("top", ["0", "-1", "201", "1e2", "many", "%C2%B2", "9" * 5_000, "3;4"])
def test_a_wrong_number_is_told_with_the_right_ones(server: HttpServer, top: str) -> None:
    status, text = ask(server, f"?top={top}")
    assert status == 400
    assert "from 1 to 200" in text
