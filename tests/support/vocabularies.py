"""A small vocabulary, made as a user makes one, and changed versions of it."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutlayer.server_worker.vocabulary_files import make_vocabulary

__all__ = ["CORPUS", "edited", "vocabulary"]

CORPUS = "the patient has a cough\nthe patient sleeps\nno cough at night\n"


@functools.cache
def vocabulary(size: int = 300) -> bytes:
    """Return a `tokenizer.json` of the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.txt"
        path.write_text(CORPUS, encoding="utf-8")
        return make_vocabulary([path], size)


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the vocabulary as `edit` changes it."""
    content: dict[str, Any] = json.loads(vocabulary())
    edit(content)
    return json.dumps(content).encode()
