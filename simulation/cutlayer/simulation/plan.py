"""What a run will move before it is started: bytes of each agent by direction and part of the run. No I/O.

The reckoning is of a run in which nothing is lost, nobody comes late and one worker serves: what is sent again, and
what several workers or a store without room add, is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from cutlayer.broker.manifest import Manifest
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.simulation.plan_exchange import Exchanges, Parties, Tensors
from cutlayer.simulation.plan_presence import goodbye, joining, leaving
from cutlayer.simulation.plan_schedule import Stage, schedule
from cutlayer.simulation.plan_telemetry import Pace, Reports, reports
from cutlayer.simulation.plan_tensors import AgentSeconds, BoundTensors
from cutlayer.simulation.plan_wire import NOTHING, Link, Ways, total

__all__ = ["Conditions", "Part", "RunPlan", "Site", "SitePlan", "plan_run", "transfer_s"]

FORWARD_TO_STEP = 3.0
"""A training step's operations over a forward pass's: the backward pass takes two of them (`plan_compute`)."""


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
    """

    parties: Parties
    num_train: int
    num_test: int
    tensors: Tensors
    seconds: AgentSeconds | None = None


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
    """

    link: Link
    credits: int
    lease_s: float
    may_be_kept: bool = True
    up_rate: float | None = None
    down_rate: float | None = None
    duration_s: float | None = None
    forward_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What one agent will move.

    Attributes:
        agent: Its topic.
        num_train: Its training samples.
        num_test: Its test samples.
        stages: Bytes of its microbatches, by stage and part.
        presence: Bytes of joining and leaving.
        reports: Bytes of its reports: an estimate.
        num_reports: How many of them.
        microbatch_up: Bytes of the activations of one whole microbatch.
    """

    agent: str
    num_train: int
    num_test: int
    stages: dict[tuple[Stage, Part], Ways]
    presence: Ways
    reports: Ways
    num_reports: int
    microbatch_up: float

    def of_stage(self, stage: Stage) -> Ways:
        """Return the bytes of all microbatches of a stage."""
        return total([ways for (found, _), ways in self.stages.items() if found is stage])

    @property
    def whole(self) -> Ways:
        """All bytes of this agent."""
        return total([*self.stages.values(), self.presence, self.reports])


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will move.

    Attributes:
        manifest: The run.
        sites: Its agents.
        is_kept: Whether later epochs send references.
        duration_s: Seconds that the reports are reckoned for.
        transfer_s: Seconds that the slowest site's link needs for its bytes alone; None without a link.
    """

    manifest: Manifest
    sites: tuple[SitePlan, ...]
    is_kept: bool
    duration_s: float
    transfer_s: float | None

    @property
    def whole(self) -> Ways:
        """All bytes of all agents."""
        return total([site.whole for site in self.sites])

    @property
    def presence(self) -> Ways:
        """Bytes of joining and leaving."""
        return total([site.presence for site in self.sites])

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

    def of_stage(self, stage: Stage, part: Part | None = None) -> Ways:
        """Return the bytes of all agents in a stage, or of one part of them."""
        parts = [part] if part is not None else list(Part)
        return total([site.stages.get((stage, part), NOTHING) for site in self.sites for part in parts])


def plan_run(manifest: Manifest, tokenizer_file: bytes, sites: Sequence[Site], conditions: Conditions) -> RunPlan:
    """Reckon a run.

    Args:
        manifest: The run.
        tokenizer_file: The client-side weights.
        sites: Its agents, at least one.
        conditions: All else.
    """
    is_kept = conditions.may_be_kept and manifest.activations == "once"
    # Agents without data of their own that have as many samples, and a topic as long, are reckoned once.
    alike: dict[object, Site] = {}
    models = [alike.setdefault(_likeness(site), site) for site in sites]
    bare = {
        site: _without_reports(manifest, tokenizer_file, sites, site, conditions, is_kept=is_kept)
        for site in dict.fromkeys(models)
    }
    duration_s = conditions.duration_s or _estimated_s(manifest, sites, [bare[site] for site in models], conditions)
    whole = {site: _with_reports(manifest, site, plan, duration_s, conditions) for site, plan in bare.items()}
    plans = tuple(replace(whole[model], agent=site.parties.agent) for site, model in zip(sites, models, strict=True))
    transfers = [transfer_s(plan.whole, conditions) for plan in plans]
    known = [seconds for seconds in transfers if seconds is not None]
    return RunPlan(manifest, plans, is_kept, duration_s, max(known, default=None))


def _likeness(site: Site) -> object:
    if isinstance(site.tensors, BoundTensors):
        return site.num_train, site.num_test, len(site.parties.agent)
    return site.parties.agent


def _without_reports(
    manifest: Manifest,
    tokenizer_file: bytes,
    sites: Sequence[Site],
    site: Site,
    conditions: Conditions,
    *,
    is_kept: bool,
) -> SitePlan:
    plan = _epochs(manifest, site)
    exchanges = Exchanges(
        manifest,
        site.parties,
        conditions.link,
        site.tensors,
        site.num_train,
        _num_versions(manifest, sites) / plan.total_steps,
    )
    stages: dict[tuple[Stage, Part], Ways] = {}
    microbatch_up = 0.0
    for alike in schedule(manifest, plan, is_kept=is_kept, num_credits=conditions.credits):
        activations = exchanges.activations(alike)
        for part, ways in ((Part.ACTIVATIONS, activations), (Part.ANSWERS, exchanges.answers(alike))):
            key = alike.stage, part
            stages[key] = stages.get(key, NOTHING) + ways * alike.count
        microbatch_up = max(microbatch_up, activations.up)
    presence = joining(
        manifest,
        tokenizer_file,
        site.num_train,
        conditions.credits,
        conditions.lease_s,
        site.parties,
        conditions.link,
    ) + leaving(manifest, site.parties, conditions.link)
    return SitePlan(site.parties.agent, site.num_train, site.num_test, stages, presence, NOTHING, 0, microbatch_up)


def _with_reports(
    manifest: Manifest, site: Site, bare: SitePlan, duration_s: float, conditions: Conditions
) -> SitePlan:
    plan = _epochs(manifest, site)
    step_s = duration_s / plan.total_steps
    pace = Pace(
        duration_s=duration_s,
        lease_s=conditions.lease_s,
        round_trip_s=step_s * conditions.credits / 2,
        tokenize_s=site.seconds.tokenize if site.seconds else (),
        encode_s=site.seconds.encode if site.seconds else (),
    )
    found: Reports = reports(manifest, plan, bare.whole, pace, site.parties, conditions.link)
    return SitePlan(
        bare.agent,
        bare.num_train,
        bare.num_test,
        bare.stages,
        bare.presence,
        found.bytes + goodbye(found.last, site.parties, conditions.link),
        found.count,
        bare.microbatch_up,
    )


def _epochs(manifest: Manifest, site: Site) -> EpochPlan:
    return EpochPlan(
        manifest.seed,
        site.parties.agent,
        manifest.epochs,
        site.num_train,
        site.num_test,
        manifest.microbatch_samples,
    )


def _num_versions(manifest: Manifest, sites: Sequence[Site]) -> float:
    """Return how many windows a run commits, about."""
    if manifest.window.mode == "synchronous":
        return max(_epochs(manifest, site).total_steps for site in sites)
    return manifest.epochs * sum(site.num_train for site in sites) / manifest.window.samples


def transfer_s(ways: Ways, conditions: Conditions) -> float | None:
    """Return how long a site's link is busy: both directions at once, so the slower one counts."""
    times = [
        num_bytes / rate
        for num_bytes, rate in ((ways.up, conditions.up_rate), (ways.down, conditions.down_rate))
        if rate is not None
    ]
    return max(times, default=None)


def _estimated_s(manifest: Manifest, sites: Sequence[Site], plans: Sequence[SitePlan], conditions: Conditions) -> float:
    """Return how long a run takes at least: its slowest link, its slowest agent, or its worker on this machine."""
    num_passes = manifest.epochs * sum(site.num_train for site in sites)
    num_evaluations = sum(site.num_test for site in sites) * (1 + len(manifest.modalities))
    times = [conditions.forward_s * (FORWARD_TO_STEP * num_passes + num_evaluations), 1.0]
    for site, plan in zip(sites, plans, strict=True):
        times.append(transfer_s(plan.whole, conditions) or 0.0)
        if site.seconds is not None and site.seconds.encode:
            steps_with_tensors = _epochs(manifest, site).steps_per_epoch
            seconds = [sum(pair) for pair in zip(site.seconds.tokenize, site.seconds.encode, strict=True)]
            times.append(steps_with_tensors * sum(seconds) / len(seconds))
    return max(times)
