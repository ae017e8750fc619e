"""When an agent waits for its tokenizers' weights, how it asks for them, and when it goes on without."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.broker.manifest import Manifest
from cutlayer.edge_agent.weights_wait import MAX_ASKS, WeightsWait
from support.small_side import small_manifest


def manifest_of(mode: str = "trainable", window: str = "synchronous") -> Manifest:
    document: dict[str, Any] = small_manifest().model_dump()
    document["tokenizers"] |= {"mode": mode, "every_windows": 2}
    document["window"] |= {"mode": window}
    document["activations"] = "every-step"
    return Manifest.model_validate(document)


def waiting(window: str = "synchronous") -> WeightsWait:
    wait = WeightsWait(manifest_of(window=window), 5.0)
    wait.leased(0.0)
    assert wait.holds
    return wait


def test_frozen_tokenizers_are_never_waited_for() -> None:
    wait = WeightsWait(manifest_of("frozen"), 5.0)
    wait.leased(0.0)
    wait.committed(1, 1.0)
    assert not wait.holds
    assert wait.next_ask is None


def test_the_first_weights_of_a_run_are_waited_for() -> None:
    wait = waiting()
    assert wait.take(lease=1, version=0)
    assert not wait.holds


@pytest.mark.parametrize(("window", "holds"), [("synchronous", True), ("asynchronous", False)])
def test_weights_that_a_commit_brings_are_waited_for_where_runs_are_reproducible(window: str, holds: bool) -> None:
    wait = waiting(window)
    wait.take(1, 0)
    wait.committed(0, 1.0)
    assert not wait.holds, "they come after each second window"
    wait.committed(1, 2.0)
    assert wait.holds is holds
    wait.take(1, 2)
    assert not wait.holds


def test_older_weights_are_not_taken_unless_they_are_of_another_lease() -> None:
    wait = waiting()
    assert wait.take(1, 4)
    assert not wait.take(1, 4)
    assert not wait.take(1, 2)
    assert wait.version == 4
    assert wait.take(2, 2), "a worker is back at a checkpoint"
    assert wait.version == 2
    assert not wait.holds


def test_weights_that_do_not_come_are_asked_for_some_times_and_given_up_then() -> None:
    wait = waiting()
    assert not wait.asks(4.9)
    for ask in range(1, MAX_ASKS + 1):
        assert wait.next_ask == 5.0 * ask
        assert wait.asks(5.0 * ask)
    assert wait.holds
    assert not wait.asks(5.0 * (MAX_ASKS + 1))
    assert not wait.holds
