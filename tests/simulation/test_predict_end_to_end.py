"""From a training to predictions, in real processes over Mosquitto: two workers serve, and one of them is killed."""

from __future__ import annotations

import csv
import json
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from cutlayer.broker.manifest import ImageSpec
from cutlayer.edge_agent.data_images import ImageReader
from cutlayer.server_worker.exported_model import load
from cutlayer.server_worker.exporting import export_run
from support.brokers import running_broker
from support.processes import Process, script
from support.user_data import CLASSES, site, write_table, write_truncated_image

SPEC = ImageSpec(height=8, width=8, channels=3, patch=4)
SETTINGS = """
[run]
name = "pets"
epochs = 2
microbatch_samples = 8

[model]
name = "vit_tiny_patch16_224"
options = { img_size = 8, patch_size = 4, in_chans = 3, embed_dim = 16, depth = 1, num_heads = 2, weight_init = "jax" }

[modalities.image]
kind = "image"
height = 8
width = 8
channels = 3
patch = 4

[task]
classes = ["cat", "dog"]

[codecs]
activations = "identity"
outputs = "identity"

[window]
samples = 8
"""
LONG_S = 400.0


@pytest.mark.slow
@pytest.mark.mosquitto
def test_a_trained_model_is_served_and_predicts_while_a_worker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "pets.toml").write_text(SETTINGS)
    site(tmp_path / "site", 200)
    names = [f"images/{row % 40}.png" for row in range(1_000)]
    names[5] = "images/broken.png"
    write_truncated_image(tmp_path / "site/images/broken.png")
    write_table(tmp_path / "site/new.csv", ["image", "id"], [[name, f"pet-{row}"] for row, name in enumerate(names)])
    out = tmp_path / "runs"
    with ExitStack() as stack:
        url = stack.enter_context(running_broker("mosquitto")).url

        def run(log: str, *words: str) -> Process:
            arguments = [script(words[0]), *words[1:], "--broker", url]
            return stack.enter_context(Process(arguments, tmp_path / log, OMP_NUM_THREADS="1", COLUMNS="200"))

        start = ["--run", str(tmp_path / "pets.toml"), "--http-port", "0"]
        worker = run("worker.log", "server-worker", "start", *start, "--output", str(out))
        agent = run("agent.log", "edge-agent", "start", "--topic", "site/0", "--data", str(tmp_path / "site"))
        assert [agent.exit_code(LONG_S), worker.exit_code(LONG_S)] == [0, 0], worker.text()
        record = (out / "run.json").read_bytes()
        checkpoints = sorted(path.name for path in (out / "checkpoints").iterdir())

        servers = [
            run(f"{name}.log", "server-worker", "serve", *start, "--from", str(out), "--name", name) for name in "ab"
        ]
        for server in servers:
            server.wait_for("serving run pets-", LONG_S)
        visit = ["--topic", "site/0", "--data"]
        evaluated = run(
            "evaluate.log", "edge-agent", "evaluate", *visit, str(tmp_path / "site"), "--json", str(tmp_path / "m.json")
        )
        assert evaluated.exit_code(LONG_S) == 0, evaluated.text()
        assert "accuracy" in evaluated.text()

        predicted = run(
            "predict.log",
            "edge-agent",
            "predict",
            *visit,
            str(tmp_path / "site/new.csv"),
            "--output",
            str(tmp_path / "out.csv"),
        )
        predicted.wait_for("worker b serves this agent", LONG_S)
        servers[1].send(signal.SIGKILL)
        assert predicted.exit_code(LONG_S) == 0, predicted.text()
        assert "1,000 rows, 1 of them empty" in predicted.text()
        assert "cannot read" in predicted.text()
        servers[0].send(signal.SIGTERM)
        assert servers[0].exit_code(LONG_S) == 0, servers[0].text()

    export_run(tmp_path / "pets.toml", {}, out, None, with_onnx=False)
    assert (out / "run.json").read_bytes() == record
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == checkpoints

    found = json.loads((tmp_path / "m.json").read_text())
    assert found["given"]["joint"]["samples"] == 40
    assert found["run_id"] == json.loads(record)["run_id"]
    # What the run's own last evaluation has found on the same samples.
    assert found["given"]["joint"]["metrics"]["accuracy"] == json.loads(record)["metrics"]["joint"]["accuracy"]

    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 1_001)]
    assert [row["id"] for row in rows] == [f"pet-{number}" for number in range(1_000)]
    assert rows.pop(5)["predicted"] == ""
    reader = ImageReader(SPEC, "crop")
    images = np.stack([reader.read(tmp_path / "site" / name) for place, name in enumerate(names) if place != 5])
    with torch.no_grad():
        shares_BC = load(out / "model").predict({"image": torch.from_numpy(images)}).numpy()
    found_BC = np.array([[float(row[f"probability {name}"]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(found_BC, shares_BC, atol=1e-4)
