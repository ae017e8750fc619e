"""Benchmarks are no package that is installed: they are found from the repository's root, as `python -m` does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
