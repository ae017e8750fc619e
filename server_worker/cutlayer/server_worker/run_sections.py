"""Sections of the run settings: those that the manifest has, too, are in `cutlayer.broker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from cutlayer.broker.manifest import ActivationMode, Name, TokenizerMode, TokenReduction
from cutlayer.server_worker.settings_section import MODALITY_PATTERN, Section, Share

__all__ = [
    "ActivationSettings",
    "DataSettings",
    "ModalityName",
    "OptimizerSettings",
    "RunSection",
    "TokenizerSettings",
    "WorkerSettings",
]

ModalityName = Annotated[str, Field(max_length=64, pattern=MODALITY_PATTERN)]


def _zero_is_off(value: float | None) -> float | None:
    return value or None


class RunSection(Section):
    """[run]: the run as a whole.

    Attributes:
        name: For people; part of the run's unique id.
        seed: Seed of initial weights, data order and modality dropout.
        epochs: Passes of each agent over its own training samples.
        microbatch_samples: Samples an agent sends at once.
        min_agents: Training starts when so many agents hold leases.
        absence_grace_s: Seconds that an agent may be gone before the run goes on without it.
        service: Whether the run never ends and takes agents as they come.
    """

    name: Name = "run"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    epochs: PositiveInt = 1
    microbatch_samples: Annotated[int, Field(ge=1, le=65_536)] = 32
    min_agents: PositiveInt = 1
    absence_grace_s: Annotated[float, Field(ge=0.0)] = 30.0
    service: bool = False


class DataSettings(Section):
    """[data]: informative; each agent names its own data.

    Attributes:
        name: What the run is about, such as `demo:digits`.
    """

    name: Annotated[str, Field(max_length=256)] = ""


class OptimizerSettings(Section):
    """[optimizer]: the step, and its learning rate over the run.

    Attributes:
        name: `adamw` or `sgd`.
        lr: Peak learning rate.
        weight_decay: Spares biases, norms, class tokens and embeddings.
        betas: AdamW's.
        momentum: SGD's.
        warmup_ratio: Share of the planned samples over which the rate rises from 0 to `lr`.
        min_lr_ratio: Share of `lr` that is left at the end of the run.
        clip_norm: Largest norm of the mean gradient; 0 turns clipping off (None here).
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 5e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9
    warmup_ratio: Share = 0.1
    min_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    clip_norm: Annotated[Annotated[float, Field(ge=0.0)] | None, AfterValidator(_zero_is_off)] = 1.0


class ActivationSettings(Section):
    """[activations]: how often they are sent, and where they are kept meanwhile.

    Attributes:
        mode: `once`: workers keep them, and later epochs send references. `every-step`: nothing is kept. A site may
            always send every step (`edge-agent start --activations every-step`).
        store_bytes: Room for them on this worker's disk; what does not fit is sent each time.
        store: Folder that holds them; workers of a pool on one machine share one. By default one in the output folder.
        reduction: Token reduction, by modality; those not named send all tokens.
    """

    mode: ActivationMode = "once"
    store_bytes: PositiveInt = 20_000_000_000
    store: Path | None = None
    reduction: Annotated[dict[ModalityName, TokenReduction], Field(max_length=16)] = Field(default_factory=dict)


class TokenizerSettings(Section):
    """[tokenizers]: the client side of the model.

    Attributes:
        mode: `frozen`: they stay what the run begins with. `trainable`: the gradients at the cut go down, those of the
            tokenizers up, and new weights down.
        every_steps: With trainable ones, an agent sends their gradients summed over so many of its own steps.
        every_windows: New weights go down after so many windows.
    """

    mode: TokenizerMode = "frozen"
    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 4
    every_windows: Annotated[int, Field(ge=1, le=1_000_000)] = 4


class WorkerSettings(Section):
    """[worker]: how a server worker works.

    Attributes:
        credits: Microbatches that an agent may have in flight at this worker.
        max_batch_samples: Samples that go forward together at most.
        checkpoint_every_windows: Windows from one checkpoint to the next.
        lease_s: Seconds that a lease outlives its agent's last sign of life.
        threads: Threads of torch; 0 for one less than there are cores, which leaves one to all else.
        drain_s: Seconds that a worker which is stopped goes on with what agents have outstanding at it.
        round_timeout_s: Seconds that a replica waits for the others of its pool in one round; longer than the longest
            forward or backward pass.
    """

    credits: Annotated[int, Field(ge=1, le=1_024)] = 2
    max_batch_samples: PositiveInt = 256
    checkpoint_every_windows: PositiveInt = 50
    lease_s: PositiveFloat = 30.0
    threads: Annotated[int, Field(ge=0, le=1_024)] = 0
    drain_s: Annotated[float, Field(ge=0.0, le=3_600.0)] = 10.0
    round_timeout_s: PositiveFloat = 20.0
