import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Annotated

import pytest
import typer

from cutlayer.broker.command_line import GracefulStop, VersionOption, configure_logging, printable, run_app
from cutlayer.broker.errors import (
    BrokerUnreachable,
    CutlayerError,
    IdentityTaken,
    ManifestUnsatisfiable,
    SettingsError,
    WrongVersion,
)
from support.waiting import LIMIT_S


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("cutlayer")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def app_that(action: Callable[[], None]) -> typer.Typer:
    app = typer.Typer()

    @app.callback()
    def group(version: VersionOption = False) -> None:
        """Group."""

    @app.command()
    def start(debug: Annotated[bool, typer.Option("--debug")] = False) -> None:
        configure_logging("text", debug=debug)
        action()

    return app


def run(monkeypatch: pytest.MonkeyPatch, app: typer.Typer, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_app(app, name="program")
    return caught.value.code


def raises(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CutlayerError("odd"), 1),
        (SettingsError("--x is 3", "use 4"), 2),
        (WrongVersion(2, 1), 1),
        (BrokerUnreachable("mqtt://nowhere", "refused"), 3),
        (ManifestUnsatisfiable("no audio", "add audio"), 4),
        (IdentityTaken("clinic/07"), 5),
    ],
)
def test_error_becomes_one_message_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: CutlayerError, code: int
) -> None:
    assert run(monkeypatch, app_that(raises(error)), "start") == code
    printed = capsys.readouterr()
    assert printed.err == f"program: {error}\n"
    assert printed.out == ""


def test_fault_of_the_program_says_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, app_that(raises(KeyError("lost"))), "start") == 1
    assert capsys.readouterr().err == (
        "program: unexpected KeyError: 'lost'\n  fix: run the same command with --debug and report what it prints\n"
    )


def test_traceback_appears_with_debug_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, app_that(raises(SettingsError("--x is 3"))), "start")
    assert "Traceback" not in capsys.readouterr().err
    run(monkeypatch, app_that(raises(SettingsError("--x is 3"))), "start", "--debug")
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("program: --x is 3\n")


def test_ctrl_c_is_130_and_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, app_that(raises(KeyboardInterrupt())), "start") == 130
    assert capsys.readouterr().err == ""


def test_command_that_ends_well_exits_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, app_that(lambda: None), "start") == 0


def test_wrong_flag_exits_with_2_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, app_that(lambda: None), "start", "--colour") == 2
    assert "--colour" in capsys.readouterr().err


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, app_that(lambda: None), "--version") == 0
    assert capsys.readouterr().out.startswith("cutlayer 0.")


def test_control_characters_of_an_error_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, app_that(raises(CutlayerError("said \x1b[2J\r\x07"))), "start")
    assert capsys.readouterr().err == "program: said \\x1b[2J\\x0d\\x07\n"


def test_printable_keeps_lines_tabs_and_every_script() -> None:
    assert printable("\u00fc\t\u58f0\n\x9b") == "\u00fc\t\u58f0\n\\x9b"


def test_text_log_is_terse(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("cutlayer.x").info("epoch %d is done", 3)
    logging.getLogger("cutlayer.x").warning("slow")
    logging.getLogger("cutlayer.x").debug("not shown")
    logging.getLogger("library").info("not shown")
    first, second = capsys.readouterr().err.splitlines()
    assert first[2] == first[5] == ":"
    assert first[8:] == " epoch 3 is done"
    assert second[8:] == " warning: slow"


def test_line_break_in_a_peers_text_cannot_pass_for_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("cutlayer").info("worker says %s", "hello\n12:00:00 all is well")
    assert capsys.readouterr().err.splitlines()[1].startswith("    ")


def test_json_log_is_an_object_a_line_with_its_extras(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    logging.getLogger("cutlayer.x").info("window %d\n", 7, extra={"window": 7, "path": object})
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("cutlayer.x").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["time"].endswith("+00:00")
    assert {key: first[key] for key in ("level", "logger", "message", "window", "path")} == {
        "level": "info",
        "logger": "cutlayer.x",
        "message": "window 7\n",
        "window": 7,
        "path": "<class 'object'>",
    }
    assert second["level"] == "error"
    assert "ValueError: odd" in second["exception"]


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text", quiet=True)
    logging.getLogger("cutlayer").info("not shown")
    logging.getLogger("cutlayer").warning("shown")
    assert capsys.readouterr().err.endswith("warning: shown\n")


def test_second_configuration_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    configure_logging("json")
    logging.getLogger("cutlayer").info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_unknown_log_format_is_refused() -> None:
    with pytest.raises(SettingsError, match="--log-format 'xml' is unknown"):
        configure_logging("xml")


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_without_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging("text")
    logging.getLogger("cutlayer").warning("slow")
    assert ("\x1b[33m" in capsys.readouterr().err) is coloured


def test_first_signal_asks_and_second_ctrl_c_insists() -> None:
    with GracefulStop() as stop:
        assert not stop.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert stop.should_stop()
        assert stop.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_asks_as_often_as_it_comes() -> None:
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with GracefulStop():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ctrl_c_is_acknowledged_at_once() -> None:
    code = """
        import time
        from cutlayer.broker.command_line import GracefulStop
        with GracefulStop("finishing; Ctrl-C again to stop at once") as stop:
            print("ready", flush=True)
            while not stop.should_stop():
                time.sleep(0.01)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        _, printed = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert printed == "\nfinishing; Ctrl-C again to stop at once\n"
