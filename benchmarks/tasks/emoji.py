"""Pictures and their names (npm `emoji-datasource-*` 16.0.0, `emojibase-data` 17.0.0): which text belongs to which.

Two vendors draw the same things in their own ways: Twitter (Twemoji, CC-BY 4.0) and Google (Noto, Apache-2.0). A
caption is the name and the keywords of Unicode's annotations, MIT as Emojibase has them. Skin tones are left out.

What is tested is a drawing that is not trained on, of a thing that is: the other vendor's drawing of it has the same
caption. Unseen things would be the harder test, and too hard for so little data (recall at 10 of 0.1 among 572 things).

Axes: B samples.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Batch, Dataset
from cutlayer.edge_agent.partition import Shard

from .division import divide, draws, held_out, samples
from .package_files import DATA_FOLDER, FETCH, picture

__all__ = ["NAME", "VENDORS", "caption", "open_emoji", "read_pairs", "unseen_drawings"]

NAME = "emoji"
VENDORS = ("google", "twitter")
TEST_SHARE = 0.3
SIDE = 32
_COMPONENTS = 2
"""Group of skin tones and hair, which are parts of pictures."""


def open_emoji(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    """Open one site's pairs; skew is by Unicode's group (faces, animals, flags ...).

    Raises:
        SettingsError: When the data were not fetched.
    """
    pairs, names, groups_B = _pairs()
    is_test_B = unseen_drawings(names, seed)
    train, test = samples(pairs, np.flatnonzero(~is_test_B)), samples(pairs, np.flatnonzero(is_test_B))
    return divide(NAME, train, test, groups_B[~is_test_B], shard, seed, alpha)


def unseen_drawings(names: list[str], seed: int) -> NDArray[np.bool_]:
    """Draw what is tested: of some emoji one vendor's drawing, bool (B). The other vendor's is trained on.

    Args:
        names: Emoji of each drawing, (B): both vendors' follow each other.
        seed: The run's.
    """
    chosen = held_out(sorted(set(names)), TEST_SHARE, seed)
    vendors_b = draws(seed, "vendors").randint(len(VENDORS), size=len(names) // len(VENDORS))
    is_vendor_B = np.arange(len(names)) % len(VENDORS) == np.repeat(vendors_b, len(VENDORS))
    is_chosen_B = np.array([name in chosen for name in names], np.bool_)
    is_test_B: NDArray[np.bool_] = is_vendor_B & is_chosen_B
    return is_test_B


def caption(entry: dict[str, object]) -> str:
    """Return name and keywords, each word once: `red apple fruit`."""
    tags = entry.get("tags")
    words = " ".join([str(entry["label"]), *(map(str, tags) if isinstance(tags, list) else ())]).lower().split()
    return " ".join(dict.fromkeys(word.strip(":,") for word in words))


def read_pairs(folder: Path) -> tuple[Batch, list[str], NDArray[np.int64]]:
    """Read what was fetched: `data.json`, and `VENDOR/CODE.png`.

    Returns:
        `image`, uint8 (B, 32, 32, 3), and `caption`, texts (B), by emoji and then by vendor; the code of each; the
        group of each, int64 (B).

    Raises:
        SettingsError: When they are not there.
    """
    if not (folder / "data.json").is_file():
        raise SettingsError("the pictures and names of emoji are not here", FETCH)
    entries = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    files = {vendor: {_plain(path.stem): path for path in (folder / vendor).glob("*.png")} for vendor in VENDORS}
    images, captions, names, groups = [], [], [], []
    for entry in sorted(entries, key=lambda entry: str(entry["hexcode"])):
        code, group = _plain(str(entry["hexcode"])), entry.get("group", _COMPONENTS)
        if group == _COMPONENTS or not all(code in files[vendor] for vendor in VENDORS):
            continue
        for vendor in VENDORS:
            images.append(picture(files[vendor][code], SIDE))
            captions.append(caption(entry))
            names.append(code)
            groups.append(group)
    if not images:
        raise SettingsError(f"{folder} has no emoji that {' and '.join(VENDORS)} have both drawn", FETCH)
    inputs = {"image": np.stack(images), "caption": np.array(captions, dtype=object)}
    return Batch(inputs, np.zeros(len(images), np.int64)), names, np.array(groups, np.int64)


def _plain(code: str) -> str:
    """Return a code without the selector of the coloured form, which not everybody writes."""
    return code.lower().replace("-fe0f", "")


@functools.cache
def _pairs() -> tuple[Batch, list[str], NDArray[np.int64]]:
    return read_pairs(DATA_FOLDER / NAME)
