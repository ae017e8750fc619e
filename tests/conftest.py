"""Rules for the whole suite: what may be skipped, and where."""

from __future__ import annotations

import os

import pytest

from cutlayer.broker.launcher_mosquitto import INSTALL, find_mosquitto


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Mosquitto where there is none, and say so; where nothing may be skipped, stop instead."""
    if find_mosquitto() is not None:
        return
    wanting = [item for item in items if item.get_closest_marker("mosquitto")]
    if wanting and os.environ.get("CUTLAYER_SKIP_NOTHING"):
        pytest.exit(f"{len(wanting)} tests need Mosquitto and nothing may be skipped here: {INSTALL}", returncode=1)
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason=f"no mosquitto binary: {INSTALL}"))
