"""What a plan is made from and what comes of it: sites, conditions, and the bytes of each by part of the run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cutlayer.broker.manifest import ActivationMode, Manifest
from cutlayer.simulation.plan_exchange import Parties, Tensors
from cutlayer.simulation.plan_schedule import Stage
from cutlayer.simulation.plan_tensors import AgentSeconds
from cutlayer.simulation.plan_wire import NOTHING, Link, Ways, total

__all__ = ["Conditions", "Part", "RunPlan", "Site", "SitePlan", "transfer_s"]


class Part(StrEnum):
    """Messages of a microbatch."""

    ACTIVATIONS = "activations"
    ANSWERS = "outputs, gradients, commits"


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One agent, before the run.

    Attributes:
        parties: Who talks.
        num_train: Its training samples.
        num_test: Its test samples.
        tensors: Its encoded tensors.
        seconds: Processor seconds of its work here; None where nothing was measured.
        num_val: Its validation samples, where the run judges candidates.
    """

    parties: Parties
    num_train: int
    num_test: int
    tensors: Tensors
    seconds: AgentSeconds | None = None
    num_val: int = 0

    @property
    def num_samples(self) -> int:
        """All its samples."""
        return self.num_train + self.num_test + self.num_val


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a run's bytes depend on beside its manifest and data.

    Attributes:
        link: MQTT version and packet limit.
        credits: Microbatches of an agent that are out at once.
        lease_s: Silence after which a worker takes a lease back.
        may_be_kept: Whether sites let workers keep their activations.
        up_rate: Bytes a second that a site can send; None for no limit.
        down_rate: Bytes a second that a site can receive; None for no limit.
        duration_s: Seconds that the run will take; None for an estimate.
        forward_s: Seconds of the worker's forward pass for one sample.
        step_passes: What a training step takes, in forward passes.
    """

    link: Link
    credits: int
    lease_s: float
    may_be_kept: bool = True
    up_rate: float | None = None
    down_rate: float | None = None
    duration_s: float | None = None
    forward_s: float = 0.0
    step_passes: float = 3.0


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What one agent will move.

    Attributes:
        agent: Its topic.
        num_train: Its training samples.
        num_test: Its test samples.
        stages: Bytes of its microbatches, by stage and part.
        presence: Bytes of joining and leaving.
        tokenizers: Bytes of its tokenizers' gradients, up, and weights, down, where they are trained.
        reports: Bytes of its reports: an estimate.
        num_reports: How many of them.
        microbatch_up: Bytes of the activations of one whole microbatch.
        num_val: Its validation samples.
    """

    agent: str
    num_train: int
    num_test: int
    stages: dict[tuple[Stage, Part], Ways]
    presence: Ways
    tokenizers: Ways
    reports: Ways
    num_reports: int
    microbatch_up: float
    num_val: int = 0

    @property
    def num_samples(self) -> int:
        """All its samples."""
        return self.num_train + self.num_test + self.num_val

    def of_stage(self, stage: Stage) -> Ways:
        """Return the bytes of all microbatches of a stage."""
        return total([ways for (found, _), ways in self.stages.items() if found is stage])

    @property
    def whole(self) -> Ways:
        """All bytes of this agent."""
        return total([*self.stages.values(), self.presence, self.tokenizers, self.reports])


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will move.

    Attributes:
        manifest: The run.
        sites: Its agents.
        mode: How activations go up; what the run says, unless sites let nobody keep them.
        duration_s: Seconds that the reports are reckoned for.
        transfer_s: Seconds that the slowest site's link needs for its bytes alone; None without a link.
    """

    manifest: Manifest
    sites: tuple[SitePlan, ...]
    mode: ActivationMode
    duration_s: float
    transfer_s: float | None

    @property
    def is_kept(self) -> bool:
        """Whether later epochs send references."""
        return self.mode == "once"

    @property
    def whole(self) -> Ways:
        """All bytes of all agents."""
        return total([site.whole for site in self.sites])

    @property
    def presence(self) -> Ways:
        """Bytes of joining and leaving."""
        return total([site.presence for site in self.sites])

    @property
    def tokenizers(self) -> Ways:
        """Bytes of the tokenizers' gradients and weights."""
        return total([site.tokenizers for site in self.sites])

    @property
    def reports(self) -> Ways:
        """Bytes of the agents' reports."""
        return total([site.reports for site in self.sites])

    @property
    def num_train(self) -> int:
        """Training samples of all agents."""
        return sum(site.num_train for site in self.sites)

    @property
    def num_test(self) -> int:
        """Test samples of all agents."""
        return sum(site.num_test for site in self.sites)

    @property
    def num_val(self) -> int:
        """Validation samples of all agents."""
        return sum(site.num_val for site in self.sites)

    def of_stage(self, stage: Stage, part: Part | None = None) -> Ways:
        """Return the bytes of all agents in a stage, or of one part of them."""
        parts = [part] if part is not None else list(Part)
        return total([site.stages.get((stage, part), NOTHING) for site in self.sites for part in parts])


def transfer_s(ways: Ways, conditions: Conditions) -> float | None:
    """Return how long a site's link is busy: both directions at once, so the slower one counts."""
    times = [
        num_bytes / rate
        for num_bytes, rate in ((ways.up, conditions.up_rate), (ways.down, conditions.down_rate))
        if rate is not None
    ]
    return max(times, default=None)
