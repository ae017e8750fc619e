"""Flags that the commands of `server-worker` share."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.broker.errors import SettingsError

__all__ = [
    "ConnectTimeout",
    "Debug",
    "HttpAllowHost",
    "HttpHost",
    "HttpPort",
    "LogFormat",
    "Name",
    "Quiet",
    "RunFile",
    "RunId",
    "Set",
    "parse_setting",
    "worker_name",
]

RunFile = Annotated[Path, typer.Option("--run", help="Run settings (TOML), such as examples/digits.toml.")]
Name = Annotated[
    str | None, typer.Option(help="This worker's name; worker-HOST when left out.", envvar="CUTLAYER_WORKER")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any run setting as SECTION.KEY=VALUE, such as optimizer.lr=3e-4; may be repeated."),
]
RunId = Annotated[
    str,
    typer.Option(
        "--run-id",
        help="The run to take, such as digits-3fb5ccc5, where the folder holds checkpoints of several; the one with "
        "the newest when left out.",
        metavar="ID",
        show_default=False,
    ),
]
HttpPort = Annotated[
    int, typer.Option(help="Port of the live page, /metrics and /healthz; 0 takes a free one.", min=0, max=65_535)
]
HttpHost = Annotated[str, typer.Option(help="Address of that port. Nothing there is protected by a password.")]
HttpAllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--http-allow-host",
        help="Host name under which the live page may be opened, besides localhost; may be repeated. Without any, "
        "loopback takes its own names and other addresses take all. /metrics is served under every name.",
        envvar="CUTLAYER_HTTP_ALLOW_HOST",
        metavar="NAME",
    ),
]
ConnectTimeout = Annotated[float, typer.Option(help="Seconds that the first connection is tried.", min=0.0)]
LogFormat = Annotated[str, typer.Option(help="text or json (one object a line).")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


def worker_name() -> str:
    """Return what a worker is called that nobody names."""
    return f"worker-{socket.gethostname().split('.')[0]}"


def parse_setting(pair: str) -> tuple[str, object]:
    """Read one run setting, `SECTION.KEY=VALUE`, the value as TOML has it, or as text.

    Raises:
        SettingsError: When it has another form.
    """
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise SettingsError(f"--set {pair!r} is no SECTION.KEY=VALUE", "write it as in --set optimizer.lr=3e-4")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value  # text, which TOML would want in quotes
