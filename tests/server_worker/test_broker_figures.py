"""What a broker tells of itself: read strictly, and no worker ends where it may not ask."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from cutlayer.broker.broker_settings import ProtocolChoice
from cutlayer.broker.transport import Received
from cutlayer.server_worker.broker_figures import FIGURES, broker_figure
from cutlayer.server_worker.events import BrokerReported
from cutlayer.simulation.virtual import VirtualNetwork
from support.brokers import mosquitto_test, needs_mosquitto, running_broker
from support.live_network import LiveNetwork
from support.small_run import small_dataset, small_settings
from support.standing_broker import StandingBroker
from support.virtual_run import Worker


def said(payload: bytes, topic: str = "$SYS/broker/bytes/received") -> BrokerReported | None:
    return broker_figure(Received(topic, payload, retain=True, wire_bytes=50))


def test_numbers_are_read_with_and_without_their_unit() -> None:
    assert said(b"1234") == BrokerReported("cutlayer_broker_received_bytes_total", 1234.0)
    assert said(b"361 seconds", "$SYS/broker/uptime") == BrokerReported("cutlayer_broker_uptime_seconds", 361.0)
    assert said(b"0", "$SYS/broker/retained messages/count") == BrokerReported("cutlayer_broker_retained_messages", 0.0)


@pytest.mark.parametrize("payload", [b"", b" ", b"many", b"-1", b"nan", b"inf", b"\xff\xfe", b"1" * 65, b"seconds 3"])
def test_what_is_no_number_is_no_figure(payload: bytes) -> None:
    assert said(payload) is None


def test_other_topics_are_no_figures() -> None:
    assert said(b"1", "$SYS/broker/load/bytes/sent/1min") is None
    assert said(b"1", "clinic/07/up/telemetry") is None


def run(url: str, protocol: ProtocolChoice = "5", *, awaits: tuple[str, ...] = ()) -> Worker:
    """Train a small run at a broker; before it, wait until the worker has these metrics, and knows that it is alone."""
    with LiveNetwork(StandingBroker(url, protocol)) as network:
        worker = Worker(cast("VirtualNetwork", network), small_settings(), watches=True)
        network.run(lambda: all(worker.metrics.store.value(name) for name in awaits))
        if awaits:
            network.run(lambda: worker.metric("cutlayer_broker_clients") == 1)
        agent = network.add_agent("site/0", small_dataset(0))
        network.run(lambda: worker.runtime.is_finished and agent.is_finished)
        return worker


@mosquitto_test
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_figures_of_mosquitto_are_shown(protocol: ProtocolChoice) -> None:
    never = {"cutlayer_broker_publish_dropped_total"}
    with running_broker("mosquitto", figures_s=1) as broker:
        worker = run(broker.url, protocol, awaits=tuple(set(FIGURES.values()) - never))
    assert worker.metric("cutlayer_broker_reports") == 1
    assert worker.metric("cutlayer_broker_clients") in (1, 2), "an agent has come, and may have been counted"
    assert worker.metric("cutlayer_rejects_total", side="worker", reason="malformed") == 0


@mosquitto_test
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_worker_that_may_not_read_them_trains_without(protocol: ProtocolChoice, tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite cutlayer/#\ntopic readwrite site/#\n")
    with running_broker("mosquitto", figures_s=1, acl_file=acl) as broker:
        worker = run(broker.url, protocol)
    assert worker.metric("cutlayer_broker_reports") == 0
    assert worker.metric("cutlayer_steps_total") == 8


@pytest.mark.parametrize("kind", ["amqtt", pytest.param("mosquitto", marks=needs_mosquitto)])
def test_broker_that_tells_nothing_yet_does_no_harm(kind: str) -> None:
    with running_broker(kind) as broker:  # type: ignore[arg-type]
        worker = run(broker.url, "3.1.1")
    assert worker.metric("cutlayer_steps_total") == 8
    if kind == "amqtt":
        assert worker.metric("cutlayer_broker_reports") == 0
