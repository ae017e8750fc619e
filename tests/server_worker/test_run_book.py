from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cutlayer.broker.messages import Direction, Evaluation, MetricSums, StageTime, Telemetry
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.broker.tuning_spec import TuningSpec
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.federated_averaging import federated_averaging_bytes
from cutlayer.server_worker.run_book import MAX_PROCESSES, RunBook
from cutlayer.server_worker.run_figures import RunFigures
from cutlayer.server_worker.run_json import run_json
from cutlayer.server_worker.versions import versions
from support.synthetic_run import NUM_EPOCHS, STEPS_PER_EPOCH, synthetic_manifest, synthetic_telemetry

NUM_PARAMETERS = 812_042
NUM_CLIENT_PARAMETERS = 11_000
KEYS = {
    "accuracy",
    "bytes",
    "samples",
    "steps",
    "windows",
    "duration_s",
    "round_trip_s",
    "processes",
    "seed",
    "versions",
}


@pytest.fixture
def book() -> RunBook:
    return RunBook(synthetic_manifest(NUM_PARAMETERS), NUM_CLIENT_PARAMETERS)


def as_json(book: RunBook, store: MetricStore | None = None) -> dict[str, object]:
    content: dict[str, object] = run_json(
        book,
        worker="w0",
        windows=200,
        committed_samples=25_600,
        duration_s=90.0,
        training_s=80.0,
        reason="done",
        store=store,
    )
    return content


def evaluation(
    given: str, num_correct: int, num_samples: int, *, epoch: int = 2, final: bool = True, wire_bytes: int = 0
) -> Evaluation:
    return Evaluation(epoch, given, final, MetricSums(1.5 * num_samples, num_correct, num_samples), wire_bytes)


def all_done() -> Telemetry:
    return replace(synthetic_telemetry(), steps=200, total_steps=200)


def telemetry(*evaluations: Evaluation, incarnation: int = 1, sequence: int = 1) -> Telemetry:
    return replace(synthetic_telemetry(1, incarnation=incarnation, sequence=sequence), evaluations=evaluations)


def test_run_json_has_every_key_that_is_promised(book: RunBook) -> None:
    book.take("clinic/07", synthetic_telemetry())
    content = as_json(book)
    assert content.keys() >= KEYS
    assert set(content["accuracy"]) == {"joint", "audio", "image"}  # type: ignore[call-overload]
    assert {key: set(value) for key, value in book.bytes_moved().items()} == {
        direction: {"raw", "payload", "wire"} for direction in ("up", "down")
    }
    assert {frozenset(process) for process in content["processes"]} == {  # type: ignore[attr-defined]
        frozenset({"role", "id", "peak_rss_bytes", "cpu_s"})
    }
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_run_in_which_nothing_happened_can_be_written_down(book: RunBook) -> None:
    content = run_json(book, worker="w0", windows=0, committed_samples=0, duration_s=0.0, training_s=0.0, reason="")
    assert content["accuracy"] == {}
    assert content["bytes_per_sample"] is None
    assert content["round_trip_s"] == {"p50": None, "p95": None}
    json.dumps(content, allow_nan=False)


def test_older_report_than_the_known_one_is_not_taken(book: RunBook) -> None:
    newer, older = synthetic_telemetry(4, sequence=9), synthetic_telemetry(2, sequence=8)
    assert book.take("clinic/07", newer)
    assert not book.take("clinic/07", older)
    assert not book.take("clinic/07", newer)
    assert book.of("clinic/07", newer.incarnation) == newer
    assert book.of("clinic/08", newer.incarnation) is None


def test_two_processes_of_an_agent_are_summed(book: RunBook) -> None:
    first, second = synthetic_telemetry(3, incarnation=1), synthetic_telemetry(5, incarnation=2)
    book.take("clinic/07", first)
    alone = book.bytes_moved()
    book.take("clinic/07", second)
    both = book.bytes_moved()
    assert both["up"]["wire"] == first.wire_sent_bytes + second.wire_sent_bytes
    assert both["down"]["wire"] == first.wire_received_bytes + second.wire_received_bytes
    assert both["up"]["raw"] > alone["up"]["raw"]
    assert len(book.round_trips()) == len(LogHistogram(first.round_trips)) + len(LogHistogram(second.round_trips))
    processes = as_json(book)["processes"]
    assert isinstance(processes, list)
    assert [process["id"] for process in processes] == ["w0", "clinic/07", "clinic/07"]


def test_steps_are_those_that_the_latest_process_of_each_agent_knows(book: RunBook) -> None:
    book.take("clinic/07", synthetic_telemetry(5, incarnation=2))
    book.take("clinic/07", synthetic_telemetry(3, incarnation=1))
    book.take("clinic/08", synthetic_telemetry(1))
    assert as_json(book)["steps"] == (5 + 1) * STEPS_PER_EPOCH


def test_accuracy_counts_samples_and_not_agents(book: RunBook) -> None:
    book.take("clinic/07", telemetry(evaluation("audio+image", 90, 100), evaluation("audio", 10, 100)))
    book.take("clinic/08", telemetry(evaluation("audio+image", 0, 300), evaluation("audio", 290, 300)))
    assert book.accuracy() == {"audio": 0.75, "joint": 0.225}


