"""How often a run with trainable tokenizers sends their weights and gradients: the run is rehearsed, without its model.

An agent sends its tokenizers' gradients once so many of its steps are committed, and gets new weights after so many
windows. Both hang on how windows close: on their size, on how many agents there are and on what they have out at once.
So the real sessions and drivers of agents and worker go through the run in virtual time, with samples of one number
each and an engine that computes nothing. A long run is rehearsed in part, and the counts are scaled up.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.manifest import CodecNames, ImageSpec, Manifest
from cutlayer.broker.model_chunks import describe_model
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.passes import Backwarded, Forwarded, ForwardItem
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork

__all__ = ["Cadence", "rehearse"]

MAX_STEPS = 2_000
"""Steps of all agents that are rehearsed: about a millisecond each."""
MAX_AGENTS = 64
LINK = LinkFaults(delay_s=0.02)
WORKER = "w0"
PIXEL = ImageSpec(height=1, width=1, channels=1, patch=1)
WEIGHTS = {"image.weight": np.zeros((1, 1), np.float32), "image.bias": np.zeros(1, np.float32)}


@dataclass(frozen=True, slots=True)
class Cadence:
    """What a rehearsal has counted, for the whole run.

    Attributes:
        num_windows: Windows.
        num_weights: Times that each agent gets the tokenizers' weights: at first, every so many windows, and at last.
        gradients_share: Share of each agent's steps whose output gradients bring those of the tokenizers.
        is_whole: Whether all of the run was rehearsed.
    """

    num_windows: float
    num_weights: float
    gradients_share: tuple[float, ...]
    is_whole: bool


class _Engine(CountingEngine):
    """Gives gradients at the cut and weights, all zeros, and counts whose tokenizers' gradients have come."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.num_gradients: dict[str, int] = {}
        self._shapes: dict[Hashable, tuple[int, ...]] = {}

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Remember what gradients at the cut will look like."""
        self._shapes |= {item.key: item.tokens["image"].shape for item in items if item.mode == "train"}
        return super().forward(items, candidate)

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Count the tokenizers' gradients."""
        for key in tokenizer_gradients or {}:
            assert isinstance(key, tuple)
            self.num_gradients[key[0]] = self.num_gradients.get(key[0], 0) + 1
        done = super().backward(group_id, gradients, last=last)
        cut = {key: {"image": np.zeros(self._shapes.pop(key), np.float32)} for key in done.accepted}
        return replace(done, cut_gradients=cut)

    def tokenizer_weights(self, candidate: str = "") -> dict[str, NDArray[np.float32]]:
        """Return zeros."""
        del candidate
        return WEIGHTS


