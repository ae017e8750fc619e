"""A worker's program whose broker nobody can reach: it gets as far as its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.server_worker.program import Program
from support.processes import DIGITS_FILE, SMALL_DIGITS

__all__ = ["offline_program"]


def offline_program(
    folder: Path,
    overrides: Mapping[str, object] = SMALL_DIGITS,
    *,
    resume: bool = False,
    only_visits: bool = False,
) -> Program:
    """Return the program of a small run of the digits.

    Args:
        folder: Its output.
        overrides: Settings in place of the file's.
        resume: Whether it goes on with a checkpoint.
        only_visits: Whether it serves one.
    """
    return Program(
        DIGITS_FILE,
        overrides,
        name="w0",
        broker=BrokerSettings(url="mqtt://127.0.0.1:1"),
        output=folder,
        resume=resume,
        pool=None,
        http_host="127.0.0.1",
        http_port=0,
        connect_timeout_s=0.1,
        only_visits=only_visits,
    )
