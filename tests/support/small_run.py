"""A run small enough for a test: two modalities of a few tokens, a two-block encoder, samples made from a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cutlayer.broker.manifest import AudioSpec, ImageSpec, Manifest
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split
from cutlayer.server_worker.activation_store import ActivationStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import ActivationsAssembled, Event
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork

IMAGE = ImageSpec(height=4, width=4, channels=1, patch=2)
AUDIO = AudioSpec(sample_rate_hz=1_000, num_frames=4, hop_samples=8, fft_samples=16, num_mels=4, patch=2)
CLASSES = ("no", "perhaps", "yes")


def small_settings(telemetry_s: float = 1.0, **sections: Mapping[str, object]) -> RunSettings:
    """Return settings of a small run; sections given replace single keys of the defaults."""
    document: dict[str, Mapping[str, object]] = {
        "run": {"name": "small", "epochs": 2, "microbatch_samples": 4, "min_agents": 1},
        "model": {
            "name": "vit_tiny_patch16_224",
            "options": {
                "img_size": 4,
                "patch_size": 2,
                "in_chans": 1,
                "embed_dim": 16,
                "depth": 2,
                "num_heads": 2,
            },
        },
        "modalities": {"audio": AUDIO.model_dump(), "image": IMAGE.model_dump()},
        "task": {"classes": list(CLASSES)},
        "codecs": {"activations": "identity", "outputs": "identity", "output_gradients": "identity"},
        "window": {"mode": "synchronous"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "warmup_ratio": 0.0},
        "evaluation": {"every_epochs": 1, "samples": 64},
    }
    for section, keys in sections.items():
        document[section] = {**document.get(section, {}), **keys}
    return RunSettings.model_validate({**document, "telemetry_s": telemetry_s, "telemetry_share": 1.0})


def small_dataset(seed: int, num_train: int = 16, num_test: int = 40, num_val: int = 0) -> ArrayDataset:
    """Return random samples whose class can be learned from their brightness and loudness."""
    rng = np.random.default_rng(seed)

    def split(num_samples: int) -> Batch:
        labels_B = rng.integers(len(CLASSES), size=num_samples)
        images = np.clip(rng.normal(60.0 + 60.0 * labels_B[:, None, None, None], 40.0, (num_samples, 4, 4, 1)), 0, 255)
        loudness = (0.1 + 0.3 * labels_B)[:, None]
        waves = np.clip(loudness * rng.normal(size=(num_samples, AUDIO.num_samples)), -1, 1)
        return Batch({"image": images.astype(np.uint8), "audio": waves.astype(np.float32)}, labels_B)

    splits: dict[Split, Batch] = {"train": split(num_train), "test": split(num_test)}
    if num_val:
        splits["val"] = split(num_val)
    return ArrayDataset("small", CLASSES, {"audio": AUDIO, "image": IMAGE}, splits)


class SmallWorker:
    """A worker of a small run in a virtual network.

    Args:
        network: The network.
        settings: The run.
        counting: Whether to count instead of computing.
        name: The worker's name.
        kept_in: Keeps activations; None for nothing.
    """

    def __init__(
        self,
        network: VirtualNetwork,
        settings: RunSettings,
        *,
        counting: bool = False,
        name: str = "w0",
        kept_in: ActivationStore | None = None,
    ) -> None:
        self.settings = settings
        self.built: BuiltModel = build(settings, settings.run.seed)
        self.manifest: Manifest = make_manifest(settings, self.built, run_id="small-0")
        self.counter = CountingEngine(len(CLASSES))
        self.engine: Engine = make_engine(settings, self.built)
        self.session = make_session(
            settings, self.manifest, name, incarnation=network.next_incarnation(), lease_seed=settings.run.seed
        )
        self.num_stored_samples = 0
        self.book = RunBook(self.manifest, self.built.num_tokenizer_parameters)
        transport = network.transport(name)
        self.runtime = WorkerRuntime(
            transport,
            self.session,
            self.counter if counting else self.engine,
            self.built.tokenizer_file,
            self.book,
            options=WorkerOptions(claim_s=0.1),
            on_event=self._take,
            clock=network.clock,
            keeper=StoreKeeper(None if kept_in is None else lambda _: kept_in),
        )
        network.add(name, self.runtime, transport, lambda: self.runtime.is_finished)

    def _take(self, event: Event) -> None:
        if isinstance(event, ActivationsAssembled):
            self.num_stored_samples += event.num_stored
