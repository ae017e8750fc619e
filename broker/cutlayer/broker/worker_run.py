"""What the parts of a worker's session share: the run, its ledger, the leases, and what is being worked on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cutlayer.broker.actions import Publish, WorkerAction
from cutlayer.broker.leases import Lease, LeaseTable
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import RunPhase, WorkerState
from cutlayer.broker.pool_members import PoolMembers
from cutlayer.broker.scheduler import Scheduler
from cutlayer.broker.selection import Selection
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.work_in_hand import WorkInHand
from cutlayer.broker.worker_weights import CommitMemory, WeightsDesk
from cutlayer.compression import codec_from_name

__all__ = ["WorkerLimits", "WorkerRun"]


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker allows.

    Attributes:
        credits: Microbatches an agent may have outstanding here.
        max_batch_samples: Samples that go forward together at the most.
        lease_s: Seconds of silence after which an agent counts as vanished.
        absence_grace_s: Seconds that a vanished agent is waited for.
        min_agents: Training starts when so many hold leases.
        max_agents: Leases granted at once; a Hello beyond is answered with Busy.
        is_service: The run never ends by itself.
        only_visits: Nothing is trained: whoever comes has the finished model evaluate or predict.
    """

    credits: int = 2
    max_batch_samples: int = 256
    lease_s: float = 60.0
    absence_grace_s: float = 30.0
    min_agents: int = 1
    max_agents: int = 10_000
    is_service: bool = False
    only_visits: bool = False


@dataclass(slots=True)
class WorkerRun:
    """One worker's share of a run.

    Attributes:
        name: The worker's name.
        incarnation: Start of this process, in milliseconds since the epoch.
        manifest: The run.
        digest: SHA-256 of the manifest.
        limits: What the worker allows.
        leases: Who trains here.
        ledger: What is committed.
        in_hand: What is being worked on.
        scheduler: What comes next of it.
        members: The other workers of its pool; None without a pool.
        phase: Where the run stands.
        reason: Why it has come there.
        known_samples: Samples of each agent that the run has seen.
        is_serving: Whether it has had a connection, and agents are served.
        is_draining: Whether it takes nothing new.
        store: Names the store that keeps activations; empty where none does.
        weights: The tokenizers' newest weights, where they are trained.
        commits: The gradients at the cut of the last commits, where they are.
        selection: Which weights the run ends with, where these are chosen; else None.
    """

    name: str
    incarnation: int
    manifest: Manifest
    digest: bytes
    limits: WorkerLimits
    leases: LeaseTable
    ledger: Ledger
    in_hand: WorkInHand
    scheduler: Scheduler
    members: PoolMembers | None
    known_samples: dict[str, int]
    phase: RunPhase = RunPhase.WAITING
    reason: str = ""
    is_serving: bool = False
    is_draining: bool = False
    store: str = ""
    weights: WeightsDesk = field(default_factory=WeightsDesk)
    selection: Selection | None = None
    commits: CommitMemory = field(init=False)

    def __post_init__(self) -> None:
        self.commits = CommitMemory(self.limits.credits)
        if self.limits.only_visits:
            self.phase = RunPhase.EVALUATING

    @property
    def is_first(self) -> bool:
        """Whether no other worker of the run that is online has a lower name: one of them speaks for all."""
        return self.members is None or all(self.name < name for name in self.members.serving())

    def tell_weights(self, leases: Iterable[Lease]) -> list[WorkerAction]:
        """Send the tokenizers' weights to agents, if this worker is the one that does."""
        return self.weights.tell(leases) if self.is_first else []

    def tell_new_weights(self) -> list[WorkerAction]:
        """Send the tokenizers' weights to all agents after so many windows, before these windows' commits."""
        is_due = self.in_hand.window % self.manifest.tokenizers.every_windows == 0
        return self.tell_weights(self.leases) if is_due else []

    @property
    def planned_samples(self) -> int | None:
        """Samples that the agents known so far will have trained on in all epochs; None for a service."""
        is_endless = self.limits.is_service or self.limits.only_visits
        return None if is_endless else self.manifest.epochs * sum(self.known_samples.values())

    def activation_codecs(self, lease: Lease) -> frozenset[str]:
        """Return the codecs that activations may come in: the lease's, and those of the budget's ladder."""
        ladder = {codec_from_name(name).name for name in self.manifest.budget.ladder}
        return frozenset({lease.codecs.activations, *ladder})

    def state(self, *, is_online: bool = True) -> Publish:
        """Return this worker's retained state, to be published."""
        state = WorkerState(
            online=is_online,
            worker=self.name,
            incarnation=self.incarnation,
            manifest_digest=self.digest,
            phase=self.phase,
            agents=self.leases.num_taking_part if is_online else 0,
            version=self.in_hand.version,
            reason=self.reason,
            is_draining=self.is_draining,
            pool_generation=0 if self.members is None else self.members.generation,
        )
        return Publish(WorkerTopics(self.name).state, state, retain=True)
