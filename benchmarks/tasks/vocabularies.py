"""Make the vocabularies of the tasks' texts anew: byte pair encoding over their texts (`easy_vqa_words.json` ...).

They are in the repository, since a run's settings name their files; this says where they are from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from cutlayer.server_worker.vocabulary_files import make_vocabulary

from . import easy_vqa, emoji
from .package_files import DATA_FOLDER, package_file

__all__ = ["vocabulary_of"]

SIZES = {"easy_vqa_words.json": 400, "emoji_words.json": 1_200}


def vocabulary_of(texts: Iterable[str], size: int) -> str:
    """Return a vocabulary of texts; the same texts, in any order, give the same one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.txt")
        file.write_text("\n".join(sorted(texts)), encoding="utf-8")
        return json.dumps(json.loads(make_vocabulary([file], size)), ensure_ascii=False, separators=(",", ":")) + "\n"


def main() -> None:
    """Write both."""
    questions = json.loads(package_file("easy_vqa", "data/train/questions.json").read_text(encoding="utf-8"))
    captions: Sequence[str] = list(emoji.read_pairs(DATA_FOLDER / emoji.NAME)[0].inputs["caption"])
    texts = {"easy_vqa_words.json": [question for question, _, _ in questions], "emoji_words.json": captions}
    for name, size in SIZES.items():
        path = Path(easy_vqa.__file__).with_name(name)
        path.write_text(vocabulary_of(texts[name], size), encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size:,} B")


if __name__ == "__main__":
    main()