def test_accuracy_leaves_out_what_is_too_small_to_report(book: RunBook) -> None:
    book.take("clinic/07", telemetry(evaluation("audio+image", 0, 0), evaluation("image", 0, 0)))
    book.take("clinic/08", telemetry(evaluation("audio+image", 50, 100)))
    assert book.accuracy() == {"joint": 0.5}


def test_agent_that_comes_back_and_evaluates_again_counts_once(book: RunBook) -> None:
    book.take("clinic/07", telemetry(evaluation("audio+image", 10, 100), incarnation=1))
    book.take("clinic/07", telemetry(evaluation("audio+image", 90, 100), incarnation=2))
    book.take("clinic/08", telemetry(evaluation("audio+image", 50, 100)))
    assert book.accuracy() == {"joint": 0.7}


def test_history_has_a_row_an_epoch_with_the_bytes_moved_until_then(book: RunBook) -> None:
    first = [evaluation("audio+image", 10 * epoch, 100, epoch=epoch, final=False, wire_bytes=epoch) for epoch in (1, 2)]
    book.take("clinic/07", telemetry(*first, evaluation("audio", 99, 100)))
    book.take("clinic/08", telemetry(evaluation("audio+image", 30, 100, epoch=2, wire_bytes=40)))
    rows = book.history()
    assert [(row["epoch"], row["accuracy"], row["wire_bytes"], row["agents"]) for row in rows] == [
        (1, 0.1, 1, 1),
        (2, 0.25, 42, 2),
    ]


def test_history_of_an_agent_that_came_back_counts_the_bytes_of_both_processes(book: RunBook) -> None:
    before = telemetry(evaluation("audio+image", 10, 100, epoch=1, final=False, wire_bytes=1_000))
    moved = before.wire_sent_bytes + before.wire_received_bytes
    book.take("clinic/07", before)
    book.take("clinic/07", telemetry(evaluation("audio+image", 20, 100, epoch=2, wire_bytes=7), incarnation=2))
    assert [row["wire_bytes"] for row in book.history()] == [1_000, moved + 7]


def test_traffic_is_listed_by_direction_kind_and_codec(book: RunBook) -> None:
    book.take("clinic/07", synthetic_telemetry())
    book.take("clinic/08", synthetic_telemetry())
    rows = {(row["direction"], row["kind"], row["codec"]): row for row in book.traffic()}
    activations = rows["up", "Activations", "int8+zstd:3"]
    assert activations["messages"] == 2 * NUM_EPOCHS * STEPS_PER_EPOCH
    assert activations["raw_bytes"] == activations["messages"] * 32 * 32 * 128 * 4
    assert (
        sum(row["payload_bytes"] for row in rows.values() if row["direction"] == "up")
        == (book.bytes_moved()["up"]["payload"])
    )
    assert all(row["payload_bytes"] <= row["wire_bytes"] for row in rows.values())


def test_wire_bytes_are_those_of_the_connection_and_not_of_messages_alone(book: RunBook) -> None:
    entry = synthetic_telemetry()
    book.take("clinic/07", entry)
    messages = sum(traffic.wire_bytes for traffic in entry.traffic if traffic.direction is Direction.UP)
    assert book.bytes_moved()["up"]["wire"] == entry.wire_sent_bytes > messages


def test_federated_averaging_moves_the_model_both_ways_for_each_agent_and_round(book: RunBook) -> None:
    assert federated_averaging_bytes(1_000, num_rounds=3, num_agents=4) == 2 * 3 * 4 * 1_000 * 4
    for index in range(4):
        book.take(f"clinic/{index:02d}", all_done())
    assert as_json(book)["federated_averaging"] == {
        "bytes": 2 * NUM_EPOCHS * 4 * (NUM_PARAMETERS + NUM_CLIENT_PARAMETERS) * 4,
        "rounds": NUM_EPOCHS,
        "agents": 4,
        "parameters": NUM_PARAMETERS + NUM_CLIENT_PARAMETERS,
    }


@pytest.mark.parametrize(("tokenizers", "num_exchanged"), [("frozen", 30_000), ("trainable", 41_000)])
def test_federated_averaging_of_a_part_exchanges_that_part(tokenizers: str, num_exchanged: int) -> None:
    manifest = synthetic_manifest(NUM_PARAMETERS)
    tuned = manifest.model_copy(
        update={
            "tuning": TuningSpec(mode="lora"),
            "num_trained_parameters": 30_000,
            "tokenizers": manifest.tokenizers.model_copy(update={"mode": tokenizers}),
        }
    )
    book = RunBook(tuned, NUM_CLIENT_PARAMETERS)
    book.take("clinic/00", all_done())
    compared = as_json(book)["federated_averaging"]
    assert isinstance(compared, dict)
    assert compared["parameters"] == num_exchanged
    assert compared["bytes"] == federated_averaging_bytes(num_exchanged, NUM_EPOCHS, 1)
    figures = MetricStore()
    RunFigures(figures, tuned, NUM_CLIENT_PARAMETERS).take("clinic/00", all_done(), None)
    assert figures.value("cutlayer_federated_averaging_bytes") == pytest.approx(compared["bytes"])


