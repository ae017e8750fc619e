from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cutlayer.broker import broker_cli
from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.errors import NetworkError, SettingsError
from cutlayer.broker.launcher import BrokerProcess, launch_broker
from cutlayer.broker.transport import Received
from support.brokers import mqtt_client
from support.waiting import LIMIT_S

PROGRAM = (
    "from cutlayer.broker.broker_cli import app; from cutlayer.broker.command_line import run_app; "
    "run_app(app, name='broker')"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_start_prints_how_to_connect_and_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, "start", "--kind", "amqtt", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready, worker, agent = (process.stdout.readline() for _ in range(3))
        found = re.search(r"amqtt is ready at (mqtt://127\.0\.0\.1:\d+)", ready)
        assert found
        assert f"server-worker start --run examples/digits.toml --broker {found[1]}" in worker
        assert f"edge-agent start --topic clinic/07 --data demo:digits --broker {found[1]}" in agent
        with mqtt_client(found[1], "client") as client:
            client.connect(None, "x")
            client.transport.publish("x", b"1")
            client.next(Received)
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0
        assert errors == ""


def test_a_broker_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch_and_kill(options: BrokerOptions) -> BrokerProcess:
        broker = launch_broker(options)
        broker._process.kill()
        return broker

    monkeypatch.setattr("cutlayer.broker.broker_cli.launch_broker", launch_and_kill)
    result = CliRunner().invoke(broker_cli.app, ["start", "--kind", "amqtt", "--port", "0"])
    assert isinstance(result.exception, NetworkError)
    assert "amqtt ended by itself" in str(result.exception)


def test_wrong_options_are_settings_errors(tmp_path: Path) -> None:
    result = CliRunner().invoke(broker_cli.app, ["start", "--password-file", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, SettingsError)
    result = CliRunner().invoke(broker_cli.app, ["start", "--kind", "emqx"])
    assert isinstance(result.exception, SettingsError)


def test_an_open_door_is_warned_of_before_it_opens(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:hunter2\n")
    wide = "192.0.2.1"  # of a range for documentation: nothing listens there
    assert broker_cli.warnings(BrokerOptions()) == []
    both = broker_cli.warnings(BrokerOptions(host=wide))
    assert len(both) == 2
    assert "--password-file" in both[0]
    assert "--tls-cert" in both[1]
    assert len(broker_cli.warnings(BrokerOptions(host=wide, password_file=users))) == 1


def test_the_help_shows_an_example() -> None:
    result = CliRunner().invoke(broker_cli.app, ["start", "--help"])
    assert result.exit_code == 0
    assert "cutlayer broker start" in result.output
