"""`edge-agent start --data` with a folder of one's own: what a person reads when it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cutlayer.broker.launcher import BrokerProcess
from cutlayer.broker.messages import RunManifest, serialize
from cutlayer.broker.tasks import ClassificationSpec
from cutlayer.broker.topics import RUN
from support.brokers import mqtt_client, running_broker
from support.processes import Process, script
from support.small_side import served, small_manifest
from support.user_data import AUDIO, CLASSES, IMAGE, site


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    """A broker with a run of images and sounds announced on it, and a worker that says that it serves it."""
    manifest = small_manifest().model_copy(
        update={"modalities": {"image": IMAGE, "audio": AUDIO}, "task": ClassificationSpec(classes=CLASSES)}
    )
    with running_broker("amqtt") as running, mqtt_client(running.url, "starter") as starter:
        starter.connect()
        starter.transport.publish(RUN, serialize(RunManifest(manifest.to_bytes())), retain=True)
        starter.transport.publish(*served(manifest), retain=True)
        starter.delivered()
        yield running


def agent(broker: BrokerProcess, log: Path, data: str, *flags: str) -> Process:
    words = [script("edge-agent"), "start", "--topic", "clinic/07", "--data", data, "--broker", broker.url, *flags]
    return Process(words, log)


def test_folder_that_fits_waits_for_the_runs_weights(broker: BrokerProcess, tmp_path: Path) -> None:
    site(tmp_path / "site", without_sound=[0, 1])
    (tmp_path / "site" / "images" / "4.png").unlink()
    with agent(broker, tmp_path / "log", str(tmp_path / "site"), "--max-unreadable", "0.1") as running:
        running.wait_for("16 samples for training, 4 for testing, 2 lack audio, 1 lack image, 1 of 38 files unreadable")
        assert f"cannot read {tmp_path / 'site' / 'images' / '4.png'}: No such file or directory" in running.text()
        running.wait_for("16 own samples")


def damaged_label(folder: Path) -> str:
    table = folder / "data.csv"
    table.write_text(table.read_text().replace("images/6.png,sounds/6.wav,cat", "images/6.png,sounds/6.wav,cta"))
    return f"{table}, line 8, column 'label': 'cta' is none of the run's classes, which are 'cat', 'dog'"


def many_unreadable(folder: Path) -> str:
    for row in range(7):
        (folder / "images" / f"{row}.png").write_bytes(b"")
    return "7 of 40 files cannot be read, more than 0.01 of them:"


@pytest.mark.parametrize("damage", [damaged_label, many_unreadable])
def test_folder_that_does_not_fit_the_run_ends_the_agent_with_one_message(
    broker: BrokerProcess, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    folder = site(tmp_path / "site")
    text = damage(folder)
    with agent(broker, tmp_path / "log", str(folder)) as running:
        assert running.exit_code() == 2
        assert f"edge-agent: {text}" in running.text()
        assert "\n  fix: " in running.text()
        assert "Traceback" not in running.text()


@pytest.mark.parametrize(
    ("data", "flags", "text"),
    [
        ("./no/such/folder", (), "--data ./no/such/folder: there is no such file or folder"),
        ("no_such_module:make", (), "--data no_such_module:make: No module named 'no_such_module'"),
        ("{site}", ("--data-option", "image=scan_path"), "--data-option image=scan_path: "),
        ("{site}", ("--data-option", "fit=squash"), "--data-option fit=squash: "),
    ],
)
def test_wrong_flag_shows_before_anything_is_connected(
    tmp_path: Path, data: str, flags: tuple[str, ...], text: str
) -> None:
    site(tmp_path / "site", 2)
    words = [script("edge-agent"), "start", "--topic", "clinic/07", "--broker", "mqtt://127.0.0.1:1", "--data"]
    with Process([*words, data.format(site=tmp_path / "site"), *flags], tmp_path / "log") as running:
        assert running.exit_code() == 2
        assert f"edge-agent: {text}" in running.text()
        assert "\n  fix: " in running.text()
        assert "Traceback" not in running.text()
