"""A worker whose name another process serves under is refused, and that process notices nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cutlayer.broker.errors import BrokerUnreachable, RunError, SettingsError
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import RunPhase, WorkerState, parse, serialize
from cutlayer.broker.topics import WorkerTopics
from cutlayer.server_worker.folder_lock import FolderLock
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.namesake import LIFE_S, LOOK_S, NamesakeLook
from cutlayer.simulation.virtual import VirtualNetwork
from support.brokers import running_broker
from support.processes import DIGITS_FILE, Process, script
from support.small_run import small_dataset, small_settings
from support.virtual_run import Client, Worker, committed_once, run_until_over
from support.waiting import LIMIT_S, until

STATE = WorkerTopics("w0").state


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(LinkFaults(delay_s=0.01))


def look(network: VirtualNetwork, name: str = "w0") -> NamesakeLook:
    transport = network.transport("looks")
    looking = NamesakeLook(transport, name, clock=network.clock)
    network.add("looks", looking, transport, lambda: looking.is_free)
    return looking


def state(*, is_online: bool, incarnation: int = 7, is_draining: bool = False) -> bytes:
    message = WorkerState(is_online, "w0", incarnation, bytes(32), RunPhase.TRAINING, 0, 0, "", is_draining=is_draining)
    return serialize(message)


def leave_behind(network: VirtualNetwork, **fields: bool) -> Client:
    """Retain a state of which no process is left."""
    client = Client(network)
    network.run(lambda: network.broker.next_delivery_time() is None or network.clock() > 1.0, max_virtual_s=5.0)
    client.transport.publish(STATE, state(**fields), retain=True)
    network.run(lambda: STATE in network.broker.retained)
    return client


def test_name_that_nobody_has_is_free_at_once(network: VirtualNetwork) -> None:
    looking = look(network)
    network.run(lambda: looking.is_free)
    assert network.clock() < LOOK_S + 0.1


def test_name_whose_will_has_fired_is_free_at_once(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    network.run(lambda: STATE in network.broker.retained)
    worker.kill()
    looking = look(network)
    begun_at = network.clock()
    network.run(lambda: looking.is_free)
    assert network.clock() < begun_at + LOOK_S + 0.1


@pytest.mark.parametrize("is_pooled", [False, True], ids=["alone", "of a pool"])
def test_name_of_a_worker_that_serves_is_refused_and_its_agents_notice_nothing(
    network: VirtualNetwork, is_pooled: bool
) -> None:
    lighthouse = MemoryLighthouse(network.clock) if is_pooled else None
    settings = small_settings()
    worker = Worker(network, settings, lighthouse=lighthouse)
    agent = network.add_agent("site/0", small_dataset(0, 16))
    client = Client(network)
    network.run(lambda: worker.session.window == 1)
    looking = look(network)
    with pytest.raises(RunError, match="worker w0 already serves a run on this broker") as caught:
        network.run(lambda: False, max_virtual_s=60.0)
    assert caught.value.exit_code == 4
    assert "\n  fix: stop that one, use another broker, or give this one a name of its own with --name" in str(
        caught.value
    )
    network._members.pop("looks", None)
    assert not looking.is_free
    run_until_over(network, worker, [agent])
    assert worker.counter.committed == committed_once({"site/0": 8})
    hellos = [packet for packet in client.seen if packet.topic == WorkerTopics("w0").inbox_of("site/0")]
    kinds = [type(parse(packet.payload)).__name__ for packet in hellos]
    assert kinds.count("Hello") == 1, "its lease was never in doubt"


def test_state_that_the_broker_keeps_stays_that_of_the_worker(network: VirtualNetwork) -> None:
    Worker(network, small_settings())
    network.run(lambda: STATE in network.broker.retained)
    kept: list[bool] = []
    look(network)
    with pytest.raises(RunError):
        network.run(lambda: kept.append(_is_online(network)) or False, max_virtual_s=60.0)  # type: ignore[func-returns-value]
    assert all(kept)


def _is_online(network: VirtualNetwork) -> bool:
    message = parse(network.broker.retained[STATE].payload)
    assert isinstance(message, WorkerState)
    return message.online


def test_name_of_a_process_that_died_without_its_will_is_taken_after_a_while(network: VirtualNetwork) -> None:
    leave_behind(network, is_online=True)
    looking = look(network)
    begun_at = network.clock()
    network.run(lambda: looking.is_free)
    assert begun_at + LIFE_S <= network.clock() < begun_at + LIFE_S + 1.0


@pytest.mark.parametrize("is_draining", [False, True])
def test_will_that_fires_meanwhile_frees_the_name(network: VirtualNetwork, is_draining: bool) -> None:
    client = leave_behind(network, is_online=True, is_draining=is_draining)
    looking = look(network)
    begun_at = network.clock()
    network.run(lambda: network.clock() > begun_at + 2.0)
    assert not looking.is_free
    client.transport.publish(STATE, state(is_online=False), retain=True)
    network.run(lambda: looking.is_free)
    assert network.clock() < begun_at + 3.5


def test_two_that_look_for_the_same_dead_process_do_not_take_each_other_for_it(network: VirtualNetwork) -> None:
    leave_behind(network, is_online=True)
    first, transport = look(network), network.transport("looks too")
    second = NamesakeLook(transport, "w0", clock=network.clock)
    network.add("looks too", second, transport, lambda: second.is_free)
    network.run(lambda: first.is_free and second.is_free)
    assert network.clock() > LIFE_S


def test_no_broker_is_told_as_ever(network: VirtualNetwork) -> None:
    network.broker.stop()
    look(network)
    with pytest.raises(BrokerUnreachable, match="no connection within 20 s"):
        network.run(lambda: False, max_virtual_s=60.0)


HOLD = """
import sys, time
from pathlib import Path
from cutlayer.server_worker.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_folder_of_a_living_process_is_refused_and_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(
        SettingsError, match=rf"output folder {tmp_path} is in use .*\(process {holder.pid}\)"
    ) as caught:
        FolderLock(tmp_path)
    assert "--output" in caught.value.fix


