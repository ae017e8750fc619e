"""An agent is light: NumPy and no more, in its imports and in a whole run."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import cutlayer.edge_agent
from support.brokers import running_broker
from support.processes import Process, counting_worker, digits_settings

HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "pandas", "matplotlib")
MAX_PEAK_BYTES = 120_000_000


def modules_after(program: str) -> set[str]:
    """Run a program in a Python of its own; return the top-level modules that it has loaded."""
    report = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program + report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_no_module_of_the_agent_loads_torch() -> None:
    names = [module.name for module in pkgutil.walk_packages(cutlayer.edge_agent.__path__, "cutlayer.edge_agent.")]
    assert len(names) > 10
    light = [name for name in names if not name.startswith("cutlayer.edge_agent.torch_")]
    assert len(light) == len(names) - 2
    assert modules_after("import " + ", ".join(light)).isdisjoint(HEAVY)


def test_command_line_starts_without_numpy() -> None:
    help_then_report = (
        "import sys; sys.argv[1:] = ['start', '--help']\n"
        "import contextlib, io, cutlayer.edge_agent.cli as cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): cli.main()\n"
        "0"
    )
    loaded = modules_after(help_then_report)
    assert loaded.isdisjoint({*HEAVY, "numpy", "paho", "msgpack", "zstandard"})


WHOLE_RUN = """
import sys
from cutlayer.edge_agent import cli
try:
    cli.main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules}
    print("loaded:", " ".join(sorted(loaded)), flush=True)
"""


def test_whole_run_loads_no_torch_and_stays_small(tmp_path: Path) -> None:
    flags = ["--topic", "clinic/07", "--data", "demo:digits", "--shard", "0/4"]
    with (
        running_broker("amqtt") as broker,
        counting_worker(broker.url, digits_settings(run__epochs=1)) as worker,
        Process(
            [sys.executable, "-c", WHOLE_RUN, "start", *flags, "--broker", broker.url], tmp_path / "agent.log"
        ) as agent,
    ):
        assert agent.exit_code(120.0) == 0, agent.text()
        worker.join()
        loaded = agent.text().rpartition("loaded: ")[2].split()
        assert "numpy" in loaded
        assert set(loaded).isdisjoint(HEAVY)
        [(_, telemetry)] = worker.book.latest()
        assert telemetry.final
        assert 20_000_000 < telemetry.peak_rss_bytes < MAX_PEAK_BYTES
