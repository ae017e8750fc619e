"""What a telephone system says (Debian `asterisk-core-sounds-*-wav` 1.6.1, CC-BY-SA): recorded speech and its key.

The key names the clip within its kind: `3` is a number, an ordinal, a day or a month, `a` a letter or its word in the
spelling alphabet, `invalid` of the voice mail or of a conference. So the key alone leaves open what the sound decides,
and the other way round: a sentence's sound, in any of five languages, says less of its kind than its key does. There is
no transcript; the kind is taken out of the file's name, and the rest of it is the text. A clip that is tested is not
trained on; the same key in another language may be, and there is one speaker a language, so speakers are known.

Axes: B samples, T waveform samples.
"""

from __future__ import annotations

import functools
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import AudioSpec
from cutlayer.edge_agent.batches import Batch, Dataset
from cutlayer.edge_agent.partition import Shard

from .division import divide, draws, run_of, samples
from .package_files import DATA_FOLDER, FETCH

__all__ = ["LANGUAGES", "NAME", "kind_and_text", "open_prompts", "read_clip", "sound_folder"]

NAME = "prompts"
TEST_SHARE = 0.25
LANGUAGES = ("en", "es", "fr", "it", "ru")
SOUNDS = "usr/share/asterisk/sounds"
"""Where the Debian packages put them."""

_SPOKEN = (
    ("number", r"digits/(\d+)"),
    ("ordinal", r"digits/h-(\d+)"),
    ("weekday", r"digits/day-(\d)"),
    ("month", r"digits/mon-(\d+)"),
    ("letter", r"letters/([a-z])"),
    ("spelling word", r"phonetic/([a-z])_p"),
    ("voice mail", r"vm-(.+)"),
    ("conference", r"conf(?:bridge)?-(.+)"),
    ("other service", r"(?:agent|dictate|dir|followme|priv|privacy|queue|spy|pbx|demo)[-/](.+)"),
)


def open_prompts(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    """Open one site's clips; skew is by language, as sites have it.

    Raises:
        SettingsError: When the sounds are not there.
    """
    clips, languages_B = _clips()
    num_clips = len(languages_B)
    is_test_B = np.zeros(num_clips, np.bool_)
    is_test_B[draws(seed, "clips").permutation(num_clips)[: round(TEST_SHARE * num_clips)]] = True
    train, test = samples(clips, np.flatnonzero(~is_test_B)), samples(clips, np.flatnonzero(is_test_B))
    return divide(NAME, train, test, languages_B[~is_test_B], shard, seed, alpha)


def kind_and_text(key: str) -> tuple[str, str] | None:
    """Return the kind of a clip, and what is left of its key as a text; None for a clip that is not used.

    Args:
        key: The file's path below its language, without its suffix: `digits/h-3`, `vm-goodbye`.
    """
    for kind, pattern in _SPOKEN:
        if found := re.fullmatch(pattern, key):
            return kind, re.sub(r"[-_]", " ", found[1]).lower()
    return None


def read_clip(path: Path, num_samples: int) -> NDArray[np.float32]:
    """Read the beginning of a clip, padded with silence: float32 (T), -1 to 1.

    Raises:
        SettingsError: When it is no WAV of one channel, 16 bits and 8 kHz.
    """
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 8_000):
            raise SettingsError(f"{path} is no mono sound of 16 bits at 8 kHz", FETCH)
        heard_T = np.frombuffer(file.readframes(num_samples), "<i2").astype(np.float32) / 32_768
    return np.pad(heard_T, (0, num_samples - len(heard_T)))


def sound_folder(language: str, roots: tuple[Path, ...] | None = None) -> Path:
    """Return the folder of a language's clips: `en_US_f_Allison` for `en`.

    Args:
        language: One of `LANGUAGES`.
        roots: Where to look; by default where the Debian packages are installed, and what was fetched.

    Raises:
        SettingsError: When it is nowhere.
    """
    for root in roots or (Path("/"), DATA_FOLDER / NAME):
        for folder in sorted((root / SOUNDS).glob(f"{language}_*")):
            return folder
    raise SettingsError(f"the sounds of asterisk-core-sounds-{language}-wav are not here", FETCH)


@functools.cache
def _clips() -> tuple[Batch, NDArray[np.int64]]:
    """Return all clips that are used, and the language of each, int64 (B)."""
    run = run_of(NAME)
    spec = run.modalities["speech"]
    assert isinstance(spec, AudioSpec)
    found = [
        (path, *named, number)
        for number, language in enumerate(LANGUAGES)
        for path, named in _named_clips(sound_folder(language))
    ]
    clips = Batch(
        inputs={
            "speech": np.stack([read_clip(path, spec.num_samples) for path, *_ in found]),
            "text": np.array([text for _, _, text, _ in found], dtype=object),
        },
        targets=np.array([run.task.output_names.index(kind) for _, kind, _, _ in found], np.int64),
    )
    return clips, np.array([number for *_, number in found], np.int64)


def _named_clips(folder: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    for path in sorted(folder.rglob("*.wav")):
        if (named := kind_and_text(path.relative_to(folder).with_suffix("").as_posix())) is not None:
            yield path, named
