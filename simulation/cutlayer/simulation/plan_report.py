"""Everything that `cutlayer plan` says, before it is said: the model is built, data are opened, bytes are reckoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.modalities import TokensSpec
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.plan import Conditions, RunPlan, Site, SitePlan, plan_run, transfer_s
from cutlayer.simulation.plan_agent_process import agent_process_bytes
from cutlayer.simulation.plan_comparison import Comparison, FederatedChoice, compare
from cutlayer.simulation.plan_compute import FLOAT32_BYTES, agent_memory_bytes
from cutlayer.simulation.plan_model import PlannedModel
from cutlayer.simulation.plan_rehearsal import Cadence, rehearse
from cutlayer.simulation.plan_sites import (
    CountChoice,
    DataChoice,
    sites_from_counts,
    sites_from_data,
    trial_windows,
    try_out,
)
from cutlayer.simulation.plan_trial import Trial

__all__ = ["PlanReport", "make_report"]


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan and what stands beside it.

    Attributes:
        comparison: The plan and the alternatives.
        conditions: What was assumed.
        is_bound: Whether tensors are as large as their codec can make them, for want of data.
        tokenize_s: Processor seconds that an agent takes to tokenize a microbatch, the median; None unmeasured.
        encode_s: The same to encode it.
        learn_s: The same for its tokenizers' backward pass; None also where they are frozen.
        memory_bytes: What an agent's memory is made of.
        cadence: How often tokenizers' gradients and weights are sent; None where they are frozen.
        trial: The trial that sizes rest on; None for none.
        notes: What else a reader has to know.
    """

    comparison: Comparison
    conditions: Conditions
    is_bound: bool
    tokenize_s: float | None
    encode_s: float | None
    learn_s: float | None
    memory_bytes: dict[str, int]
    cadence: Cadence | None
    trial: Trial | None
    notes: tuple[str, ...]

    def transfer_s(self, site: SitePlan) -> float | None:
        """Return how long an agent's link is busy; None without a link."""
        return transfer_s(site.whole, self.conditions)


def make_report(
    settings: RunSettings,
    model: PlannedModel,
    data: DataChoice | CountChoice,
    conditions: Conditions,
    federated: FederatedChoice,
    *,
    worker: str,
    announce: Callable[[str], None],
) -> PlanReport:
    """Plan a run.

    Args:
        settings: The run.
        model: Its model.
        data: The agents' data, or how much of it there will be.
        conditions: What else is known; the time of a forward pass is measured here.
        federated: What to compare with.
        worker: The worker's name.
        announce: Told what is being done.

    Raises:
        CutlayerError: When the run cannot be planned.
    """
    manifest = model.manifest
    is_measured = isinstance(data, DataChoice)
    for name, spec in sorted(manifest.modalities.items()):
        if isinstance(spec, TokensSpec) and (is_measured or manifest.tokenizers.mode == "trainable"):
            raise SettingsError(
                f"the tokenizer of {name} is the sites' own, and a plan does not have it",
                "plan with --samples N, which gives an upper bound, and with frozen tokenizers",
            )
    if isinstance(data, DataChoice):
        sites = list(sites_from_data(model, data, worker=worker, announce=announce))
    else:
        sites = list(sites_from_counts(model, data, worker=worker))
    cadence = trial = None
    if manifest.tokenizers.mode == "trainable":
        announce("rehearsing the run")
        cadence = rehearse(settings, manifest, [(site.num_train, site.num_test) for site in sites])
        num_windows = trial_windows(model, conditions.forward_s)
        announce(f"training up to {num_windows} windows on trial")
        trial = try_out(model, sites, cadence, num_windows)
    announce("encoding microbatches")
    plan = plan_run(manifest, model.tokenizer_file, sites, conditions, cadence)
    announce("measuring an agent's memory")
    if isinstance(data, DataChoice):
        process_bytes = agent_process_bytes(manifest, model.tokenizer_file, data.name, f"0/{data.agents}", data.options)
    else:
        process_bytes = agent_process_bytes(manifest, model.tokenizer_file)
    largest = max(plan.sites, key=lambda site: site.num_samples)
    memory = agent_memory_bytes(
        manifest,
        model.sizes,
        largest.num_samples,
        conditions.credits,
        largest.microbatch_up,
        plan.mode,
    )
    if process_bytes is not None:
        memory = {"process with its data" if is_measured else "process": process_bytes, **memory}
    comparison = compare(plan, model.sizes, federated)
    return PlanReport(
        comparison,
        conditions,
        not is_measured,
        _median([seconds for site in sites if site.seconds for seconds in site.seconds.tokenize]),
        _median([seconds for site in sites if site.seconds for seconds in site.seconds.encode]),
        _median([seconds for site in sites if site.seconds for seconds in site.seconds.learn]),
        memory,
        cadence,
        trial,
        (
            *_notes(settings, manifest, sites, comparison),
            *_training_notes(plan, cadence, trial, is_measured=is_measured),
        ),
    )


