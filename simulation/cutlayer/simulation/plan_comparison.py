"""A plan beside its alternatives, and which of them moves less: whichever it is."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.dashboards.units import bytes_text, ratio_text
from cutlayer.simulation.plan import RunPlan
from cutlayer.simulation.plan_alternatives import (
    Federated,
    federated_full,
    federated_last_blocks,
    federated_lora,
)
from cutlayer.simulation.plan_compute import (
    ModelSizes,
    feature_flops,
    forward_flops,
    learning_flops,
    projection_flops,
    raw_sample_bytes,
)

__all__ = ["Comparison", "FederatedChoice", "compare", "verdicts"]


@dataclass(frozen=True, slots=True)
class FederatedChoice:
    """Which kinds of federated averaging a plan is compared with.

    Attributes:
        rounds: Rounds; None for one an epoch.
        blocks: Numbers of last blocks that are trained; those that the model does not have are left out.
        rank: LoRA's.
    """

    rounds: int | None = None
    blocks: tuple[int, ...] = (1, 2)
    rank: int = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run, and what else its model and data could be trained by.

    Attributes:
        plan: The run.
        model: Its model.
        federated: Kinds of federated averaging, for one site each.
        raw_train_bytes: All training samples, raw.
        raw_bytes: All samples, raw.
        projection_flops: Operations of an agent's tokenizers for one sample.
        learning_flops: Operations of their backward pass, where they are trained.
        feature_flops: Operations that prepare a raw sample: normalizing it, spectrograms.
        forward_flops: Operations of the encoder's forward pass for one sample.
    """

    plan: RunPlan
    model: ModelSizes
    federated: tuple[Federated, ...]
    raw_train_bytes: int
    raw_bytes: int
    projection_flops: int
    learning_flops: int
    feature_flops: int
    forward_flops: int

    @property
    def agent_flops(self) -> int:
        """Operations of an agent for one training sample in a whole run.

        Raw data are prepared once, tokens made as often as they are sent. (Beyond the agent's cache both are.)
        """
        passes = 1 if self.plan.is_kept else self.plan.manifest.epochs
        return self.feature_flops + passes * self.pass_flops

    @property
    def pass_flops(self) -> int:
        """Operations of an agent for one pass over a training sample that is prepared."""
        return self.projection_flops + self.learning_flops

    @property
    def flops_ratio(self) -> float | None:
        """Training a sample at its site over what an agent does there, for one pass; None where nobody knows that."""
        return 3 * (self.forward_flops + self.projection_flops) / self.pass_flops if self.pass_flops else None


def compare(plan: RunPlan, model: ModelSizes, choice: FederatedChoice) -> Comparison:
    """Put a plan beside its alternatives.

    Raises:
        SettingsError: When a kind of federated averaging that was asked for does not exist.
    """
    manifest = plan.manifest
    rounds = manifest.epochs if choice.rounds is None else choice.rounds
    tokenizer_flops = projection_flops(manifest)
    sample_bytes = raw_sample_bytes(manifest.modalities)
    return Comparison(
        plan,
        model,
        (
            federated_full(model, rounds, tokenizer_flops),
            *(federated_last_blocks(model, count, rounds, tokenizer_flops) for count in choice.blocks),
            federated_lora(model, choice.rank, rounds, tokenizer_flops),
        ),
        sample_bytes * plan.num_train,
        sample_bytes * (plan.num_train + plan.num_test + plan.num_val),
        tokenizer_flops,
        learning_flops(manifest),
        feature_flops(manifest.modalities),
        forward_flops(model),
    )


def verdicts(comparison: Comparison) -> list[str]:
    """Return a sentence for each alternative: which of the two moves less, and by what factor."""
    own = comparison.plan.whole.both
    sentences = [_federated_verdict(own, kind, len(comparison.plan.sites)) for kind in comparison.federated]
    raw = _verdict(own, comparison.raw_bytes, "sending the raw data once")
    if (own < comparison.raw_bytes) != (own < comparison.raw_train_bytes):
        raw += f" The training samples alone are {bytes_text(comparison.raw_train_bytes)}, less than this run moves."
    return [*sentences, raw]


def _federated_verdict(own: float, kind: Federated, num_sites: int) -> str:
    sentence = _verdict(own, kind.total_bytes * num_sites, f"federated averaging of {kind.name}")
    without_bytes = (kind.total_bytes - kind.frozen_bytes) * num_sites
    if own < kind.total_bytes * num_sites and own >= without_bytes:
        sentence += f" Where sites have the frozen rest already, it is the cheaper one: {bytes_text(without_bytes)}."
    return sentence


def _verdict(own: float, other: float, what: str) -> str:
    if own < other:
        sizes = f"{bytes_text(own)} against {bytes_text(other)} ({ratio_text(other, own)})"
        return f"This run is cheaper than {what}: {sizes}."
    sizes = f"{bytes_text(other)} against {bytes_text(own)} ({ratio_text(own, other)})"
    return f"{what[0].upper()}{what[1:]} is cheaper than this run: {sizes}."
