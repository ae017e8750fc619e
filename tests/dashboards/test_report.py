import json
import re
from pathlib import Path
from typing import Any

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.dashboards.report import render_report
from cutlayer.dashboards.run_record import load_run, parse_run
from cutlayer.dashboards.units import bytes_text, duration_text, latency_text, percent_text, ratio_text
from support.html_page import Page
from support.synthetic_run import NUM_EPOCHS, synthetic_run

ATTACK = "<script>alert('\"$x_{$&amp;')</script>"


def demo_run() -> dict[str, Any]:
    run = synthetic_run()
    run["processes"].append({"role": "broker", "id": "amqtt", "peak_rss_bytes": 45_000_000, "cpu_s": 12.5})
    run["demo"] = {"alpha": 0.5, "broker": {"kind": "amqtt"}}
    return run


def test_every_figure_of_the_run_is_in_the_report() -> None:
    words = Page(render_report(demo_run())).words
    for figure in (
        "digits-4f1c22aa",
        "all agents have done their epochs",
        "90.4 % test accuracy, all modalities",
        "106.2 MB on the wire, both directions",
        "4.0x raw bytes over wire bytes",
        "4.1 kB per training sample",
        "up 420.5 MB 102.9 MB 105.5 MB 4.0x",
        "down 1.0 MB 637.6 kB 722.2 kB 1.4x",
        "both 421.5 MB 103.5 MB 106.2 MB 4.0x",
        "round trip, median 74.3 ms",
        "round trip, 95th percentile 127 ms",
        "messages sent again 4",
        "time until the last commit 1 min 28 s",
        "Federated averaging would have moved 210.7 MB",
        "Activations up int8+zstd:3 800 419.4 MB 102.3 MB 104.9 MB",
        "agent clinic/03 71.0 MB 4.0 s",
        "broker amqtt 45.0 MB 12.5 s",
        "window.mode asynchronous",
        "broker.kind amqtt",
        "python 3.",
    ):
        assert figure in words


def test_plots_show_accuracy_bytes_and_modalities() -> None:
    page = Page(render_report(demo_run()))
    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    assert labels == [
        "Test accuracy against epoch",
        "Test accuracy against bytes on the wire",
        "Test accuracy by modality given",
        "Bytes on the wire by kind of message and direction",
    ]
    for text in ("guessing", "epoch", "81.2 %", "73.6 %", "audio alone", "104.9 MB up", "640.0 kB down"):
        assert text in page.words
    markers = [attributes for tag, attributes in page.tags if tag == "use" and "joint" in str(attributes.get("style"))]
    assert len(markers) == 2 * NUM_EPOCHS  # a point an epoch, in both curves


def test_report_refers_to_nothing_outside_itself() -> None:
    document = render_report(demo_run())
    assert "://" not in document
    assert "@import" not in document
    page = Page(document)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("href", "xlink:href", "src", "srcset", "data", "action")
    ]
    assert references
    assert all(value == "data:," or (value or "").startswith("#") for value in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", document))


def test_references_inside_the_plots_hit_one_target_each() -> None:
    page = Page(render_report(demo_run()))
    identifiers = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(identifiers) == len(set(identifiers))
    used = {value[1:] for _, attributes in page.tags if (value := attributes.get("href")) and value.startswith("#")}
    assert used <= set(identifiers)


def test_same_run_gives_the_same_bytes() -> None:
    assert render_report(demo_run()) == render_report(demo_run())


def test_names_that_peers_chose_are_text_and_nothing_else() -> None:
    run = demo_run()
    run["run_id"] = run["reason"] = run["processes"][1]["id"] = run["versions"]["numpy"] = ATTACK
    run["traffic"][0]["kind"] = run["traffic"][0]["codec"] = ATTACK
    run["accuracy"][ATTACK] = 0.5
    run["manifest"][ATTACK] = ATTACK
    run["demo"] = {ATTACK: [ATTACK]}
    document = render_report(run)
    page = Page(document)
    assert page.count("script") == 0
    assert "<script" not in document
    assert page.words.count(ATTACK) >= 9
    assert ("http-equiv", "Content-Security-Policy") in [
        item for tag, attributes in page.tags if tag == "meta" for item in attributes.items()
    ]


def test_names_in_other_scripts_and_long_ones_are_drawn() -> None:
    run = demo_run()
    run["accuracy"] = {"joint": 0.9, "\u58f0\u97f3": 0.8, "x" * 64: 0.7}
    words = Page(render_report(run)).words
    assert "\u58f0\u97f3 alone" in words
    assert "x" * 23 + "\N{HORIZONTAL ELLIPSIS}" in words


def test_flood_of_kinds_does_not_make_a_plot_without_end() -> None:
    run = demo_run()
    run["traffic"] += [{**run["traffic"][0], "kind": f"kind {number}"} for number in range(500)]
    document = render_report(run)
    assert "499 others" in Page(document).words
    assert len(document) < 1_000_000


def test_run_without_evaluation_has_a_report() -> None:
    run = demo_run()
    run |= {"accuracy": {}, "history": [], "traffic": [], "bytes_per_sample": None, "demo": {}}
    run["round_trip_s"] = {"p50": None, "p95": None}
    page = Page(render_report(run))
    assert page.count("svg") == 0
    assert "- test accuracy, all modalities" in page.words


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("bytes", None, "bytes"),
        ("accuracy", {"joint": 1.5}, "accuracy.joint"),
        ("format", 2, "format"),
        ("round_trip_s", {"p50": float("nan"), "p95": 1.0}, "round_trip_s.p50"),
        ("processes", [{"role": "agent"}], "processes.0.id"),
    ],
)
def test_record_that_is_wrong_is_refused_and_the_key_is_named(key: str, value: object, named: str) -> None:
    with pytest.raises(SettingsError, match=rf"{re.escape(named)}: "):
        render_report(demo_run() | {key: value})


def test_key_that_is_missing_is_named() -> None:
    run = demo_run()
    del run["windows"]
    with pytest.raises(SettingsError, match="windows: Field required"):
        render_report(run)


def test_key_that_is_not_known_is_left_alone() -> None:
    parse_run(demo_run() | {"from_the_future": 1})


@pytest.mark.parametrize(("content", "named"), [("{", "is no JSON"), ("[]", "holds no JSON object")])
def test_file_that_is_no_record_is_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=named):
        load_run(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_run(tmp_path / "missing.json")


def test_record_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(demo_run()), encoding="utf-8")
    assert render_report(load_run(path)) == render_report(demo_run())


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(999.7), "1.0 kB"),
        (bytes_text(999_949), "999.9 kB"),
        (bytes_text(999_950), "1.0 MB"),
        (bytes_text(12_345_678), "12.3 MB"),
        (bytes_text(1e19), "10000.0 PB"),
        (bytes_text(None), "-"),
        (latency_text(0.0004), "0.4 ms"),
        (latency_text(0.12345), "123 ms"),
        (latency_text(0.9999), "1.00 s"),
        (latency_text(12.34), "12.3 s"),
        (latency_text(None), "-"),
        (duration_text(59.94), "59.9 s"),
        (duration_text(59.96), "1 min 00 s"),
        (duration_text(3_725), "1 h 02 min"),
        (duration_text(None), "-"),
        (percent_text(0.904), "90.4 %"),
        (percent_text(None), "-"),
        (ratio_text(30, 10), "3.0x"),
        (ratio_text(12_345, 1), "12,345x"),
        (ratio_text(1, 0), "-"),
    ],
)
def test_numbers_read_well(got: str, expected: str) -> None:
    assert got == expected
