"""What Cutlayer's commands have in common: exit codes, one-line errors, logs, and how a signal stops them.

A command is a `typer.Typer`; its console script calls `run_app`, which turns every error into one message on
stderr and the exit code of its class (`cutlayer.broker.errors`). Nothing happens at import.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Annotated, Final, NoReturn, TextIO

import typer

from cutlayer.broker.errors import CutlayerError, SettingsError

__all__ = ["EXIT_CODES", "GracefulStop", "VersionOption", "configure_logging", "printable", "run_app"]

LOG_FORMATS: Final = ("text", "json")
ROOT_LOGGER: Final = "cutlayer"

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 unexpected failure; 2 a setting, flag or file is wrong; 3 no broker, or it refuses; "
    "4 this program and the run do not fit together; 5 another process has this identity; 130 stopped by Ctrl-C."
)
"""For the epilog of a command's help; the classes of `cutlayer.broker.errors` say the same."""

INTERRUPTED: Final = 128 + signal.SIGINT

# Peers choose some of the text that gets here; ESC and its like could rewrite the terminal or forge a log line.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def run_app(app: typer.Typer, *, name: str) -> NoReturn:
    """Run a command line and exit: 0, or the exit code of the error that ended it.

    An error that Cutlayer raises on purpose becomes one message on stderr; so does any other, as what it is: a
    fault of this program. Tracebacks appear with `--debug` only.

    Args:
        app: The commands.
        name: Name of the program, for its help and in front of errors.

    Raises:
        SystemExit: Always.
    """
    try:
        app(prog_name=name)
    except CutlayerError as error:
        _explain(name, str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the edge of the program: whatever it is, a person reads it
        hint = "" if _is_debugging() else "\n  fix: run the same command with --debug and report what it prints"
        _explain(name, f"unexpected {type(error).__name__}: {error}{hint}")
        sys.exit(1)
    sys.exit(0)


def configure_logging(log_format: str, *, quiet: bool = False, debug: bool = False) -> None:
    """Send this process's log to stderr. Called once, at the edge of the program; a second call replaces the first.

    Cutlayer's loggers speak from INFO up, other libraries' from WARNING up. Colours only on a terminal, and not
    where `NO_COLOR` is set (no-color.org).

    Args:
        log_format: `text` (a terse line for people) or `json` (an object a line: time, level, logger, message
            and whatever `extra` holds).
        quiet: Warnings and errors only.
        debug: Everything of Cutlayer's, and tracebacks in `run_app`.

    Raises:
        SettingsError: When the format is unknown.
    """
    if log_format not in LOG_FORMATS:
        raise SettingsError(f"--log-format {log_format!r} is unknown", f"use {' or '.join(LOG_FORMATS)}")
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(colours=_wants_colour(sys.stderr)))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.getLogger(ROOT_LOGGER).setLevel(level)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. A value that JSON does not know is written as its text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A terse line: the time of day, the level where it is not INFO, the message.

    Args:
        colours: Whether to colour warnings and errors.
    """

    _COLOURS: Final = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31", logging.DEBUG: "2"}

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        # Indented, so that a line break in a peer's text cannot pass for a line of this log.
        message = printable(record.getMessage()).replace("\n", "\n    ")
        line = f"{clock} {level}{message}"
        if record.exc_info:
            line += "\n" + printable(self.formatException(record.exc_info))
        colour = self._COLOURS.get(record.levelno)
        return f"\x1b[{colour}m{line}\x1b[0m" if self._colours and colour else line


class GracefulStop:
    """Turns SIGINT and SIGTERM into a question that a loop asks: `should_stop()`.

    The first signal sets the flag, a second SIGINT raises `KeyboardInterrupt` at once; further SIGTERMs change
    nothing. Handlers are put back on leaving. Main thread only, as Python's signals are.

        with GracefulStop("finishing; Ctrl-C again to stop at once") as stop:
            runtime.run(stop.should_stop)

    Args:
        notice: Line that the first SIGINT prints on stderr; empty for none.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self, notice: str = "") -> None:
        self.received: signal.Signals | None = None
        self._notice = notice
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def should_stop(self) -> bool:
        """Return whether a signal has come."""
        return self.received is not None

    def __enter__(self) -> GracefulStop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that C code has set, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        if self._notice and number == signal.SIGINT:
            # Not print(): a signal may come while stderr's own buffer is being written.
            os.write(2, f"\n{self._notice}\n".encode())


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure_logging` has put in place."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cutlayer {importlib.metadata.version('cutlayer')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
"""The `--version` of each command's callback."""


def _explain(name: str, message: str) -> None:
    """Print one message on stderr, after the traceback where debugging is on."""
    if _is_debugging():
        traceback.print_exc()
    print(f"{name}: {printable(message)}", file=sys.stderr, flush=True)


def _is_debugging() -> bool:
    return logging.getLogger(ROOT_LOGGER).isEnabledFor(logging.DEBUG)


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")


def printable(text: str) -> str:
    """Return a text with its control characters spelled out, all but line breaks and tabs."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
