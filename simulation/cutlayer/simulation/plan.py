"""What a run will move before it is started: bytes of each agent by direction and part of the run. No I/O.

The reckoning is of a run in which nothing is lost, nobody comes late and one worker serves: what is sent again, and
what several workers or a store without room add, is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cutlayer.broker.manifest import ActivationMode, Manifest
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.simulation.plan_evaluations import evaluations
from cutlayer.simulation.plan_exchange import Exchanges
from cutlayer.simulation.plan_outcome import Conditions, Part, RunPlan, Site, SitePlan, transfer_s
from cutlayer.simulation.plan_presence import goodbye, joining, leaving
from cutlayer.simulation.plan_rehearsal import Cadence
from cutlayer.simulation.plan_schedule import Stage, schedule
from cutlayer.simulation.plan_telemetry import Pace, Reports, reports
from cutlayer.simulation.plan_tensors import BoundTensors
from cutlayer.simulation.plan_wire import NOTHING, Ways

__all__ = ["Conditions", "Part", "RunPlan", "Site", "SitePlan", "plan_run", "transfer_s"]


def plan_run(
    manifest: Manifest,
    tokenizer_file: bytes,
    sites: Sequence[Site],
    conditions: Conditions,
    cadence: Cadence | None = None,
) -> RunPlan:
    """Reckon a run.

    Args:
        manifest: The run.
        tokenizer_file: The client-side weights.
        sites: Its agents, at least one.
        conditions: All else.
        cadence: How often tokenizers' gradients and weights are sent; needed where they are trained.
    """
    assert cadence is not None or manifest.tokenizers.mode == "frozen"
    mode = manifest.activations if conditions.may_be_kept else "every-step"
    shares = cadence.gradients_share if cadence is not None else (0.0,) * len(sites)
    # Agents without data of their own that have as many samples, and a topic as long, are reckoned once.
    alike: dict[object, Site] = {}
    models = [alike.setdefault((_likeness(site), share), site) for site, share in zip(sites, shares, strict=True)]
    share_of = dict(zip(models, shares, strict=True))
    bare = {
        site: _without_reports(manifest, tokenizer_file, sites, site, conditions, mode, cadence, share_of[site])
        for site in dict.fromkeys(models)
    }
    duration_s = conditions.duration_s or _estimated_s(manifest, sites, [bare[site] for site in models], conditions)
    whole = {site: _with_reports(manifest, site, plan, duration_s, conditions, mode) for site, plan in bare.items()}
    plans = tuple(replace(whole[model], agent=site.parties.agent) for site, model in zip(sites, models, strict=True))
    transfers = [transfer_s(plan.whole, conditions) for plan in plans]
    known = [seconds for seconds in transfers if seconds is not None]
    return RunPlan(manifest, plans, mode, duration_s, max(known, default=None))


def _likeness(site: Site) -> object:
    if isinstance(site.tensors, BoundTensors):
        return site.num_train, site.num_test, site.num_val, len(site.parties.agent)
    return site.parties.agent


def _without_reports(
    manifest: Manifest,
    tokenizer_file: bytes,
    sites: Sequence[Site],
    site: Site,
    conditions: Conditions,
    mode: ActivationMode,
    cadence: Cadence | None,
    gradients_share: float,
) -> SitePlan:
    plan = _epochs(manifest, site)
    num_versions = _num_versions(manifest, sites) if cadence is None else cadence.num_windows
    exchanges = Exchanges(
        manifest,
        site.parties,
        conditions.link,
        site.tensors,
        plan,
        num_versions / plan.total_steps,
    )
    stages: dict[tuple[Stage, Part], Ways] = {}
    microbatch_up = 0.0
    for alike in schedule(manifest, plan, mode=mode, num_credits=conditions.credits):
        activations = exchanges.activations(alike)
        for part, ways in ((Part.ACTIVATIONS, activations), (Part.ANSWERS, exchanges.answers(alike))):
            key = alike.stage, part
            stages[key] = stages.get(key, NOTHING) + ways * alike.count
        microbatch_up = max(microbatch_up, activations.up)
    for evaluation in evaluations(manifest, plan, tuple(sorted(manifest.modalities))):
        if evaluation.split == "val":
            stages[Stage.EVALUATION, Part.ANSWERS] += exchanges.candidate(evaluation.moment)
    presence = joining(
        manifest,
        tokenizer_file,
        site.num_train,
        conditions.credits,
        conditions.lease_s,
        site.parties,
        conditions.link,
    ) + leaving(manifest, site.parties, conditions.link)
    tokenizers = NOTHING
    if cadence is not None:
        tokenizers = exchanges.tokenizer_gradients() * (gradients_share * plan.total_steps)
        tokenizers += exchanges.tokenizer_weights(round(num_versions)) * cadence.num_weights
    return SitePlan(
        site.parties.agent,
        site.num_train,
        site.num_test,
        stages,
        presence,
        tokenizers,
        NOTHING,
        0,
        microbatch_up,
        site.num_val,
    )


def _with_reports(
    manifest: Manifest, site: Site, bare: SitePlan, duration_s: float, conditions: Conditions, mode: ActivationMode
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
    found: Reports = reports(manifest, mode, plan, bare.whole, pace, site.parties, conditions.link)
    return replace(
        bare,
        reports=found.bytes + goodbye(found.last, site.parties, conditions.link),
        num_reports=found.count,
    )


def _epochs(manifest: Manifest, site: Site) -> EpochPlan:
    return EpochPlan(
        manifest.seed,
        site.parties.agent,
        manifest.epochs,
        site.num_train,
        site.num_test,
        manifest.microbatch_samples,
        site.num_val,
    )


def _num_versions(manifest: Manifest, sites: Sequence[Site]) -> float:
    """Return how many windows a run commits, about."""
    if manifest.window.mode == "synchronous":
        return max(_epochs(manifest, site).total_steps for site in sites)
    return manifest.epochs * sum(site.num_train for site in sites) / manifest.window.samples


def _estimated_s(manifest: Manifest, sites: Sequence[Site], plans: Sequence[SitePlan], conditions: Conditions) -> float:
    """Return how long a run takes at least: its slowest link, its slowest agent, or its worker on this machine."""
    is_kept = conditions.may_be_kept and manifest.activations == "once"
    num_passes = manifest.epochs * sum(site.num_train for site in sites)
    num_evaluated = sum(
        evaluation.num_samples
        for site in sites
        for evaluation in evaluations(manifest, _epochs(manifest, site), tuple(sorted(manifest.modalities)))
    )
    times = [conditions.forward_s * (conditions.step_passes * num_passes + num_evaluated), 1.0]
    for site, plan in zip(sites, plans, strict=True):
        times.append(transfer_s(plan.whole, conditions) or 0.0)
        if site.seconds is not None and site.seconds.encode:
            epochs = _epochs(manifest, site)
            steps_with_tensors = epochs.steps_per_epoch if is_kept else epochs.total_steps
            own = site.seconds
            step_s = sum(sum(times_s) / len(times_s) for times_s in (own.tokenize, own.encode, own.learn) if times_s)
            times.append(steps_with_tensors * step_s)
    return max(times)
