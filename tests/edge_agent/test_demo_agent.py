"""edge_agent/demo_agent.sh: equal containers take different shards. The script is the real one, the agent a stub."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.waiting import LIMIT_S

SCRIPT = Path(__file__).parents[2] / "edge_agent" / "demo_agent.sh"


class Site:
    """Starts the script in processes that end when they are told to."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        stub = folder / "bin" / "edge-agent"
        stub.parent.mkdir()
        # Prints what it was given, then stays as long as its standard input is open, as an agent stays in a run.
        stub.write_text('#!/bin/sh\necho "$CUTLAYER_USERNAME $*"\nread -r _\n')
        stub.chmod(0o755)
        self.locks = folder / "shards"
        self.locks.mkdir()
        self.environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}", "CUTLAYER_USERNAME": ""}
        self.environment |= {"CUTLAYER_SHARD_LOCKS": str(self.locks), "CUTLAYER_SHARDS": "2"}

    def start(self, *flags: str, **environment: str) -> subprocess.Popen[str]:
        process = self._stack.enter_context(
            subprocess.Popen(
                ["/bin/sh", str(SCRIPT), *flags],
                env=self.environment | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        self._stack.callback(process.kill)
        return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def test_each_container_takes_a_shard_and_the_topic_that_goes_with_it(site: Site) -> None:
    first, second = site.start(), site.start()
    assert sorted([said(first), said(second)]) == [
        f"start --topic demo/site-{number} --data demo:digits --shard {number}/2" for number in (0, 1)
    ]


def test_one_container_too_many_says_so_and_ends(site: Site) -> None:
    for process in (site.start(), site.start()):
        assert said(process)
    third = site.start()
    _, errors = third.communicate(timeout=LIMIT_S)
    assert third.returncode == 2
    assert "all 2 shards are taken" in errors


def test_the_shard_of_a_container_that_was_killed_is_free_again(site: Site) -> None:
    first, second = site.start(), site.start()
    shard = said(first)
    assert said(second)
    first.kill()
    first.wait()
    assert said(site.start()) == shard


def test_flags_go_on_to_the_agent_and_the_user_goes_with_the_shard(site: Site) -> None:
    process = site.start("--data-option", "alpha=0.5", CUTLAYER_USERNAME_PREFIX="site-")
    expected = "site-0 start --topic demo/site-0 --data demo:digits --shard 0/2 --data-option alpha=0.5"
    assert said(process) == expected