_RAW = {
    "image": "a byte a pixel and channel",
    "audio": "two bytes a sound sample",
    "series": "four bytes a value of a series",
    "table": "four bytes a cell",
    "text": "a text's longest form, four bytes a subword",
}


def _raw_in_words(manifest: Manifest) -> str:
    kinds = {spec.kind for spec in manifest.modalities.values()}
    return ", ".join(words for kind, words in _RAW.items() if kind in kinds)


def _notes(settings: RunSettings, manifest: Manifest, sites: Sequence[Site], comparison: Comparison) -> tuple[str, ...]:
    notes = [
        "Reckoned for one worker and links that lose nothing: what is sent again comes on top.",
        f"Federated averaging: {comparison.federated[0].rounds} rounds, 4 B a trained parameter up and down in each, "
        f"and what is frozen down once. Raw data: training and test samples, {_raw_in_words(manifest)}.",
    ]
    tokens = sum(manifest.num_tokens(name) for name in manifest.modalities)
    kept_bytes = sum(site.num_samples for site in sites) * tokens * manifest.width * FLOAT32_BYTES
    if comparison.plan.mode != "every-step" and kept_bytes > settings.activations.store_bytes:
        notes.append(
            f"The worker's store may be too small: up to {kept_bytes:,} B are to be kept, activations.store_bytes is "
            f"{settings.activations.store_bytes:,}. What does not fit is sent whole in each epoch, and is not reckoned "
            "here."
        )
    if manifest.evaluation.patience_epochs:
        notes.append("All epochs are reckoned; a run that ends early, for want of a better one, sends less.")
    if manifest.budget.ladder:
        notes.append("Agents that are short of uplink go down the ladder of codecs, and then send less than this.")
    return tuple(notes)


def _training_notes(
    plan: RunPlan, cadence: Cadence | None, trial: Trial | None, *, is_measured: bool
) -> tuple[str, ...]:
    """Return what the sizes of changes and of trained tokenizers' messages rest on."""
    notes = []
    if cadence is not None:
        notes.append(
            f"Trained tokenizers: {cadence.num_windows:,.0f} windows, weights down {cadence.num_weights:,.0f} times, "
            f"gradients up with {np.mean(cadence.gradients_share):.0%} of steps, as in a rehearsal of "
            f"{'the whole run' if cadence.is_whole else 'a part of the run'} without its model."
        )
    if trial is not None:
        notes.append(
            f"Sizes that depend on values rest on a trial: {trial.num_windows:,} of the windows were trained here "
            f"({trial.num_windows / trial.epoch_windows:.2g} epochs), and the tokenizers' weights moved by "
            f"{trial.moved:.2%}. Beyond it, gradients are taken to stay as large, and weights to move on by the "
            "ratio of the learning rates."
        )
    if plan.mode == "delta" and is_measured:
        notes.append(
            "Changes of activations were encoded for some samples of each agent, at each of their visits; "
            + ("the weights moved as said." if trial is not None else "frozen tokenizers leave codecs' noise only.")
            if cadence is None or trial is not None
            else "Changes of activations have a codec of fixed size, so how far weights move does not matter."
        )
    return tuple(notes)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
