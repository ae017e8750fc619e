"""Rules for the whole suite: what may be skipped, and where; and that no example is judged by how long it takes."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from cutlayer.broker.launcher_mosquitto import INSTALL, find_mosquitto

# Hypothesis fails an example after 200 ms, and a test whose data are made slowly: on a loaded machine both happen to
# sound code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Mosquitto where there is none, and say so; where nothing may be skipped, stop instead."""
    if find_mosquitto() is not None:
        return
    wanting = [item for item in items if item.get_closest_marker("mosquitto")]
    if wanting and os.environ.get("CUTLAYER_SKIP_NOTHING"):
        pytest.exit(f"{len(wanting)} tests need Mosquitto and nothing may be skipped here: {INSTALL}", returncode=1)
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason=f"no mosquitto binary: {INSTALL}"))
