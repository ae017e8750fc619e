"""Each invariant finds the fault that it is there for: one is planted in a storm that is sound without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import Chunk, serialize
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.counting_engine import contribution_of
from cutlayer.server_worker.parameters import CommitResult
from cutlayer.server_worker.passes import Backwarded
from cutlayer.server_worker.resuming import Resumed
from cutlayer.simulation.storm import Storm, StormFailed
from cutlayer.simulation.storm_books import WatchedEngine
from cutlayer.simulation.storm_settings import StormLimits, StormSettings

SETTINGS = StormSettings(num_agents=20, most_worker_kills=0, most_broker_stops=0)
SEED = 4


def test_the_storm_is_sound_before_anything_is_planted() -> None:
    assert Storm(SEED, SETTINGS).run().num_steps > 20


# The ledger ---------------------------------------------------------------------------------------------------


class ForgetfulLedger(Ledger):
    """A ledger that does not write every tenth step down."""

    num_added = 0

    def add(self, agent: str, step: int) -> bool:
        """Record most steps."""
        self.num_added += 1
        return True if self.num_added % 10 == 0 else super().add(agent, step)


class BoastfulLedger(Ledger):
    """A ledger that writes down more than there is."""

    def add(self, agent: str, step: int) -> bool:
        """Record a step, and the one after it."""
        super().add(agent, step + 1)
        return super().add(agent, step)


class LedgerPlanted(Storm):
    """A storm with another ledger."""

    ledger: type[Ledger] = Ledger

    def make_session(self, name: str, resumed: Resumed, version: int) -> WorkerSession:
        """Make a session over that ledger."""
        return super().make_session(name, dataclasses.replace(resumed, ledger=self.ledger()), version)


@pytest.mark.parametrize("ledger", [ForgetfulLedger, BoastfulLedger])
def test_ledger_that_differs_from_what_was_summed_up_is_found(ledger: type[Ledger]) -> None:
    storm = LedgerPlanted(SEED, SETTINGS)
    storm.ledger = ledger
    with pytest.raises(StormFailed, match="are not the sum of the"):
        storm.run()


class LateForgetfulness(Storm):
    """A storm in which ledger and weights lose the same step together, long after its commit."""

    def after_event(self) -> bool:
        """Lose it, once."""
        session = self.workers["worker-0"].session
        agents = session.ledger.agents()
        if self.num_events >= 400 and agents and 0 in session.ledger.of(agents[0]):
            session.ledger._agents[agents[0]] = type(session.ledger.of(agents[0]))()
            self.workers["worker-0"].engine.weight -= contribution_of((agents[0], "train", 0))
        return super().after_event()


def test_step_that_ledger_and_weights_lose_together_is_found() -> None:
    with pytest.raises(StormFailed, match=r"are not the sum|has forgotten|counts \d+ samples"):
        LateForgetfulness(SEED, SETTINGS).run()


# The engine ---------------------------------------------------------------------------------------------------


class TwiceSummed(WatchedEngine):
    """An engine that adds each microbatch to the window twice."""

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Add them, and add them again."""
        self._window_sum += sum(map(contribution_of, gradients))
        return super().backward(group_id, gradients, last=last, tokenizer_gradients=tokenizer_gradients)


class TwiceCommitted(WatchedEngine):
    """An engine that takes each optimizer step twice."""

    def commit(self, num_samples: int, progress: float | None) -> CommitResult:
        """Commit the window, and its sum again."""
        self.weight += self._window_sum
        return super().commit(num_samples, progress)


class Confused(WatchedEngine):
    """An engine that takes one agent's gradients for another's."""

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Mix them up."""
        mixed = dict(zip(gradients, reversed(list(gradients.values())), strict=True))
        return super().backward(group_id, mixed, last=last, tokenizer_gradients=tokenizer_gradients)


class Leaking(WatchedEngine):
    """An engine that keeps each graph for ever."""

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Never take a gradient for the last."""
        del last
        return super().backward(group_id, gradients, last=False, tokenizer_gradients=tokenizer_gradients)


