from __future__ import annotations

import re
from pathlib import Path

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import MAX_PROBE_BYTES
from cutlayer.simulation.doctor import DoctorSettings, examine
from cutlayer.simulation.doctor_mqtt import NEEDED_PACKET_BYTES
from cutlayer.simulation.doctor_report import Verdict
from support.brokers import mosquitto_test, running_broker
from support.doctor_visits import AGENT, visit, worker_online

pytestmark = pytest.mark.judges_by_silence

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
ORDER = [
    "name",
    "port",
    "tls",
    "credentials",
    "rights",
    "packets",
    "round-trip",
    "up",
    "down",
    "clock",
    "manifest",
    "weights",
    "workers",
]


def order_of(checks: list[str]) -> list[str]:
    return list(dict.fromkeys(checks))


@pytest.mark.parametrize("topic", [AGENT, None])
def test_every_check_is_reported_once_and_in_order_whatever_is_there(topic: str | None) -> None:
    with running_broker("amqtt") as broker:
        assert order_of([finding.check for finding in visit(broker.url, topic=topic).findings]) == ORDER
    assert order_of([finding.check for finding in visit(broker.url, topic=topic).findings]) == ORDER


@mosquitto_test
def test_a_broker_and_a_run_as_they_should_be_leave_nothing_to_say() -> None:
    with running_broker("mosquitto") as broker, worker_online(broker.url):
        seen = visit(broker.url)
    assert {finding.verdict for finding in seen.findings} == {Verdict.OK}
    assert {finding.fix for finding in seen.findings} == {""}


@mosquitto_test
def test_what_is_too_large_for_the_broker_is_not_sent_again() -> None:
    with running_broker("mosquitto", max_packet_bytes=200_000) as broker:
        for protocol in ("5", "3.1.1"):
            seen = visit(broker.url, protocol=protocol)
            assert seen.one("packets").values["limit_bytes"] == (200_000 if protocol == "5" else 131_072)
            assert seen.one("up").verdict is seen.one("down").verdict is Verdict.OK


def test_what_is_being_done_is_announced_before_it_is_found() -> None:
    heard: list[str] = []
    note = heard.append
    with running_broker("amqtt") as broker:
        settings = DoctorSettings(broker=BrokerSettings(url=broker.url), topic=AGENT, timeout_s=2.0)
        for finding in examine(settings, note):
            note(finding.check)
    assert heard.index("checking name") < heard.index("name") < heard.index("checking port") < heard.index("port")
    assert heard.index("timing a microbatch") < heard.index("up")


def test_a_topic_that_cannot_be_an_agents_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(SettingsError, match="cannot be an agent's"):
        next(examine(DoctorSettings(broker=BrokerSettings(url="mqtt://no-such-host.invalid"), topic="cutlayer/x")))


def test_the_page_explains_every_check_and_verdict_with_its_limits() -> None:
    explained = re.findall(r"(?m)^\| `([a-z-]+)` \|", PAGE)
    assert explained == [*Verdict, *ORDER[:4], "features", *ORDER[4:], "agent", "data"]
    assert f"below {NEEDED_PACKET_BYTES:,} B no worker can publish a model" in PAGE


def test_the_specification_names_the_limits_of_a_probe() -> None:
    specification = (Path(__file__).parents[2] / "broker" / "README.md").read_text(encoding="utf-8")
    assert f"payload `bin({MAX_PROBE_BYTES})`" in specification
