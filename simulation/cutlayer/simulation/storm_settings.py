"""What a storm is: how many agents, what may happen to them, what a seed draws of it, and what comes of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from cutlayer.broker.faults import LinkFaults

__all__ = ["StormLimits", "StormResult", "StormSettings", "Weather", "draw_weather"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StormLimits:
    """What nothing may exceed, however bad the weather.

    Attributes:
        scheduled_packets_per_agent: Packets under way in the whole network, acknowledgements included, for each agent
            and worker.
        agent_packets: Packets that wait at one agent, in either direction.
        worker_packets_per_agent: Packets that wait at the worker, in either direction, for each agent.
        agent_unfinished_bytes: Bytes that one agent keeps for messages that are not whole yet.
        worker_unfinished_bytes_per_agent: Bytes that the worker keeps for the same, for each agent.
    """

    scheduled_packets_per_agent: int = 40
    agent_packets: int = 200
    worker_packets_per_agent: int = 20
    agent_unfinished_bytes: int = 64 * 1024
    worker_unfinished_bytes_per_agent: int = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StormSettings:
    """What may happen; each seed draws from it.

    Attributes:
        num_agents: Virtual agents.
        num_workers: Workers; more than one form a pool.
        most_steps: Training steps of an agent in an epoch, at the most.
        store_share: Share of the seeds whose workers keep activations, for a second epoch.
        microbatch_samples: Samples of a step, at the most.
        credits: Microbatches that an agent may have outstanding.
        arrival_s: Most agents come within so many seconds.
        late_share: Share of the agents that come after that.
        late_s: The last of them comes so many seconds later.
        kill_share: SIGKILLs of agents, as a share of their number, at the most.
        death_share: Share of those kills after which nobody comes back.
        most_away_s: Others come back, as a new incarnation, within so many seconds.
        most_worker_kills: SIGKILLs of workers; each comes back from its last checkpoint.
        most_cuts: Connections that break, the workers' among them.
        most_broker_stops: Restarts of the broker, which forgets everything.
        trouble_s: All that happens within so many seconds.
        grace_s: Seconds that the worker waits for an agent that has vanished.
        max_virtual_s: Seconds after which a run counts as stuck.
        full_check_share: Share of the events after which everything is checked, and not only what the event touched.
        limits: What nothing may exceed.
    """

    num_agents: int = 200
    num_workers: int = 1
    most_steps: int = 3
    store_share: float = 0.15
    microbatch_samples: int = 4
    credits: int = 2
    arrival_s: float = 2.0
    late_share: float = 0.1
    late_s: float = 2.0
    kill_share: float = 0.2
    death_share: float = 0.25
    most_away_s: float = 5.0
    most_worker_kills: int = 2
    most_cuts: int = 30
    most_broker_stops: int = 1
    trouble_s: float = 8.0
    grace_s: float = 8.0
    max_virtual_s: float = 1_800.0
    full_check_share: float = 0.002
    limits: StormLimits = field(default_factory=StormLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What one seed has drawn.

    Attributes:
        mode: Kind of window.
        window_samples: Samples that close an asynchronous window.
        faults: What every link does, in both directions.
        codec: Of the activations.
        max_packet_bytes: The broker's limit; below the size of an uncompressed microbatch, so that some are cut.
        checkpoint_every_windows: Windows from one checkpoint to the next.
        num_kills: SIGKILLs of agents.
        num_worker_kills: SIGKILLs of the worker.
        num_cuts: Connections that break.
        num_broker_stops: Restarts of the broker.
        store: Whether workers keep activations: not at all, all in one store, or each in its own.
        store_samples: Room in a store.
        store_loss: Share of what is asked for that a store has lost.
        forbidding_share: Share of the agents that let nothing be kept.
    """

    mode: Literal["asynchronous", "synchronous"]
    window_samples: int
    faults: LinkFaults
    codec: str
    max_packet_bytes: int
    checkpoint_every_windows: int
    num_kills: int
    num_worker_kills: int
    num_cuts: int
    num_broker_stops: int
    store: Literal["none", "shared", "own"]
    store_samples: int
    store_loss: float
    forbidding_share: float

    @property
    def epochs(self) -> int:
        """Passes over the samples: a second one is what a store is for."""
        return 1 if self.store == "none" else 2


@dataclass(frozen=True, slots=True)
class StormResult:
    """What came of a seed.

    Attributes:
        seed: The seed.
        virtual_s: Virtual seconds until all was over.
        num_events: Times that somebody was woken.
        num_packets: Packets that reached the broker.
        num_steps: Training steps that are part of the model, each once.
        num_windows: Windows.
        num_kills: Agents killed.
        num_deaths: Of those, the ones that never came back.
        num_worker_kills: How often the worker was killed.
        num_cuts: Connections that broke.
        num_broker_stops: How often the broker was restarted.
        num_late: Agents that came after the training had begun.
        num_too_late: Agents for which there was nothing left to train.
        num_stored: Samples that a store had when they were referred to.
        num_lacking: Samples that it had lost, and that were sent again.
        most_live: Most microbatches that were at the worker at one time.
        most_scheduled: Most packets that were under way at one time.
        digest: Names the whole history: each packet and each waking, with their times.
    """

    seed: int
    virtual_s: float
    num_events: int
    num_packets: int
    num_steps: int
    num_windows: int
    num_kills: int
    num_deaths: int
    num_worker_kills: int
    num_cuts: int
    num_broker_stops: int
    num_late: int
    num_too_late: int
    num_stored: int
    num_lacking: int
    most_live: int
    most_scheduled: int
    digest: str


def draw_weather(seed: int, settings: StormSettings, rng: random.Random) -> Weather:
    """Draw the weather of a seed: from a breeze to a hurricane, so that faults meet in all proportions."""
    force = rng.random()
    faults = LinkFaults(
        seed=seed,
        loss=0.08 * force * rng.random(),
        duplication=0.2 * force * rng.random(),
        reordering=0.3 * force * rng.random(),
        delay_s=rng.choice((0.001, 0.02, 0.1)),
        jitter_s=rng.choice((0.0, 0.05, 0.3)),
    )
    return Weather(
        mode="synchronous" if rng.random() < 0.3 else "asynchronous",
        window_samples=rng.choice((64, 128, 512)),
        faults=faults,
        codec=rng.choice(("int8+zstd", "int8", "fp16", "identity")),
        max_packet_bytes=rng.choice((2_048, 4_096, 1_000_000)),
        checkpoint_every_windows=rng.randint(1, 4),
        num_kills=rng.randint(0, int(settings.kill_share * settings.num_agents)),
        num_worker_kills=rng.randint(0, settings.most_worker_kills),
        num_cuts=rng.randint(0, settings.most_cuts),
        num_broker_stops=rng.randint(0, settings.most_broker_stops),
        store=rng.choice(("shared", "own")) if rng.random() < settings.store_share else "none",
        store_samples=rng.choice((100, 1_000_000)),
        store_loss=rng.choice((0.0, 0.02, 0.3)),
        forbidding_share=rng.choice((0.0, 0.2)),
    )
