"""The services for real: Compose and podman, the project's own images, agents that train, Prometheus that scrapes.

What this cannot show is in docs/compose.md: no registry is reachable where it runs, so the base image and those of
Mosquitto, Prometheus and Grafana are stand-ins (tests/compose/stand_ins).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.broker.errors import NotAuthorized
from support.brokers import mqtt_client
from support.compose import UP, ComposeProject, configuration
from support.podman import PROJECT, Podman, missing, own_podman
from support.waiting import LIMIT_S, until

STAND_INS = PROJECT / "tests" / "compose" / "stand_ins"
NUM_SAMPLES = 2874
"""Of demo:digits with its defaults, all shards together: 1,437 scans for training, two views of each."""
SHORT = {
    "CUTLAYER_WORKER_FLAGS": "--epochs 1 --set telemetry_s=0.5",
    "CUTLAYER_AGENT_FLAGS": "--data-option test_views=1",
}
"""Variables of the files that make a run short."""
KEEP = ("--no-recreate",)
"""Podman 4.3 gives Compose a network's name for its id, so that each `up` takes running containers for outdated."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    if reason := missing():
        if os.environ.get("CUTLAYER_SKIP_NOTHING"):
            pytest.fail(f"podman cannot be run and nothing may be skipped here: {reason}")
        pytest.skip(f"no podman to run containers with: {reason}")
    services = configuration()["services"]
    started_s = time.monotonic()
    with own_podman(f"docker.io/library/{services['server_worker']['build']['args']['BASE']}") as (podman, wheels):
        print(f"base image and wheels: {time.monotonic() - started_s:.0f} s")
        builds = [
            podman.build(services[name]["image"], STAND_INS, "--target", name)
            for name in ("broker", "prometheus", "grafana")
        ]
        # Their only source of packages is a folder of wheels on this machine's loopback interface.
        arguments = ["--network=host", "--build-arg=PIP_NO_INDEX=1", f"--build-arg=PIP_FIND_LINKS={wheels}"]
        for name in ("edge_agent", "server_worker"):
            build = services[name]["build"]
            base = f"--build-arg=BASE={build['args']['BASE']}"
            file = f"--file={PROJECT / build['dockerfile']}"
            builds.append(podman.build(services[name]["image"], Path(build["context"]), file, base, *arguments))
        try:
            for building in builds:
                _, errors = building.communicate(timeout=900.0)
                assert building.returncode == 0, errors.decode()[-3000:]
        finally:
            for building in builds:
                building.kill()
                building.wait()
        print(f"images: {time.monotonic() - started_s:.0f} s")
        with podman.serving():
            yield podman


def test_three_names_start_four_services_and_agents_train_through_them(podman: Podman) -> None:
    with ComposeProject(podman, **SHORT) as project:
        project.up(*UP)
        assert sorted(state["Service"] for state in project.states()) == sorted([*UP, "prometheus"])
        project.wait_healthy(*UP, "prometheus")
        given = project.get("grafana", "/given")
        assert given["home_uid"] == "cutlayer-overview"
        assert given["dashboards"] == sorted(file.name for file in (PROJECT / "dashboards").glob("*.json"))

        # The worker is scraped before an agent comes: from then on every counter's rise shows as a rate.
        until(lambda: project.query('up{job="cutlayer"}') == [1.0], "worker that Prometheus has scraped")
        project.up("edge_agent", flags=KEEP)
        assert len(project.states("edge_agent")) == 4
        assert project.exit_codes("edge_agent") == [0] * 4
        assert project.exit_codes("server_worker") == [0]

        # Four equal containers have trained on four different shards, which together are the whole data set.
        joined = re.findall(r"agent (demo/site-\d) joined with (\d+) samples", project.log("server_worker"))
        assert sorted(topic for topic, _ in joined) == [f"demo/site-{number}" for number in range(4)]
        assert sum(int(samples) for _, samples in joined) == NUM_SAMPLES
        run = json.loads(project.file("runs", "digits/run.json"))
        assert run["samples"] == NUM_SAMPLES

        # Each figure has come from the worker by the services' names, and is asked for as Grafana asks.
        for expression in (
            "sum(rate(cutlayer_samples_total[15s]))",
            "sum(rate(cutlayer_wire_bytes_total[15s]))",
            'max(cutlayer_agents{job="cutlayer"})',
        ):
            peak = project.query(f"max_over_time(({expression})[15m:1s])")
            assert len(peak) == 1, expression
            assert peak[0] > 0, expression
        project.down()
        assert podman.containers() == []
        assert podman.run("volume", "ls", "--quiet").split() == []


def test_two_workers_train_one_encoder_over_tls_by_the_overrides(podman: Podman, tmp_path: Path) -> None:
    copy = tmp_path / "project"  # the override names ./secrets, which is the user's in the real folder
    copy.mkdir()
    for name in ("docker-compose.yml", "docker-compose.pool.yml", "docker-compose.tls.yml"):
        shutil.copy(PROJECT / name, copy)
    for name in ("broker", "dashboards"):
        (copy / name).symlink_to(PROJECT / name)
    command = [sys.executable, str(PROJECT / "scripts/make_certs.py"), "--output", str(copy / "secrets")]
    subprocess.run(command, check=True, timeout=LIMIT_S, capture_output=True)
    files = [str(copy / f"docker-compose{part}.yml") for part in ("", ".pool", ".tls")]
    with ComposeProject(podman, *files, CUTLAYER_AGENTS="2", **SHORT) as project:
        project.up(*UP, flags=["--scale", "server_worker=2"])
        project.wait_healthy("lighthouse", *UP)
        until(lambda: project.query('up{job="cutlayer"}') == [1.0, 1.0], "two workers that are scraped")
        project.up("edge_agent", flags=["--scale", "server_worker=2", *KEEP])
        assert project.exit_codes("edge_agent") == [0, 0]
        assert project.exit_codes("server_worker") == [0, 0]
        assert project.log("server_worker").count("the run is training") == 2

        url = f"mqtts://127.0.0.1:{project.port('CUTLAYER_MQTTS_PORT')}"
        password, ca = (copy / "secrets" / "agent_password").read_text().strip(), copy / "secrets" / "ca.pem"
        with mqtt_client(url, "nobody", ca_file=ca) as stranger:
            stranger.transport.connect(None)
            assert isinstance(stranger.fatal(), NotAuthorized)
        with mqtt_client(url, "site", username="site-0", password=password, ca_file=ca) as agent:
            agent.connect()
            agent.transport.publish("demo/site-1/up/worker/activations", b"in another's name")
            assert isinstance(agent.fatal(), NotAuthorized)
