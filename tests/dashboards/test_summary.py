from typing import Any

from rich.console import Console

from cutlayer.dashboards.federated_comparison import federated_averaging_text
from cutlayer.dashboards.run_record import parse_run
from cutlayer.dashboards.summary import summary
from support.synthetic_run import synthetic_run


def rendered(run: dict[str, Any]) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(summary(parse_run(run)))
    return captured.get()


def words(text: str) -> str:
    return " ".join(text.split())


def test_accuracy_is_given_for_all_modalities_and_for_each_alone() -> None:
    text = words(rendered(synthetic_run()))
    assert "all modalities 90.4 %" in text
    assert "audio alone 81.2 %" in text
    assert "image alone 73.6 %" in text


def test_bytes_are_given_raw_payload_and_wire_in_both_directions() -> None:
    text = words(rendered(synthetic_run()))
    assert "up 420.5 MB 102.9 MB 105.5 MB 4.0x" in text
    assert "down 1.0 MB 637.6 kB 722.2 kB 1.4x" in text
    assert "both 421.5 MB 103.5 MB 106.2 MB 4.0x" in text
    assert "4.1 kB on the wire for each training sample" in text


def test_round_trips_windows_and_duration_are_given() -> None:
    text = words(rendered(synthetic_run()))
    assert "round trip, median 74.3 ms" in text
    assert "round trip, 95th percentile 127 ms" in text
    assert "windows 200" in text
    assert "duration 1 min 36 s" in text


def test_each_process_has_its_memory_and_processor_time() -> None:
    run = synthetic_run()
    run["processes"].append({"role": "broker", "id": "amqtt", "peak_rss_bytes": 45_000_000, "cpu_s": 12.5})
    text = words(rendered(run))
    assert "agent clinic/03 71.0 MB 4.0 s" in text
    assert "broker amqtt 45.0 MB 12.5 s" in text


def test_federated_averaging_that_moves_more_is_said_to() -> None:
    text = federated_averaging_text(parse_run(synthetic_run()))
    assert "would have moved 210.7 MB (computed from 823,042 float32 parameters, 8 rounds and 4 agents)" in text
    assert "2.0x what this run moved" in text


def test_federated_averaging_of_a_run_that_was_stopped_is_of_what_was_trained() -> None:
    run = synthetic_run()
    run["federated_averaging"]["bytes"] //= 4
    text = federated_averaging_text(parse_run(run))
    assert (
        "52.7 MB (computed from 823,042 float32 parameters, 8 rounds and 4 agents, of which 25 % were trained)" in text
    )


def test_federated_averaging_that_moves_less_is_said_to() -> None:
    text = federated_averaging_text(parse_run(synthetic_run(num_parameters=70_000)))
    assert "This run moved more: 5.1x as much" in text


def test_run_without_evaluation_or_round_trips_has_a_summary() -> None:
    run = synthetic_run()
    run |= {"accuracy": {}, "history": [], "traffic": [], "bytes_per_sample": None}
    run["round_trip_s"] = {"p50": None, "p95": None}
    run["bytes"] = {direction: {"raw": 0, "payload": 0, "wire": 0} for direction in ("up", "down")}
    text = words(rendered(run))
    assert "(not evaluated)" in text
    assert "round trip, median -" in text


def test_names_that_peers_chose_cannot_style_or_steer_the_terminal() -> None:
    run = synthetic_run()
    run["processes"][1]["id"] = "[bold red]clinic[/]\x1b[2J"
    text = rendered(run)
    assert "[bold red]clinic[/]\\x1b[2J" in text
    assert "\x1b[2J" not in text


def test_projected_bytes_of_an_agent_and_day_are_given() -> None:
    # 106.2 MB of 4 agents in 96.4 s.
    assert "on the wire for each training sample, evaluation included; 23.8 GB an agent and day" in words(
        rendered(synthetic_run())
    )


def test_stages_are_given_in_the_order_of_a_step() -> None:
    run = synthetic_run()
    run["stages"] = {"encode": {"count": 800, "mean_s": 0.002, "p50_s": 0.001, "p95_s": 0.01}}
    assert "encode 800 2.0 ms 1.0 ms 10.0 ms" in words(rendered(run))


def test_record_of_an_earlier_release_has_a_summary() -> None:
    run = synthetic_run()
    for key in ("stages", "rejects", "reconnects"):
        del run[key]
    text = rendered(run)
    assert "stage of a step" not in text
    assert "messages not taken" not in text


def test_many_agents_share_one_line() -> None:
    run = synthetic_run(num_agents=40)
    run["processes"].append({"role": "broker", "id": "amqtt", "peak_rss_bytes": 45_000_000, "cpu_s": 12.5})
    text = words(rendered(run))
    assert "clinic/11" in text
    assert "clinic/12" not in text
    assert "agent 28 others at most 71.0 MB 1 min 52 s" in text
    assert "broker amqtt" in text


def test_summary_fits_80_columns() -> None:
    assert max(map(len, rendered(synthetic_run()).splitlines())) <= 80
