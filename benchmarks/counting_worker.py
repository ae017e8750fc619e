"""A server worker that computes nothing: what is left is the transport, the codecs and the agents."""

from __future__ import annotations

import sys
from unittest.mock import patch

from cutlayer.server_worker import program
from cutlayer.server_worker.cli import app
from cutlayer.server_worker.counting_engine import CountingEngine


def main() -> None:
    """Run `server-worker start` with the engine's twin in its place."""
    with patch.object(program, "make_engine", lambda settings, _built: CountingEngine(settings.task.num_outputs)):
        app(["start", *sys.argv[1:]])


if __name__ == "__main__":
    main()
