"""What a person is told whose topic another process uses: a flag that her program has."""

from __future__ import annotations

import time

import pytest

from cutlayer.broker.errors import IdentityTaken
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.edge_agent.visit_evaluation import EvaluationVisit
from support.small_run import small_dataset


@pytest.mark.parametrize(
    ("visit", "fix"),
    [
        (None, "stop the other one, or give this one another topic (--topic)"),
        (EvaluationVisit(), "stop the other one, or give this one another topic such as --topic clinic/07-visits"),
    ],
)
def test_fix_is_one_that_the_program_takes(
    monkeypatch: pytest.MonkeyPatch, visit: EvaluationVisit | None, fix: str
) -> None:
    def taken(*_: object) -> float:
        raise IdentityTaken("clinic/07")

    monkeypatch.setattr(AgentRuntime, "pump", taken)
    transport = MemoryTransport(MemoryBroker(time.monotonic), "agent")
    options = AgentOptions(visit=visit)
    agent = AgentRuntime(transport, "clinic/07", 1, lambda _: small_dataset(0), options=options)
    with pytest.raises(IdentityTaken, match="another process now runs as 'clinic/07'") as caught:
        agent.run(lambda: False)
    assert str(caught.value).endswith(f"fix: {fix}")


def test_worker_is_told_to_take_another_name() -> None:
    assert str(IdentityTaken("w0")).endswith("give this one another name (--name)")
