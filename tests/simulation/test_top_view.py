import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cutlayer.broker.messages import RunPhase
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panels import Shape
from cutlayer.simulation.top_state import TopState, as_document
from cutlayer.simulation.top_view import TopScreen
from support.reported_run import EVERY_S, Reporters, grown_store, worker_state

WIDTHS = (60, 80, 100, 120, 160, 200)


def shown(state: TopState, width: int = 80, *, waited_s: float = 0.0, height: int | None = None) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(TopScreen(state, waited_s=waited_s, height=height))
    return captured.get()


def words(text: str) -> str:
    return " ".join(text.split())


def running(num_reports: int = 4) -> Reporters:
    reporters = Reporters()
    reporters.start()
    reporters.run(num_reports)
    return reporters


@pytest.fixture(scope="module")
def state() -> TopState:
    return running().feed.state()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(state: TopState, width: int) -> None:
    assert max(map(len, shown(state, width).splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_every_panel_of_the_overview_is_there(state: TopState, width: int) -> None:
    text = words(shown(state, width))
    for panel in OVERVIEW.panels:
        assert panel.title in text


def test_numbers_have_their_units(state: TopState) -> None:
    text = words(shown(state, 160))
    for number in ("640/s", "2.0 MB/s", "20.0 kB/s", "4.0x", "18 %"):
        assert number in text


def test_questions_of_the_overview_are_answered_in_words(state: TopState) -> None:
    text = shown(state)
    assert "Which site is slow?" in text
    assert any("clinic/02" in line for line in text.splitlines() if "Which site is slow?" in line)
    assert any("Up: 99" in line for line in text.splitlines() if "Which direction" in line)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_answers_have_their_figures(state: TopState, width: int) -> None:
    text = shown(state, width)
    assert all(each.detail in text for each in state.headlines)


def test_slowest_site_has_the_longest_bar_and_the_first_line_of_the_table(state: TopState) -> None:
    lines = shown(state, 160).splitlines()
    table = lines[next(index for index, line in enumerate(lines) if line.startswith("Sites ") and "trip" in line) :]
    assert table[1].startswith("clinic/02")
    assert "400 ms" in table[1]


def test_kinds_of_message_that_were_not_sent_have_no_bar(state: TopState) -> None:
    assert "Activations up" in shown(state)
    assert "Busy down" not in shown(state)


@pytest.mark.parametrize("width", WIDTHS)
def test_table_of_sites_has_whole_figures(state: TopState, width: int) -> None:
    lines = shown(state, width).splitlines()
    assert lines[-1].startswith("clinic/00")
    assert "40.0 ms" in lines[-1]


def test_panel_without_data_says_why(state: TopState) -> None:
    assert "this broker tells nothing of itself" in words(shown(state, 120))


def test_terminal_without_blocks_gets_letters(state: TopState) -> None:
    console = Console(width=80)
    options = console.options.copy()
    options.encoding = "ascii"
    lines = list(TopScreen(state).__rich_console__(console, options))
    assert all(str(line).isascii() for line in lines)


def test_low_window_shows_what_matters_most_and_says_what_is_missing(state: TopState) -> None:
    lines = shown(state, 80, height=24).splitlines()
    assert len(lines) == 24
    assert "more lines in a higher window" in lines[-1]
    assert "Is the run well?" in "".join(lines)


def test_broker_without_a_run_is_said_to_be_waited_for() -> None:
    reporters = Reporters()
    reporters.feed.start()
    reporters.pump()
    assert "No run is announced here: waiting" in shown(reporters.feed.state())


def test_worker_that_has_not_reported_yet_is_named() -> None:
    reporters = Reporters()
    reporters.start()
    assert "Waiting for worker-0's first report." in shown(reporters.feed.state())
    assert "older releases send none" in shown(reporters.feed.state(), waited_s=11.0)


def test_worker_that_falls_silent_is_named() -> None:
    reporters = running()
    reporters.clock.now_s += 30.0
    assert "worker-0 has said nothing for 32.0 s." in shown(reporters.feed.state())


def test_run_that_has_ended_keeps_its_last_screen_and_says_so() -> None:
    reporters = running()
    reporters.state(worker_state(phase=RunPhase.ENDED, online=False, reason="all agents have done their epochs"))
    text = shown(reporters.feed.state())
    assert "The run has ended: all agents have done their epochs." in text
    assert "2.0 MB/s" in text


def test_lost_connection_is_said(state: TopState) -> None:
    text = shown(replace(state, is_connected=False, problem="timed out"))
    assert "no connection to mqtt://hub: timed out; trying again" in text


def test_names_of_peers_cannot_style_or_steer_the_terminal() -> None:
    reporters = Reporters()
    reporters.start()
    for sequence in (1, 2):
        reporters.report(grown_store(10 * sequence, agents={"[bold red]x[/]": 0.4, "\N{WATCH}" * 200: 0.3}), sequence)
        reporters.clock.now_s += EVERY_S
    state = reporters.feed.state()
    assert "[bold red]x[/]" in shown(state, 100)
    hostile = replace(state, problem="\x1b[2Jgone", is_connected=False)
    assert "\x1b" not in shown(hostile)
    assert max(map(len, shown(hostile, 80).splitlines())) <= 80


def test_more_sites_than_a_screen_has_are_counted() -> None:
    reporters = Reporters()
    reporters.start()
    for sequence in (1, 2):
        reporters.report(grown_store(10 * sequence, agents={f"site/{index:02d}": 0.1 for index in range(30)}), sequence)
        reporters.clock.now_s += EVERY_S
    assert shown(reporters.feed.state()).splitlines()[-1] == "and 10 more"


def test_document_has_every_panel_with_its_unit_and_values_in_base_units(state: TopState) -> None:
    document = json.loads(json.dumps(as_document(state), allow_nan=False))
    assert document["format"] == 1
    assert document["run"]["run_id"] == "digits-4f1c22aa"
    assert document["run"]["phase"] == "training"
    assert document["pictures"] == 4
    assert document["workers"] == [
        {
            "name": "worker-0", "online": True, "phase": "training", "agents": 3,
            "report_age_s": EVERY_S, "is_late": False,
        }
    ]  # fmt: skip
    panels = {panel["title"]: panel for panel in document["panels"]}
    assert list(panels) == [panel.title for panel in OVERVIEW.panels]
    assert panels["Wire up"]["unit"] == "Bps"
    assert panels["Wire up"]["targets"][0]["values"] == [{"name": "up", "labels": {}, "value": 2_000_000.0}]
    heaviest = panels["Bytes by direction and message"]["targets"][0]["values"]
    assert heaviest[0]["labels"] == {"direction": "up", "kind": "Activations"}
    assert heaviest[0]["name"] == "Activations up"
    for place, panel in enumerate(OVERVIEW.panels):
        assert len(document["panels"][place]["targets"]) == len(panel.targets)
    assert panels["Broker"]["targets"][0]["values"] == []


def test_every_key_of_the_document_is_documented(state: TopState) -> None:
    told = (Path(__file__).parents[2] / "docs" / "top.md").read_text(encoding="utf-8")
    document = as_document(state)
    value = document["panels"][0]["targets"][0]["values"][0]
    for part in (document, document["run"], document["workers"][0], document["headlines"][0], document["agents"][0]):
        assert [key for key in part if f"`{key}`" not in told] == []
    for part in (document["panels"][0], document["panels"][0]["targets"][0], value):
        assert [key for key in part if f"`{key}`" not in told] == []


def test_document_lists_agents_with_every_figure(state: TopState) -> None:
    slowest = as_document(state)["agents"][0]
    assert slowest == {
        "agent": "clinic/02",
        "progress": 0.18,
        "samples": 213.0 * 18,
        "steps": 0.0,
        "resends": 0.0,
        "wire_bytes": {"up": 700_000.0 * 18, "down": 7_000.0 * 18},
        "raw_bytes": {"up": 2_700_000.0 * 18, "down": 0.0},
        "wire_bytes_per_s": {"up": pytest.approx(700_000), "down": pytest.approx(7_000)},
        "silence_s": 0.5,
        "round_trip_s": {"p50": 0.2, "p95": 0.4},
    }


def test_document_of_a_broker_without_a_run_is_empty_and_whole() -> None:
    document = as_document(Reporters().feed.state())
    assert (document["run"], document["workers"], document["agents"], document["pictures"]) == (None, [], [], 0)
    assert all(target["values"] == [] for panel in document["panels"] for target in panel["targets"])


def test_no_panel_of_the_overview_has_a_shape_that_a_terminal_does_not_draw() -> None:
    drawn = {Shape.NUMBER, Shape.BARS, Shape.LINES, Shape.STACK}
    assert {panel.shape for panel in OVERVIEW.panels} <= drawn
