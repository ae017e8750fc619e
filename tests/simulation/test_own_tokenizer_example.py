"""examples/own_tokenizer, carried out as its page says: data, a worker, two sites, and what they take home."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.brokers import running_broker
from support.processes import Process

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_tokenizer"
LONG_S = 400.0
"""A whole run on two cores that others use, too."""


def commands() -> list[str]:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def start(line: str, folder: Path, log: str, url: str) -> Process:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
    words = ["sh", "-c", f"cd {shlex.quote(str(folder))} && exec {line}"]
    return Process(words, folder / log, PATH=path, CUTLAYER_BROKER=url, OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.mosquitto
def test_the_example_leads_from_scans_to_sites_that_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("scans", "runs", "__pycache__", "*.safetensors"))
    install, make, broker, worker_line, first, second, export, *predictions = commands()
    assert install.startswith("pip install")
    assert broker == "cutlayer broker start"
    with ExitStack() as stack:
        url = stack.enter_context(running_broker("mosquitto")).url

        def run(line: str, log: str) -> Process:
            return stack.enter_context(start(line, folder, log, url))

        def finished(line: str, log: str) -> str:
            process = run(line, log)
            assert process.exit_code(LONG_S) == 0, process.text()
            return process.text()

        finished(make, "made.log")
        worker = run(worker_line + " --http-port 0", "worker.log")
        agents = [run(first, "a.log"), run(second, "b.log")]
        assert [process.exit_code(LONG_S) for process in [*agents, worker]] == [0, 0, 0], worker.text()
        finished(export, "export.log")
        assert len(predictions) == 2
        for line in predictions:
            found = re.search(r"(\d+) of 200 scans are read right", finished(line, "predicted.log"))
            assert found is not None
            assert int(found[1]) > 150
