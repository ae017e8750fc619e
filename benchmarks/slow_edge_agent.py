"""An edge agent that takes long: `edge-agent start` that sleeps for each microbatch before and after the worker's part.

The first argument is the seconds that a microbatch takes it; the rest are those of `edge-agent start`.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest.mock import patch

from cutlayer.edge_agent.cli import app
from cutlayer.edge_agent.workbench import Workbench


def main() -> None:
    """Run `edge-agent start` with a workbench that sleeps."""
    half_s = float(sys.argv[1]) / 2
    next_microbatch, outputs = Workbench.next, Workbench.outputs

    def slow_next(bench: Workbench, *arguments: Any, **options: Any) -> Any:
        microbatch = next_microbatch(bench, *arguments, **options)
        if microbatch is not None:
            time.sleep(half_s)
        return microbatch

    def slow_outputs(bench: Workbench, *arguments: Any) -> None:
        time.sleep(half_s)
        outputs(bench, *arguments)

    with patch.object(Workbench, "next", slow_next), patch.object(Workbench, "outputs", slow_outputs):
        app(["start", *sys.argv[2:]])


if __name__ == "__main__":
    main()