def test_federated_averaging_is_compared_for_the_epochs_that_were_trained(book: RunBook) -> None:
    book.take("clinic/00", all_done())
    book.take("clinic/01", replace(all_done(), steps=50))  # of 200: it has left
    whole = federated_averaging_bytes(NUM_PARAMETERS + NUM_CLIENT_PARAMETERS, NUM_EPOCHS, 1)
    compared = as_json(book)["federated_averaging"]
    assert isinstance(compared, dict)
    assert compared["bytes"] == round(1.25 * whole)


def test_bytes_per_sample_is_all_that_moved_over_all_that_was_trained_on(book: RunBook) -> None:
    book.take("clinic/07", synthetic_telemetry())
    moved = book.bytes_moved()
    assert as_json(book)["bytes_per_sample"] == pytest.approx((moved["up"]["wire"] + moved["down"]["wire"]) / 25_600)


def test_versions_name_what_a_run_depends_on() -> None:
    found = versions()
    assert found.keys() >= {"python", "cutlayer", "torch", "timm", "numpy", "paho-mqtt"}
    assert all(found.values())


def timed(stage: str, *seconds: float) -> StageTime:
    times = LogHistogram()
    for each in seconds:
        times.add(each)
    return StageTime(stage, len(seconds), sum(seconds), times.counts())


def test_stages_of_all_agents_are_put_together(book: RunBook) -> None:
    book.take("a", replace(synthetic_telemetry(1), stages=(timed("encode", 0.010, 0.010, 0.010),)))
    book.take("b", replace(synthetic_telemetry(1), stages=(timed("encode", 0.100), timed("of tomorrow", 1.0))))
    encode, other = book.stages()["encode"], book.stages()["other"]
    assert encode["count"] == 4
    assert encode["mean_s"] == pytest.approx(0.0325)
    assert encode["p50_s"] == pytest.approx(0.010, rel=0.03)
    assert encode["p95_s"] == pytest.approx(0.100, rel=0.03)
    assert other["count"] == 1


def test_stages_of_both_sides_stand_in_the_order_of_a_step(book: RunBook) -> None:
    store = MetricStore()
    store.observe("cutlayer_stage_seconds", 0.2, "forward", times=3)
    store.observe("cutlayer_stage_seconds", 0.3, "commit")
    store.observe("cutlayer_stage_seconds", 9.0, "encode")  # the agents' own times are finer
    book.take("a", replace(synthetic_telemetry(1), stages=(timed("encode", 0.01), timed("loss", 0.001))))
    stages = as_json(book, store)["stages"]
    assert list(stages) == ["encode", "forward", "loss", "commit"]  # type: ignore[call-overload]
    assert stages["encode"]["mean_s"] == pytest.approx(0.01)  # type: ignore[index]
    assert stages["forward"]["count"] == 3  # type: ignore[index]


def test_rejects_stand_by_side_and_reason_and_unknown_reasons_together(book: RunBook) -> None:
    store = MetricStore()
    store.add("cutlayer_rejects_total", 2, "worker", "lease")
    book.take("a", replace(synthetic_telemetry(1), rejects_by=(("codec", 1), ("of tomorrow", 2)), reconnects=3))
    book.take("b", replace(synthetic_telemetry(1), rejects_by=(("codec", 4),), reconnects=1))
    content = as_json(book, store)
    assert content["rejects"] == {"agent": {"codec": 5, "other": 2}, "worker": {"lease": 2}}
    assert content["reconnects"] == 4


@pytest.mark.parametrize(
    "sums",
    [MetricSums(1.0, 33, 32), MetricSums(1.7e308, 1, 32), MetricSums(-1.7e308, 1, 32), MetricSums(5.0, 0, 0)],
    ids=["more right than samples", "a loss beyond measure", "below it", "a loss of nothing"],
)
def test_report_that_claims_what_cannot_be_is_not_taken(book: RunBook, sums: MetricSums) -> None:
    honest = telemetry(evaluation("audio+image", 20, 40))
    for claim in (
        replace(honest, sequence=2, recent=sums),
        replace(honest, sequence=2, train=sums),
        replace(honest, sequence=2, evaluations=(Evaluation(1, "audio+image", True, sums, 0),)),
    ):
        assert not book.take("clinic/07", claim)
    assert book.take("clinic/07", honest)
    assert book.accuracy() == {"joint": 0.5}


def test_processes_of_an_agent_that_are_kept_are_limited(book: RunBook) -> None:
    taken = [book.take("clinic/07", telemetry(incarnation=1 + number)) for number in range(MAX_PROCESSES + 5)]
    assert taken == [True] * MAX_PROCESSES + [False] * 5
    assert book.take("clinic/07", telemetry(incarnation=1, sequence=2)), "those that are known go on"
    assert book.take("clinic/08", telemetry())
