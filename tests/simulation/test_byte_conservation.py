"""Bytes are conserved: what agents and worker count is, to the byte, what the broker itself counts."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.courier import Courier
from cutlayer.broker.messages import Direction
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Received
from cutlayer.dashboards.metric_labels import TENSOR_KINDS
from cutlayer.edge_agent.runtime import AgentRuntime
from support.brokers import Client, mosquitto_test, mqtt_client, running_broker
from support.processes import CountingWorker, counting_worker
from support.small_run import small_dataset, small_settings
from support.waiting import ends

NUM_AGENTS = 3
RECEIVED, SENT, PAYLOADS = "$SYS/broker/bytes/received", "$SYS/broker/bytes/sent", "$SYS/broker/publish/bytes/received"
AFTER_LAST_REPORT_BYTES = 2_000
"""Of one agent and direction: its goodbye, the answer, and what MQTT says at the end."""


@pytest.mark.slow
@mosquitto_test
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
@pytest.mark.parametrize("max_packet_bytes", [1_000_000, 4_000], ids=["whole messages", "in chunks"])
def test_bytes_of_agents_worker_and_broker_are_the_same(protocol: ProtocolChoice, max_packet_bytes: int) -> None:
    settings = small_settings(
        0.1,
        run={"min_agents": NUM_AGENTS, "epochs": 3, "microbatch_samples": 32},
        window={"mode": "asynchronous", "samples": 64},
        model={"options": {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 1, "num_heads": 2}},
        codecs={"activations": "int8+zstd", "outputs": "fp16", "output_gradients": "fp16"},
    )
    limits = {"protocol": protocol, "max_packet_bytes": max_packet_bytes}
    with (
        running_broker("mosquitto", figures_s=1) as broker,
        mqtt_client(broker.url, "observer", protocol=protocol) as observer,
    ):
        observer.connect(None)
        before = settled_figures(observer)  # the launcher has asked whether the broker answers
        own_before = observer.transport.wire
        with counting_worker(broker.url, settings, **limits) as worker:
            transports = [
                MqttTransport(BrokerSettings(url=broker.url, **limits), f"agent-{index}", identity=f"site/{index}")  # type: ignore[arg-type]
                for index in range(NUM_AGENTS)
            ]
            agents = [agent_of(index, transport) for index, transport in enumerate(transports)]
            threads = [threading.Thread(target=agent.run, args=(lambda: False,)) for agent in agents]
            for thread in threads:
                thread.start()
            worker.join()
            for thread in threads:
                assert ends(thread.join)
            assert all(agent.is_finished for agent in agents)
        server = courier_of(worker)
        clients = [courier_of(agent) for agent in agents]
        after = settled_figures(observer)
        own = observer.transport.wire
    figures = {name: after[name] - before[name] for name in after}
    wires = [server.transport.wire, *(client.transport.wire for client in clients)]

    # Every byte that a client has written, the broker has read: agents, worker and this test's observer.
    assert figures[RECEIVED] == sum(wire.sent_bytes for wire in wires) + own.sent_bytes - own_before.sent_bytes
    # The broker's figure is as of before it was sent, and what it sends to a client that goes is read by nobody.
    read_bytes = sum(wire.received_bytes for wire in wires)
    assert read_bytes <= figures[SENT] <= read_bytes + own.received_bytes + 500 * len(wires)
    assert sum(wire.dropped_packets for wire in wires) == 0

    # Every payload that agents and worker count as sent, the broker counts as received.
    sent_payloads = sum(payloads(client, Direction.UP).total() for client in clients)
    sent_payloads += payloads(server, Direction.DOWN).total()
    assert figures[PAYLOADS] == sent_payloads

    # What one side counts as sent of each kind with tensors, the other counts as received.
    for kind, direction in TENSOR_KINDS.items():
        of_agents = sum(payloads(client, Direction(direction))[kind] for client in clients)
        assert payloads(server, Direction(direction))[kind] == of_agents
        is_sent = kind not in ("TokenizerWeights", "Candidate")  # tokenizers are frozen here, and nothing is chosen
        assert (of_agents > 0) == is_sent

    # The worker's own account of the agents, from their reports, is theirs but for what comes after the last report.
    moved = worker.book.bytes_moved()
    for direction, sizes in (
        ("up", [client.transport.wire.sent_bytes for client in clients]),
        ("down", [client.transport.wire.received_bytes for client in clients]),
    ):
        missing_bytes = sum(sizes) - moved[direction]["wire"]
        assert 0 <= missing_bytes <= AFTER_LAST_REPORT_BYTES * NUM_AGENTS
        kinds = sum(row["wire_bytes"] for row in worker.book.traffic() if row["direction"] == direction)
        assert kinds == pytest.approx(moved[direction]["wire"], abs=AFTER_LAST_REPORT_BYTES * NUM_AGENTS)


def agent_of(index: int, transport: MqttTransport) -> AgentRuntime:
    incarnation = time.time_ns() // 1_000_000
    return AgentRuntime(transport, f"site/{index}", incarnation, lambda _: small_dataset(index, 160))


def courier_of(party: AgentRuntime | CountingWorker) -> Courier:
    return party.runtime._courier if isinstance(party, CountingWorker) else party._courier


def payloads(courier: Courier, direction: Direction) -> Counter[str]:
    """Return a party's payload bytes in one direction by kind of message."""
    sizes: Counter[str] = Counter()
    for row in courier.traffic.snapshot():
        if row.direction is direction:
            sizes[row.kind] += row.payload_bytes
    return sizes


def settled_figures(observer: Client) -> dict[str, int]:
    """Return the broker's figures when nobody but the observer has been connected for a while.

    It tells only of figures that have changed, and by telling changes what it has sent.
    """
    observer.events.clear()
    for topic in (RECEIVED, SENT, PAYLOADS):
        observer.transport.unsubscribe(topic)
        observer.transport.subscribe(topic, qos=0)  # what is retained comes again, changed or not
    figures: dict[str, int] = {}
    for _ in range(3):
        figures[SENT] = -1
        while figures[SENT] < 0:
            event = observer.next(Received)
            figures[event.topic] = int(event.payload)
    return figures
