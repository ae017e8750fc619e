"""A server worker that takes long: `server-worker start` whose engine computes nothing, and sleeps for each pass."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from unittest.mock import patch

from cutlayer.server_worker import program
from cutlayer.server_worker.cli import app
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.passes import Forwarded, ForwardItem

__all__ = ["SlowEngine", "main"]

PASS_S = 0.05


class SlowEngine(CountingEngine):
    """A counting engine that sleeps for each forward pass."""

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Sleep, then answer with zeros (b, C)."""
        time.sleep(PASS_S)
        return super().forward(items, candidate)


def main() -> None:
    """Run `server-worker start` with it."""
    with patch.object(program, "make_engine", lambda settings, _built: SlowEngine(settings.task.num_outputs)):
        app(["start", *sys.argv[1:]])


if __name__ == "__main__":
    main()
