from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import BrokerUnreachable, CheckpointError, SettingsError
from cutlayer.server_worker.namesake import NamesakeLook
from cutlayer.server_worker.program import Program, write_json
from support.processes import DIGITS_FILE, SMALL_DIGITS
from support.waiting import LIMIT_S


def program(
    tmp_path: Path,
    *,
    output: Path | None = None,
    resume: bool = False,
    http_port: int = 0,
    name: str = "w0",
    **overrides: object,
) -> Program:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Program(
        DIGITS_FILE,
        SMALL_DIGITS | dotted,
        name=name,
        broker=BrokerSettings(url="mqtt://127.0.0.1:1"),
        output=output or tmp_path / "run",
        resume=resume,
        pool=None,
        http_host="127.0.0.1",
        http_port=http_port,
        connect_timeout_s=0.1,
    )


def test_nothing_to_resume_from_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run/checkpoints: there is no checkpoint"):
        program(tmp_path, resume=True)


def test_port_that_is_taken_is_told_before_the_run(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match=r"HTTP port \d+ of 127.0.0.1 cannot be used"):
            program(tmp_path, http_port=taken.getsockname()[1])


def test_output_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match=r"output folder .*/file/run cannot be written") as caught:
        program(tmp_path, output=tmp_path / "file" / "run")
    assert "--output" in caught.value.fix


def test_worker_name_that_is_no_topic_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="worker name 'a/b'"):
        program(tmp_path, name="a/b")


def test_no_broker_leaves_no_run_json_and_no_open_port(tmp_path: Path) -> None:
    worker = program(tmp_path)
    port = worker._http.port
    with pytest.raises(BrokerUnreachable):
        worker.run(lambda: False)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_health_tells_what_the_worker_does(tmp_path: Path) -> None:
    worker = program(tmp_path)
    is_healthy, facts = worker._health()
    worker._http.close()
    assert not is_healthy
    assert facts == {
        "connected": False,
        "run": worker.session.manifest.run_id,
        "phase": "waiting",
        "agents": 0,
        "window": 0,
    }
    json.dumps(facts)


def test_the_port_serves_the_worker_metrics_and_those_of_its_agents(tmp_path: Path) -> None:
    worker = program(tmp_path)
    texts = {}
    for path in ("/metrics", "/metrics/clients?top=3"):
        with urllib.request.urlopen(f"http://127.0.0.1:{worker._http.port}{path}", timeout=LIMIT_S) as answer:
            texts[path] = answer.read().decode()
    worker._http.close()
    budget = next(line for line in texts["/metrics"].splitlines() if line.startswith("cutlayer_broker_budget_bytes"))
    assert float(budget.split()[1]) > 0
    assert re.search(r"^cutlayer_agent_budget_bytes [1-9]", texts["/metrics"], re.MULTILINE)
    assert 'cutlayer_agent_steps_total{agent="other"} 0.0' in texts["/metrics/clients?top=3"]


def test_run_json_says_what_was_tuned_and_sent(tmp_path: Path) -> None:
    worker = program(tmp_path, tuning__mode="frozen")
    worker._http.close()
    content = json.loads(json.dumps(worker._summary()))
    assert content["disclosure"]["tuned"]["mode"] == content["manifest"]["tuning"]["mode"] == "frozen"
    assert content["disclosure"]["tuned"]["trained_parameters"] == content["federated_averaging"]["parameters"]
    assert content["disclosure"]["server_can_infer"]


def test_json_is_written_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write_json(path, {"first": 1})
    write_json(path, {"second": 2})
    assert json.loads(path.read_text()) == {"second": 2}
    assert [each.name for each in path.parent.iterdir()] == ["run.json"]


@pytest.fixture
def name_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program get as far as its run, which has no broker."""
    monkeypatch.setattr(NamesakeLook, "run", lambda *_: None)


@pytest.mark.usefixtures("name_is_free")
def test_record_of_the_run_before_is_kept_under_its_name(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "run.json").write_text(json.dumps({"run_id": "digits-0123abcd", "windows": 3}))
    with pytest.raises(BrokerUnreachable):
        program(tmp_path).run(lambda: False)
    assert not (output / "run.json").exists()
    assert json.loads((output / "run-digits-0123abcd.json").read_text())["windows"] == 3


def test_worker_that_is_refused_leaves_the_record_where_it_is(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "run.json").write_text(json.dumps({"run_id": "digits-0123abcd"}))
    with pytest.raises(BrokerUnreachable):
        program(tmp_path).run(lambda: False)
    assert [path.name for path in output.glob("*.json")] == ["run.json"]


def test_folder_is_held_until_the_record_is_written_and_free_afterwards(tmp_path: Path) -> None:
    first = program(tmp_path)
    with pytest.raises(SettingsError, match="is in use by another worker"):
        program(tmp_path, name="w1")
    with pytest.raises(BrokerUnreachable):
        first.run(lambda: False)
    program(tmp_path, name="w1")._http.close()


@pytest.mark.usefixtures("name_is_free")
@pytest.mark.parametrize("content", ["", "[]", "{", '{"run_id": "../../elsewhere"}', '{"run_id": 7}'])
def test_file_that_is_no_record_stays_where_it_is(tmp_path: Path, content: str) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "run.json").write_text(content)
    with pytest.raises(BrokerUnreachable):
        program(tmp_path).run(lambda: False)
    assert [path.name for path in sorted(output.glob("*.json"))] == ["run.json"]