class EnginePlanted(Storm):
    """A storm with another engine."""

    engine: type[WatchedEngine] = WatchedEngine

    def make_engine(self) -> WatchedEngine:
        """Make that engine."""
        return self.engine(8, self.labels_of)


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        (TwiceSummed, "are not the sum of the"),
        (TwiceCommitted, "are not the sum of the"),
        (Confused, "is not that step's"),
        (Leaking, "graphs are alive"),
    ],
)
def test_engine_that_does_something_wrong_is_found(engine: type[WatchedEngine], what: str) -> None:
    storm = EnginePlanted(SEED, SETTINGS)
    storm.engine = engine
    with pytest.raises(StormFailed, match=what):
        storm.run()


# Agents -------------------------------------------------------------------------------------------------------


class Generous(Storm):
    """A storm with a worker that grants more credits than the run allows."""

    def __init__(self, seed: int, settings: StormSettings) -> None:
        super().__init__(seed, settings)
        worker = self.run_settings.worker.model_copy(update={"credits": settings.credits + 1})
        self.run_settings = self.run_settings.model_copy(update={"worker": worker})


def test_agent_with_more_outstanding_than_its_credits_is_found() -> None:
    with pytest.raises(StormFailed, match="has 3 microbatches outstanding, and 2 may"):
        Generous(SEED, SETTINGS).run()


class Credulous(Storm):
    """A storm in which an agent takes a step for committed that is not."""

    def after_event(self) -> bool:
        """Have each agent that is served believe it."""
        for agent in self.agents.values():
            if agent.leases and not agent.has_left:
                agent.committed.add(7_000)
        return super().after_event()


def test_agent_whose_view_differs_from_the_ledger_is_found() -> None:
    with pytest.raises(StormFailed, match="takes step 7000 for committed, and no ledger holds it"):
        Credulous(SEED, SETTINGS).run()


class Frozen(Storm):
    """A storm in which an agent's process stops dead, and nobody notes it."""

    def after_event(self) -> bool:
        """Stop the first agent that has just been admitted."""
        self.frozen = getattr(self, "frozen", None) or next(
            (topic for topic, agent in self.agents.items() if agent.admitted_by and self.num_events > 150), None
        )
        if self.frozen in self.network.members():
            self.network._remove(self.network._members[self.frozen])
        return super().after_event()


def test_agent_whose_steps_never_come_to_be_committed_is_found() -> None:
    with pytest.raises(StormFailed, match=r"has stayed to the end, and its steps \[.*\d.*\] are not in the model"):
        Frozen(SEED, SETTINGS).run()


# Memory and time ----------------------------------------------------------------------------------------------


class Hoarding(Storm):
    """A storm in which something piles up from the hundredth event on."""

    where = ""

    def after_event(self) -> bool:
        """Put some more on the pile."""
        if self.num_events < 100:
            return super().after_event()
        worker, agent = self.workers["worker-0"], self.agents["site/0"]
        number = self.num_events.to_bytes(8, "big")
        match self.where:
            case "links":
                with self.network.broker.changed:
                    for _ in range(100):
                        self.network.broker.at(1e9, lambda: None)
            case "worker":
                piece = serialize(Chunk(number, 0, 2, 10_000, b"x"))
                worker.runtime._courier._reassembler.feed("site/0", piece)
            case "agent":
                piece = serialize(Chunk(number, 0, 2, 10_000, b"x"))
                agent.runtime._courier._reassembler.feed("worker-0", piece)
            case "agent's packets":
                for _ in range(205):  # more than it may have waiting before the agent is looked at
                    agent.transport.publish("nobody/listens", b"")
        return super().after_event()


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("links", "packets are under way"),
        ("worker", "worker-0 keeps .* B for messages that are not whole"),
        ("agent", "site/0 keeps .* B for messages that are not whole"),
        ("agent's packets", "packets wait at site/0"),
    ],
)
def test_memory_that_grows_is_found(where: str, what: str) -> None:
    # What waits at one agent is under way as well: that limit must not be the first to be met.
    limits = StormLimits(scheduled_packets_per_agent=10_000) if where == "agent's packets" else StormLimits()
    storm = Hoarding(SEED, dataclasses.replace(SETTINGS, limits=limits))
    storm.where = where
    with pytest.raises(StormFailed, match=what):
        storm.run()


class Deserted(Storm):
    """A storm whose worker never comes."""

    def start_worker(self, name: str) -> None:
        """Do nothing."""


def test_run_that_gets_nowhere_is_found() -> None:
    with pytest.raises(StormFailed, match=r"SimulationStuck: not done after 100\.0 virtual seconds"):
        Deserted(SEED, dataclasses.replace(SETTINGS, max_virtual_s=100.0)).run()