def test_folder_of_a_killed_process_is_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    lock = FolderLock(tmp_path)
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(SettingsError):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


@pytest.mark.slow
def test_second_process_is_refused_in_the_folder_and_under_the_name_and_the_first_goes_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(running_broker("amqtt")).url

        def worker(log: str, output: str, *flags: str) -> Process:
            small = ["--set", "model.options.embed_dim=16", "--set", "model.options.depth=1", "--http-port", "0"]
            words = ["start", "--run", str(DIGITS_FILE), *small, "--min-agents", "9", "--broker", url, *flags]
            arguments = [script("server-worker"), *words, "--output", str(tmp_path / output)]
            return stack.enter_context(Process(arguments, tmp_path / f"{log}.log"))

        first = worker("first", "run")
        first.wait_for("serving run")
        stores = sorted((tmp_path / "run" / "activations").iterdir())
        assert stores
        folder = worker("folder", "run", "--name", "w9")
        assert folder.exit_code() == 2
        assert f"output folder {tmp_path / 'run'} is in use by another worker (process {first.pid})" in folder.text()
        name = worker("name", "elsewhere")
        assert name.exit_code() == 4
        assert "already serves a run on this broker, in another process" in name.text()
        for refused in (folder, name):
            assert "\n  fix: " in refused.text()
            assert "Traceback" not in refused.text()
        assert first.is_running()
        assert sorted((tmp_path / "run" / "activations").iterdir()) == stores
        first.send(signal.SIGKILL)
        first.exit_code()
        again = worker("again", "run")
        again.wait_for("serving run", LIMIT_S)
        assert "gives no sign of life" not in again.text()
        agent = [script("edge-agent"), "start", "--topic", "a", "--data", "demo:digits", "--broker", url]
        joined = stack.enter_context(Process(agent, tmp_path / "agent.log"))
        until(lambda: "serves this agent" in joined.text(), "a lease")
