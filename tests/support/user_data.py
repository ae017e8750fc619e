"""A user's files, made on the spot: images, sounds, a table of them, and what a run asks of them."""

from __future__ import annotations

import csv
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutlayer.broker.manifest import AudioSpec, ImageSpec, ModalitySpec
from cutlayer.broker.tasks import ClassificationSpec, TaskSpec
from cutlayer.edge_agent.data_request import DataRequest
from cutlayer.edge_agent.partition import Shard

__all__ = [
    "AUDIO",
    "CLASSES",
    "IMAGE",
    "asked",
    "site",
    "write_image",
    "write_sound",
    "write_table",
    "write_truncated_image",
]

IMAGE = ImageSpec(height=8, width=8, channels=3, patch=4)
AUDIO = AudioSpec(sample_rate_hz=8_000, num_frames=4, hop_samples=64, fft_samples=128, num_mels=4, patch=2)
CLASSES = ("cat", "dog")


def asked(
    modalities: Mapping[str, ModalitySpec] | None = None,
    *,
    task: TaskSpec | None = None,
    shard: str = "0/1",
    seed: int = 0,
    **options: Any,
) -> DataRequest:
    """Return what a run with images and sounds of cats and dogs asks for, or another one."""
    return DataRequest(
        modalities or {"image": IMAGE, "audio": AUDIO},
        task or ClassificationSpec(classes=CLASSES),
        Shard.parse(shard),
        seed,
        options,
    )


def write_image(path: Path, grey: int = 128, *, width: int = 12, height: int = 10) -> None:
    """Write a colour image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (grey, grey, grey)).save(path)


def write_truncated_image(path: Path) -> None:
    """Write an image whose header is good and whose pixels are not."""
    noise_HWC = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise_HWC).save(path)
    path.write_bytes(path.read_bytes()[:500])


def write_sound(path: Path, samples_TC: NDArray[np.float64], *, rate_hz: int = 8_000, sample_bytes: int = 2) -> None:
    """Write a WAV file of 1, 2, 3 or 4 bytes a sample; `samples_TC` from -1 to 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    full_scale = 1 << (8 * sample_bytes - 1)
    levels = np.clip(np.rint(samples_TC * full_scale), -full_scale, full_scale - 1).astype(np.int64)
    if sample_bytes == 1:
        levels += 128  # WAV's 8 bits have no sign
    octets = levels.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :sample_bytes]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples_TC.shape[1])
        file.setsampwidth(sample_bytes)
        file.setframerate(rate_hz)
        file.writeframes(octets.tobytes())


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def site(folder: Path, num_samples: int = 20, *, without_sound: Iterable[int] = ()) -> Path:
    """Make a site's folder: cats are dark and quiet, dogs bright and loud; the grey of an image is its row's.

    Args:
        folder: Where to; has `images/`, `sounds/` and `data.csv` afterwards.
        num_samples: Rows.
        without_sound: Rows that lack a sound.
    """
    lacking = set(without_sound)
    rows = []
    for row in range(num_samples):
        label = CLASSES[row % 2]
        image, sound = f"images/{row}.png", f"sounds/{row}.wav"
        write_image(folder / image, grey=row % 100 + (0 if label == "cat" else 150))
        time_T = np.arange(AUDIO.num_samples) / AUDIO.sample_rate_hz
        if row not in lacking:
            write_sound(folder / sound, (0.1 if label == "cat" else 0.8) * np.sin(2_000 * time_T)[:, None])
        rows.append([image, "" if row in lacking else sound, label])
    return write_table(folder / "data.csv", ["image", "audio", "label"], rows).parent
