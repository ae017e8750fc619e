from dataclasses import replace

from cutlayer.dashboards.agent_cost import agent_cost_text
from support.synthetic_run import synthetic_telemetry


def test_line_has_bytes_ratio_samples_and_round_trips() -> None:
    assert agent_cost_text(synthetic_telemetry()) == (
        "cost of this run here: 26.4 MB sent and 180.6 kB received on the wire, 105.4 MB as float32 (4.0x); "
        "6,400 training samples, 4.1 kB each; round trip 52.8 ms (median), 86.0 ms (95 %); 1 message sent again"
    )


def test_agent_that_has_done_nothing_has_a_line_too() -> None:
    idle = replace(
        synthetic_telemetry(),
        traffic=(), wire_sent_bytes=300, wire_received_bytes=40, samples=0, round_trips=(), resends=0,
    )  # fmt: skip
    assert agent_cost_text(idle) == "cost of this run here: 300 B sent and 40 B received on the wire"
