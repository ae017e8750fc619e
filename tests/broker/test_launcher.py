from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cutlayer.broker import launcher
from cutlayer.broker.broker_options import BrokerOptions, read_passwords
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.launcher import launch_broker
from cutlayer.broker.transport import Received
from support.brokers import BROKER_KINDS, mosquitto_test, mqtt_client, running_broker
from support.certificates import make_certificates
from support.waiting import until


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_a_broker_answers_when_it_is_launched_and_is_gone_when_it_is_stopped(kind: Any) -> None:
    with running_broker(kind) as broker:
        assert broker.kind == kind
        assert broker.is_running()
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
        with mqtt_client(broker.url, "first") as client:
            client.connect(None, "x")
            client.transport.publish("x", b"1")
            assert client.next(Received).payload == b"1"
        folder = broker.log_file.parent
    assert not broker.is_running()
    assert not is_alive(broker.pid)
    assert broker.wait() is not None
    assert not folder.exists()
    broker.stop()


def test_auto_takes_mosquitto_where_it_is_and_amqtt_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_mosquitto", lambda: None)
    with running_broker("auto") as broker:
        assert broker.kind == "amqtt"


@mosquitto_test
def test_auto_prefers_mosquitto() -> None:
    with running_broker("auto") as broker:
        assert broker.kind == "mosquitto"


def test_a_missing_broker_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_mosquitto", lambda: None)
    with pytest.raises(SettingsError, match="apt install mosquitto"):
        launch_broker(BrokerOptions(kind="mosquitto"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'cutlayer\[broker\]'"):
        launch_broker(BrokerOptions(kind="amqtt"))
    with pytest.raises(SettingsError, match="no MQTT broker is installed"):
        launch_broker(BrokerOptions(kind="auto"))


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_a_port_in_use_is_named_with_a_fix(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}") as refused:
            running_broker(kind, port=port)
    assert "--port 0" in refused.value.fix


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_a_port_that_is_taken_in_the_last_moment_gives_the_brokers_own_words(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(launcher, "_free_port", lambda *_: port)
        with pytest.raises(SettingsError, match=r"(?i)address already in use") as refused:
            running_broker(kind, port=port)
    assert str(port) in refused.value.problem


@mosquitto_test
def test_a_broker_that_refuses_its_files_says_why(tmp_path: Path) -> None:
    nonsense = tmp_path / "acl"
    nonsense.write_text("this is no acl\n")
    with pytest.raises(SettingsError, match="mosquitto ended at once"):
        running_broker("mosquitto", acl_file=nonsense)


@mosquitto_test
def test_no_secret_is_left_on_the_disk_while_mosquitto_runs(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    users = tmp_path / "users"
    users.write_text("alice:hunter2\n")
    with running_broker(
        "mosquitto", certificate=files.server_certificate, key=files.server_key, password_file=users
    ) as broker:
        assert [path.name for path in broker.log_file.parent.iterdir()] == ["broker.log"]


@mosquitto_test
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_mosquitto_does_not_run_as_root() -> None:
    with running_broker("mosquitto") as broker:
        assert Path(f"/proc/{broker.pid}").stat().st_uid != 0


@pytest.mark.parametrize("kind", BROKER_KINDS)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children only on Linux")
def test_a_broker_does_not_outlive_a_parent_that_is_killed(kind: Any) -> None:
    program = (
        "import time\n"
        "from cutlayer.broker.broker_options import BrokerOptions\n"
        "from cutlayer.broker.launcher import launch_broker\n"
        f"print(launch_broker(BrokerOptions(kind={kind!r})).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    # A folder of its own, since a killed parent tidies nothing up; open to Mosquitto's user.
    folder = tempfile.mkdtemp()
    Path(folder).chmod(0o755)
    environment = {**os.environ, "TMPDIR": folder}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(pid), "end of the broker")
    shutil.rmtree(folder)


def test_the_log_goes_where_it_is_asked_to_and_stays(tmp_path: Path) -> None:
    log_file = tmp_path / "broker.log"
    with running_broker("amqtt", log_file=log_file) as broker:
        assert broker.log_file == log_file
    assert log_file.exists()
    with pytest.raises(SettingsError, match="log_file"):
        running_broker("amqtt", log_file=tmp_path / "nowhere" / "broker.log")


@pytest.mark.parametrize(
    ("printed", "last"),
    [
        ("1795455121: Error: no\n\n", "Error: no"),
        ("one\ntwo: three\n", "two: three"),
        ("", ""),
    ],
)
def test_the_last_log_line_comes_without_its_time_stamp(printed: str, last: str, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    with running_broker("amqtt", log_file=log_file) as broker:
        log_file.write_text(printed)
        assert broker.last_log_line() == last


def test_amqtt_refuses_what_it_has_no_use_for(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite #\n")
    with pytest.raises(SettingsError, match="acl_file"):
        running_broker("amqtt", acl_file=acl)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "emqx"}, "emqx"),
        ({"port": 70_000}, "70000"),
        ({"max_packet_bytes": 1}, "max_packet_bytes"),
        ({"certificate": Path("x")}, "key"),
        ({"client_ca": Path("x")}, "TLS"),
        ({"acl_file": Path("/nowhere/acl")}, "/nowhere/acl"),
    ],
)
def test_options_that_cannot_work_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        BrokerOptions(**values)
    assert named in str(refused.value)


@pytest.mark.parametrize("text", ["alice\n", "alice:\n", ":hunter2\n", "# nobody\n\n", ""])
def test_a_password_file_that_says_nothing_useful_is_refused_without_showing_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_passwords(path)
    assert "hunter2" not in str(refused.value)
