"""Rules for the whole suite: what may be skipped, and where; and what is not judged by how long it takes."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import HealthCheck, settings

from cutlayer.broker.launcher_mosquitto import INSTALL, find_mosquitto

# Torch's threads wait for each other at every operation: with models as small as the tests' they gain nothing, and
# where another process wants a core they stall (3 s became 89 s on two busy cores). Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis fails an example after 200 ms, and a test whose data are made slowly: on a loaded machine both happen to
# sound code. Where all tests run, the examples are the same each time: a change is then judged by what it changes.
# Other examples, and with them what nobody has thought of, come with every run of a contributor's.
settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CUTLAYER_SKIP_NOTHING" in os.environ,
)
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


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known that `pytest_pyfunc_call` heeds."""
    text = "judges_by_silence: what is tested takes silence for an answer, so a machine that stands still misleads it"
    config.addinivalue_line("markers", text)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Hear a judgement that is wrong again, twice at most, where silence was judged: a wrong judge stays wrong."""
    if pyfuncitem.get_closest_marker("judges_by_silence") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    for _ in range(2):
        with contextlib.suppress(AssertionError, pytest.fail.Exception):
            pyfuncitem.obj(**arguments)
            return True
    pyfuncitem.obj(**arguments)
    return True
