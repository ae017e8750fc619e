from dataclasses import replace

from rich.console import Console

from cutlayer.broker.messages import MetricSums, RunPhase, WorkerState
from cutlayer.broker.tasks import TaskSpec
from cutlayer.simulation.live_view import LiveTable, PlainLines, progress_line, status_table
from cutlayer.simulation.run_status import RunStatus
from support.synthetic_run import NUM_EPOCHS, synthetic_manifest, synthetic_telemetry
from support.synthetic_tasks import AGE, FINDINGS, task_manifest, task_telemetry


def worker_state(phase: RunPhase, agents: int = 4, reason: str = "") -> WorkerState:
    return WorkerState(True, "worker-0", 1, bytes(32), phase, agents, 10, reason)


def status_after(*epochs: int, phase: RunPhase = RunPhase.TRAINING) -> RunStatus:
    """Return the status when each agent has committed so many epochs."""
    status = RunStatus.of_agents(f"clinic/{index:02d}" for index in range(len(epochs)))
    status.worker = worker_state(phase, len(epochs))
    status.take_manifest(synthetic_manifest())
    for index, epoch in enumerate(epochs):
        if epoch:
            status.take_telemetry(f"clinic/{index:02d}", synthetic_telemetry(epoch))
    return status


def rendered(status: RunStatus, elapsed_s: float = 63.2, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(status_table(status, elapsed_s))
    return captured.get()


def row_of(text: str, first: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_each_agent_has_a_row_with_its_figures() -> None:
    row = row_of(rendered(status_after(3, 5)), "clinic/01")
    _, _, epoch, loss, train, test, up, up_unit, down, down_unit, ratio, trip, trip_unit = row
    assert epoch == f"5/{NUM_EPOCHS}"
    assert (loss, train, test) == ("0.387", "86.2", "86.3")
    assert (float(up), up_unit, float(down), down_unit) == (16.5, "MB", 116.1, "kB")
    assert (ratio, trip_unit) == ("4.0x", "ms")
    assert 30 < float(trip) < 90


def test_totals_are_over_all_agents() -> None:
    row = row_of(rendered(status_after(4, 4, 4)), "all")
    assert row[-7:-3] == ["39.6", "MB", "283.7", "kB"]


def test_agent_that_has_not_spoken_has_a_row_of_dashes() -> None:
    assert row_of(rendered(status_after(3, 0)), "clinic/01")[-8:] == ["-"] * 8


def test_table_fits_80_columns_and_cuts_nothing_off() -> None:
    status = status_after(*[NUM_EPOCHS] * 4)
    text = rendered(status)
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_nothing_known_yet_says_what_it_waits_for() -> None:
    assert "waiting for the worker" in rendered(RunStatus.of_agents(["clinic/00"]))


def test_missing_agents_are_counted_while_the_worker_waits() -> None:
    status = RunStatus.of_agents(["clinic/00", "clinic/01"])
    status.worker = worker_state(RunPhase.WAITING, agents=1)
    assert "waiting for agents: 1 of 2 are there" in rendered(status)


def test_end_of_the_run_is_shown_with_its_reason_and_no_control_characters() -> None:
    status = status_after(NUM_EPOCHS)
    status.worker = worker_state(RunPhase.ENDED, reason="done\x1b[2J")
    assert "ended: done\\x1b[2J" in rendered(status)


def status_of_task(task: TaskSpec, epoch: int) -> RunStatus:
    status = RunStatus.of_agents(["clinic/00", "clinic/01"])
    status.worker = worker_state(RunPhase.TRAINING, 2)
    status.take_manifest(task_manifest(task))
    for agent in status.agents:
        status.take_telemetry(agent, task_telemetry(task, epoch))
    return status


def test_errors_are_shown_in_the_users_unit_and_fall_as_the_model_learns() -> None:
    status = status_of_task(AGE, 4)
    text = rendered(status)
    assert "test %" not in text
    assert row_of(text, "clinic/01")[4:6] == ["3.000", "3.000"]
    line = next(line for line in text.splitlines() if line.startswith("test mean absolute error by epoch"))
    assert "(less is better)" in line
    assert line.endswith("3.000 years")
    assert "\N{FULL BLOCK}" in line.split("better)")[1], "the first epoch's error fills a block"
    assert "mean absolute error 3.000 years (test 3.000 years)" in progress_line(status, 63.2)


def test_several_classes_a_sample_are_shown_in_percent() -> None:
    status = status_of_task(FINDINGS, 4)
    assert "test %" in rendered(status)
    assert "micro-F1 88.9 % (test 88.9 %)" in progress_line(status, 63.2)


def test_accuracy_of_each_epoch_is_drawn() -> None:
    line = next(line for line in rendered(status_after(3, 3)).splitlines() if "by epoch" in line)
    assert line.startswith("test accuracy by epoch  \N{LOWER HALF BLOCK}")
    assert line.rstrip().endswith("77.0 %")


def test_progress_line_holds_the_same_figures() -> None:
    line = progress_line(status_after(4, 4), 63.2)
    assert line.startswith("1 min 03 s  training, 50% of the steps, loss 0.552, accuracy 82.8 % (test 83.2 %), ")
    assert "up 26.4 MB, down 189.1 kB, ratio 4.0x, round trip" in line


def test_silent_agents_count_as_not_started() -> None:
    assert status_after(NUM_EPOCHS, 0).done_share == 0.5


def test_lines_come_at_intervals_and_with_each_new_phase() -> None:
    lines: list[str] = []
    with PlainLines(lines.append, every_s=3.0) as view:
        for tenths in range(62):
            view.show(status_after(1), tenths / 10)
        assert len(lines) == 3
        view.show(status_after(1, phase=RunPhase.EVALUATING), 6.2)
    assert len(lines) == 4
    assert "evaluating" in lines[-1]


def test_last_frame_stays_on_the_terminal() -> None:
    console = Console(width=80, force_terminal=True)
    with console.capture() as captured, LiveTable(console) as view:
        view.show(status_after(1), 1.0)
        view.show(status_after(2), 1.1)  # too soon for a frame of its own
    assert f"2/{NUM_EPOCHS}" in captured.get()


def test_old_counters_and_other_agents_change_nothing() -> None:
    status = status_after(5)
    status.take_telemetry("clinic/00", replace(synthetic_telemetry(2), sequence=0))
    status.take_telemetry("clinic/77", synthetic_telemetry(8))
    assert list(status.agents) == ["clinic/00"]
    telemetry = status.agents["clinic/00"].telemetry
    assert telemetry is not None
    assert telemetry.epoch == 5


def test_loss_stays_when_a_report_has_none() -> None:
    status = status_after(5)
    silent = replace(synthetic_telemetry(5), sequence=2, recent=MetricSums(0.0, 0, 0))
    status.take_telemetry("clinic/00", silent)
    assert row_of(rendered(status), "clinic/00")[3] == "0.387"


def test_another_run_starts_the_counters_anew() -> None:
    status = status_after(5)
    status.take_manifest(synthetic_manifest(num_parameters=7))
    assert status.agents["clinic/00"].telemetry is None
    assert "by epoch" not in rendered(status)