def rehearse(settings: RunSettings, manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> Cadence:
    """Go through a run without its model.

    Args:
        settings: The run.
        manifest: The same.
        sizes: Training and test samples of each agent.
    """
    shown, epochs, window_samples = _part(settings, sizes)
    part = settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"epochs": epochs, "min_agents": len(shown)}),
            "window": settings.window.model_copy(update={"samples": window_samples}),
        }
    )
    with _silent():
        session, engine = _run(part, _small_manifest(part, manifest), shown)
    num_steps = [epochs * -(-num_train // settings.run.microbatch_samples) for num_train, _ in shown]
    shares = tuple(engine.num_gradients.get(_name(index), 0) / steps for index, steps in enumerate(num_steps))
    if len(shown) < len(sizes):
        shares = (float(np.mean(shares)),) * len(sizes)
    is_whole = (len(shown), epochs, window_samples) == (len(sizes), settings.run.epochs, settings.window.samples)
    is_whole &= tuple(shown) == tuple(sizes)
    num_windows: float = session
    if not is_whole and settings.window.mode == "asynchronous":
        scale = settings.run.epochs * sum(size for size, _ in sizes) / (epochs * sum(size for size, _ in shown))
        num_windows *= scale * window_samples / settings.window.samples
    elif not is_whole:
        num_windows = max(settings.run.epochs * -(-size // settings.run.microbatch_samples) for size, _ in sizes)
    every = manifest.tokenizers.every_windows
    return Cadence(num_windows, 2 + (num_windows // every if is_whole else num_windows / every), shares, is_whole)


def _part(settings: RunSettings, sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int, int]:
    """Return how much of a run is rehearsed: sizes of the agents, epochs, samples of a window."""
    batch, window = settings.run.microbatch_samples, settings.window.samples
    shown = list(sizes[:MAX_AGENTS])
    if len(shown) < len(sizes) and window > len(shown) * settings.worker.credits * batch / 2:
        # As full as it would be with all agents.
        window = max(window * len(shown) // len(sizes), 1)
    epoch_steps = sum(-(-num_train // batch) for num_train, _ in shown)
    epochs = min(settings.run.epochs, max(MAX_STEPS // epoch_steps, 1))
    if epoch_steps > MAX_STEPS:
        share = MAX_STEPS / epoch_steps
        shown = [(max(round(num_train * share), batch), num_test) for num_train, num_test in shown]
    if (len(shown), epochs) != (len(sizes), settings.run.epochs) or epoch_steps > MAX_STEPS:
        shown = [(num_train, min(num_test, batch)) for num_train, num_test in shown]
    return shown, epochs, window


def _small_manifest(settings: RunSettings, manifest: Manifest) -> Manifest:
    tokenizers = describe_model(safetensors.numpy.save(WEIGHTS)).model_copy(
        update={name: getattr(manifest.tokenizers, name) for name in ("mode", "every_steps", "every_windows")}
    )
    codecs = CodecNames(**dict.fromkeys(CodecNames.model_fields, "identity"))
    changes = {
        "epochs": settings.run.epochs,
        "window": settings.window,
        "width": 1,
        "modalities": {"image": PIXEL},
        "task": manifest.task.model_copy(update={"classes": ("no", "yes")}),
        "codecs": codecs,
        "tokenizers": tokenizers,
        "activations": "every-step",
        "reduction": {},
        "head": None,
        # Candidates change nothing about windows, and their validation samples are no part of the sizes.
        "evaluation": manifest.evaluation.model_copy(update={"keep": "last", "patience_epochs": 0}),
    }
    return manifest.model_copy(update=changes)


def _run(settings: RunSettings, manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> tuple[int, _Engine]:
    network, engine = VirtualNetwork(LINK), _Engine(manifest.num_outputs)
    session = make_session(settings, manifest, WORKER, incarnation=network.next_incarnation(), lease_seed=0)
    transport = network.transport(WORKER)
    worker = WorkerRuntime(
        transport,
        session,
        engine,
        safetensors.numpy.save(WEIGHTS),
        RunBook(manifest, 2),
        options=WorkerOptions(claim_s=0.1),
        clock=network.clock,
    )
    network.add(WORKER, worker, transport, lambda: worker.is_finished)
    agents = [network.add_agent(_name(index), _pixels(*size)) for index, size in enumerate(sizes)]
    network.run(lambda: worker.is_finished and all(agent.is_finished for agent in agents), max_virtual_s=1e6)
    return session.window, engine


def _pixels(num_train: int, num_test: int) -> ArrayDataset:
    def split(num_samples: int) -> Batch:
        return Batch({"image": np.zeros((num_samples, 1, 1, 1), np.uint8)}, np.zeros(num_samples, np.int64))

    return ArrayDataset("pixels", ("no", "yes"), {"image": PIXEL}, {"train": split(num_train), "test": split(num_test)})


def _name(index: int) -> str:
    return f"site/{index}"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep agents and worker from telling a person of a run that is none."""
    log = logging.getLogger("cutlayer")
    was_disabled, log.disabled = log.disabled, True
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        log.disabled = was_disabled
