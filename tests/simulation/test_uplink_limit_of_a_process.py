"""`edge-agent start --max-uplink` as a process of its own, over Mosquitto: what has left, as the way to it counts."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from cutlayer.broker.telemetry import STORE_CODEC
from support.brokers import mosquitto_test, running_broker
from support.processes import Process, counting_worker, digits_settings, script
from support.relay import relay

RATE = 60_000.0
"""480 kbit/s."""
LARGEST_BYTES = 40_000
"""More than a microbatch of 16 samples takes, as float32."""


@pytest.mark.slow
@mosquitto_test
def test_a_process_keeps_to_its_limit_steps_down_and_ends_its_run(tmp_path: Path) -> None:
    settings = digits_settings(
        run__epochs=4,
        codecs__activations="identity",
        budget__ladder=["int8", "int4"],
        budget__max_relative_error=0.2,
        activations__mode="every-step",
        telemetry_share=0.01,
    )
    arguments = ["start", "--topic", "clinic/07", "--data", "demo:digits", "--shard", "0/8"]
    with (
        running_broker("mosquitto") as broker,
        relay(broker.port) as link,
        counting_worker(broker.url, settings) as worker,
    ):
        start_s = time.monotonic()
        command = [script("edge-agent"), *arguments, "--broker", f"mqtt://127.0.0.1:{link.port}"]
        with Process(command, tmp_path / "agent.log", CUTLAYER_MAX_UPLINK="480kbit") as agent:
            assert agent.exit_code() == 0
            elapsed_s = time.monotonic() - start_s
            text = agent.text()
        worker.join()
        link.settle()
    ((_, telemetry),) = worker.book.latest()
    sent = link.up_bytes
    assert sent == pytest.approx(telemetry.wire_sent_bytes, rel=0.02), "the last report cannot tell of itself"
    assert telemetry.steps == telemetry.total_steps
    # One-sided, so that a slow machine cannot break it: the process's own time is within what was waited for it here.
    assert sent <= RATE * elapsed_s + RATE + LARGEST_BYTES
    assert sent > 10 * RATE, "enough for the limit to be what decides"
    assert telemetry.paced_s > 0
    assert telemetry.codec_changes >= 1
    assert len(re.findall("activations go as .* instead of .*: .* relative error", text)) == telemetry.codec_changes
    codecs = {row.codec for row in telemetry.traffic if row.kind == "Activations"}
    assert {"identity", "int8"} <= codecs
    assert STORE_CODEC not in codecs
