"""The bytes that agents count are the bytes that pass the broker's socket."""

from __future__ import annotations

import threading
import time

import pytest

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.edge_agent.runtime import AgentRuntime
from support.brokers import BROKER_KINDS, running_broker
from support.processes import counting_worker
from support.relay import relay
from support.small_run import small_dataset, small_settings
from support.waiting import ends


@pytest.mark.parametrize("kind", BROKER_KINDS)
@pytest.mark.parametrize("max_packet_bytes", [1_000_000, 4_000], ids=["whole messages", "in chunks"])
def test_wire_bytes_of_a_run_are_those_at_the_socket(kind: str, max_packet_bytes: int) -> None:
    settings = small_settings(
        0.1,
        run={"min_agents": 2, "epochs": 4, "microbatch_samples": 32},
        window={"mode": "asynchronous", "samples": 64},
        model={"options": {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 1, "num_heads": 2}},
    )
    protocol: ProtocolChoice = "3.1.1" if kind == "amqtt" else "5"
    with (
        running_broker(kind) as broker,  # type: ignore[arg-type]
        relay(broker.port) as socket,
        counting_worker(broker.url, settings) as worker,
    ):
        url = f"mqtt://127.0.0.1:{socket.port}"
        transports = [
            MqttTransport(
                BrokerSettings(url=url, protocol=protocol, max_packet_bytes=max_packet_bytes),
                f"agent-{index}",
                identity=f"site/{index}",
            )
            for index in range(2)
        ]
        agents = [agent_of(index, transport) for index, transport in enumerate(transports)]
        threads = [threading.Thread(target=agent.run, args=(lambda: False,)) for agent in agents]
        for thread in threads:
            thread.start()
        worker.join()
        for thread in threads:
            assert ends(thread.join)
        assert all(agent.is_finished for agent in agents)
        socket.settle()
        moved = worker.book.bytes_moved()
        assert socket.up_bytes > 500_000
        assert moved["up"]["wire"] == pytest.approx(socket.up_bytes, rel=0.01)
        total = socket.up_bytes + socket.down_bytes
        assert moved["up"]["wire"] + moved["down"]["wire"] == pytest.approx(total, rel=0.01)
        # What comes after an agent's last report is not in it: the answer to its goodbye, and acknowledgements.
        assert socket.down_bytes - 2_000 < moved["down"]["wire"] <= socket.down_bytes
        assert sum(transport.wire.sent_bytes for transport in transports) == socket.up_bytes
        received_bytes = sum(transport.wire.received_bytes for transport in transports)
        # What the broker still sends while a client goes is read by nobody.
        assert socket.down_bytes - 500 < received_bytes <= socket.down_bytes
        for direction in ("up", "down"):
            assert moved[direction]["payload"] < moved[direction]["wire"]
            # Topics, headers and acknowledgements are little beside tensors.
            assert moved[direction]["wire"] < 1.5 * moved[direction]["payload"] + 20_000


def agent_of(index: int, transport: MqttTransport) -> AgentRuntime:
    incarnation = time.time_ns() // 1_000_000
    return AgentRuntime(transport, f"site/{index}", incarnation, lambda _: small_dataset(index, 160))
