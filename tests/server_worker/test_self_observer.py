"""What a worker notes of itself: samples that match its connection, and tensors that match what it moved."""

from __future__ import annotations

from collections import Counter

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.memory import MemoryTransport
from cutlayer.broker.messages import Direction
from cutlayer.server_worker.broker_figures import FIGURES
from cutlayer.server_worker.events import BrokerReported, TensorsMoved, WorkerSampled
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Client, Worker, run_until_over


def test_the_last_sample_is_what_the_connection_has_carried() -> None:
    network = VirtualNetwork()
    worker = Worker(network, small_settings())
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
    before = worker.transport.wire
    worker.runtime.stop()
    last = [event for event in worker.events if isinstance(event, WorkerSampled)][-1]
    assert (last.wire_sent_bytes, last.wire_received_bytes) == (before.sent_bytes, before.received_bytes)
    assert (last.open_samples, last.live_samples, last.credits_granted, last.credits_used) == (0, 0, 0, 0)
    received = sum(row.payload_bytes for row in last.traffic if row.direction is Direction.UP)
    assert 0 < received < before.received_bytes


def test_samples_show_the_credits_of_agents_at_work() -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.1))
    worker = Worker(network, small_settings(run={"epochs": 20}))
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
    samples = [event for event in worker.events if isinstance(event, WorkerSampled)]
    assert max(event.credits_granted for event in samples) == 2
    assert {event.num_workers for event in samples} == {1}


def test_every_message_with_tensors_is_told_once() -> None:
    network = VirtualNetwork(max_packet_bytes=2_000)  # some go in chunks
    worker = Worker(network, small_settings())
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0, 16, 40))])
    told = Counter(event.kind for event in worker.events if isinstance(event, TensorsMoved))
    rows = worker.runtime._courier.traffic.snapshot()
    sent = {row.kind: row.messages for row in rows if row.codec}
    assert told == sent
    assert told["OutputGradients"] == 8
    sizes = sum(event.payload_bytes for event in worker.events if isinstance(event, TensorsMoved))
    assert sizes == sum(row.payload_bytes for row in rows if row.codec)


def test_a_broker_is_asked_once_however_often_the_connection_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    subscribe = MemoryTransport.subscribe

    def note(self: MemoryTransport, topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        asked.update([topic_filter] if is_optional else [])
        subscribe(self, topic_filter, qos=qos, is_optional=is_optional)

    monkeypatch.setattr(MemoryTransport, "subscribe", note)
    network = VirtualNetwork()
    worker = Worker(network, small_settings(), watches=True)
    network.run(lambda: worker.runtime.is_connected)
    network.broker.stop()
    network.run(lambda: not worker.runtime.is_connected)
    network.broker.start()
    network.run(lambda: worker.runtime.is_connected)
    assert asked == dict.fromkeys(FIGURES, 1)


def test_what_comes_under_sys_is_no_message_of_anybody() -> None:
    network = VirtualNetwork()
    worker = Worker(network, small_settings(), watches=True)
    client = Client(network)
    network.run(lambda: worker.runtime.is_connected)
    client.say("$SYS/broker/bytes/sent", b"12")
    client.say("$SYS/broker/uptime", b"no number")
    network.run(lambda: any(isinstance(event, BrokerReported) for event in worker.events))
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
    assert worker.metric("cutlayer_broker_sent_bytes_total") == 12
    assert worker.metric("cutlayer_rejects_total", side="worker", reason="malformed") == 0
