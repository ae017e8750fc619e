"""The demo with a real broker, and with programs in the places of worker and agents that only look like them."""

import io
import json
import os
import signal
import stat
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import cutlayer.simulation.demo as demo_module
from cutlayer.broker.errors import BrokerUnreachable, SettingsError
from cutlayer.simulation import demo_settings
from cutlayer.simulation.demo import run_demo
from cutlayer.simulation.demo_processes import ProcessDied
from cutlayer.simulation.demo_settings import DemoSettings
from support.synthetic_run import synthetic_run
from support.waiting import until

AGENT_UNTIL_THE_END = "while not ended(): time.sleep(0.02)"
WORKER_THAT_ENDS = "wait_for(3); time.sleep(0.5); write_run_json()"
SLEEPS = "time.sleep(600)"


class Rehearsal:
    """A demo whose worker and agents run given lines of Python."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output = folder / "runs"
        self.printed = io.StringIO()
        self._folder = folder
        (folder / "pids").mkdir()
        self._run_file = folder / "run.toml"
        self._run_file.touch()
        (folder / "finished.json").write_text(json.dumps(synthetic_run(num_agents=2)), encoding="utf-8")
        monkeypatch.setattr(demo_settings, "console_script", lambda name: folder / name)

    def cast(self, *, worker: str, agent: str) -> None:
        self._write("server-worker", worker)
        self._write("edge-agent", agent)

    def run(self, **settings: Any) -> Path:
        chosen: dict[str, Any] = {"agents": 2, "run_file": self._run_file, "output": self.output} | settings
        return run_demo(DemoSettings(**chosen), Console(file=self.printed, width=100), live=False)

    def pids(self) -> list[int]:
        return [int(path.name) for path in (self._folder / "pids").iterdir()]

    def _write(self, name: str, body: str) -> None:
        pids = self._folder / "pids"
        path = self._folder / name
        path.write_text(
            textwrap.dedent(
                f"""\
                #!{sys.executable}
                import os, shutil, sys, time
                from pathlib import Path
                (Path({str(pids)!r}) / str(os.getpid())).touch()
                arguments = sys.argv
                ended_file = Path({str(self._folder / "ended")!r})
                ended = ended_file.exists
                def wait_for(number):
                    while len(os.listdir({str(pids)!r})) < number:
                        time.sleep(0.02)
                def write_run_json():
                    shutil.copy({str(self._folder / "finished.json")!r},
                                Path(arguments[arguments.index("--output") + 1]) / "run.json")
                    ended_file.touch()
                print("started", *arguments[1:], flush=True)
                """
            )
            + body
            + "\n",
            encoding="utf-8",
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    rehearsal = Rehearsal(tmp_path, monkeypatch)
    yield rehearsal
    assert not [pid for pid in rehearsal.pids() if Path(f"/proc/{pid}").exists()], "a process was left behind"


def ready(rehearsal: Rehearsal, num_processes: int) -> None:
    until(lambda: len(rehearsal.pids()) >= num_processes, "such processes")


def children_of(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text(encoding="utf-8").split()]


def test_run_ends_with_record_report_and_summary(rehearsal: Rehearsal) -> None:
    rehearsal.cast(worker=WORKER_THAT_ENDS, agent=AGENT_UNTIL_THE_END)
    path = rehearsal.run()
    assert path == rehearsal.output / "demo" / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    broker = run["processes"][-1]
    assert (broker["role"], broker["id"]) == ("broker", "amqtt")
    assert 10_000_000 < broker["peak_rss_bytes"] < 200_000_000
    assert broker["cpu_s"] > 0
    assert run["demo"]["agents"] == 2
    assert run["demo"]["broker"]["kind"] == "amqtt"
    assert run["demo"]["commands"]["agent clinic/01"].startswith("edge-agent start --topic clinic/01 --broker mqtt://")
    assert {key: run[key] for key in ("bytes", "accuracy")} == {
        key: synthetic_run(num_agents=2)[key] for key in ("bytes", "accuracy")
    }
    assert "amqtt" in (path.parent / "report.html").read_text(encoding="utf-8")
    assert sorted(file.name for file in (path.parent / "logs").iterdir()) == [
        "agent-clinic-00.log",
        "agent-clinic-01.log",
        "broker.log",
        "worker-0.log",
    ]
    printed = rehearsal.printed.getvalue()
    for text in ("starting the broker", "waiting for the worker", "all modalities", "Federated averaging"):
        assert text in printed


def test_agent_that_dies_stops_everything_and_is_shown(rehearsal: Rehearsal) -> None:
    rehearsal.cast(
        worker=SLEEPS, agent="wait_for(3); sys.exit('no speech synthesizer') if '1/2' in arguments else time.sleep(600)"
    )
    with pytest.raises(ProcessDied) as caught:
        rehearsal.run()
    assert (caught.value.name, caught.value.status) == ("agent clinic/01", 1)
    assert caught.value.last_lines[-1] == "no speech synthesizer"
    assert len(rehearsal.pids()) == 3


def test_worker_that_ends_without_a_record_is_shown(rehearsal: Rehearsal) -> None:
    rehearsal.cast(worker="print('nothing to do')", agent="")
    with pytest.raises(ProcessDied, match="worker-0 ended with exit code 0 before the run had ended") as caught:
        rehearsal.run()
    assert caught.value.last_lines[-1] == "nothing to do"


def test_broker_that_dies_is_shown(rehearsal: Rehearsal) -> None:
    rehearsal.cast(worker=SLEEPS, agent=SLEEPS)

    def kill_broker() -> None:
        ready(rehearsal, 3)
        for pid in children_of(os.getpid()):
            if "amqtt" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill_broker).start()
    with pytest.raises(ProcessDied, match=r"broker \(amqtt\) was killed by SIGKILL"):
        rehearsal.run()


@pytest.mark.parametrize(
    ("number", "ending", "status"), [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)]
)
def test_signal_ends_everything_in_order(
    rehearsal: Rehearsal, number: signal.Signals, ending: type[BaseException], status: int | None
) -> None:
    rehearsal.cast(worker=SLEEPS, agent=SLEEPS)
    before = signal.getsignal(number)

    def press() -> None:
        ready(rehearsal, 3)
        os.kill(os.getpid(), number)

    threading.Thread(target=press).start()
    with pytest.raises(ending) as caught:
        rehearsal.run()
    assert getattr(caught.value, "code", None) == status
    assert "stopped; the logs are in" in rehearsal.printed.getvalue()
    assert signal.getsignal(number) is before


def test_agent_that_outstays_the_run_is_stopped_and_named(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "AGENTS_END_TIMEOUT_S", 0.5)
    rehearsal.cast(worker=WORKER_THAT_ENDS, agent=SLEEPS)
    assert rehearsal.run().is_file()
    assert "now stopped: agent clinic/00, agent clinic/01" in rehearsal.printed.getvalue()


def test_second_demo_gets_a_folder_of_its_own(rehearsal: Rehearsal) -> None:
    rehearsal.cast(worker=WORKER_THAT_ENDS, agent=AGENT_UNTIL_THE_END)
    (rehearsal.output / "demo").mkdir(parents=True)
    assert rehearsal.run().parent.name == "demo-2"
    with pytest.raises(SettingsError, match="--name demo"):
        rehearsal.run(name="demo")


def test_broker_that_does_not_answer_is_reported_before_anything_starts(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "CONNECT_TIMEOUT_S", 0.5)
    rehearsal.cast(worker=SLEEPS, agent=SLEEPS)
    with pytest.raises(BrokerUnreachable, match=r"no broker at mqtt://127\.0\.0\.1:9"):
        rehearsal.run(broker="mqtt://127.0.0.1:9")
    assert rehearsal.pids() == []
