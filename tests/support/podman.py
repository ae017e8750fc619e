"""Podman with a storage, networks and settings of its own, in a temporary folder: nothing of the user's is touched.

What it needs beside Debian's packages is made on the spot, since no image can be pulled: a base image from Debian's
archive, and a small index with the wheels that images install.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.waiting import LIMIT_S, until

__all__ = ["BASE_PYTHON", "PACKAGES", "PROJECT", "Podman", "missing", "own_podman"]

PROJECT = Path(__file__).parents[2]
PACKAGES = "podman runc netavark aardvark-dns catatonit iptables mmdebstrap debian-archive-keyring"
BASE_SUITE, BASE_PYTHON = "bookworm", "3.11"
BASE_PACKAGES = "ca-certificates,python3,python3-venv,mosquitto,mosquitto-clients,prometheus,busybox"
"""Of the base: what python:3.12-slim has of it, and the programs of the stand-ins, in one go."""
EXTRAS = ("server", "pool", "data", "digits", "text")
COMMANDS = ("podman", "runc", "catatonit", "iptables", "mmdebstrap")


def missing() -> str | None:
    """Return why podman cannot be run here, or None."""
    if os.geteuid() != 0:
        return "only root can set up the networks and mounts of rootful podman"
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    absent = [command for command in COMMANDS if shutil.which(command, path=places) is None]
    absent += [name for name in ("netavark", "aardvark-dns") if not Path("/usr/lib/podman", name).exists()]
    return f"{', '.join(absent)} not installed: apt-get install {PACKAGES}" if absent else None


class Podman:
    """Runs podman commands, and a service on a socket that Compose can use.

    Args:
        folder: Empty folder for everything; its path is short, since it has a socket.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = folder / "podman.sock"
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0"}
        self.environment["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        for variable, name, text in (
            ("CONTAINERS_CONF", "containers.conf", self._settings()),
            ("CONTAINERS_STORAGE_CONF", "storage.conf", self._storage()),
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf", 'unqualified-search-registries = ["docker.io"]\n'),
        ):
            (folder / name).write_text(text, encoding="utf-8")
            self.environment[variable] = str(folder / name)

    def run(self, *arguments: str, timeout_s: float = LIMIT_S, check: bool = True) -> str:
        """Run one command, and return what it printed; a failed one fails the test with its errors."""
        return run(["podman", *arguments], self.environment, timeout_s, check=check)

    def build(self, image: str, folder: Path, *flags: str) -> subprocess.Popen[bytes]:
        """Start building an image. Without layers: a layer for every line takes longer than the lines themselves."""
        command = ["podman", "build", "--quiet", "--layers=false", "--tag", image, *flags, str(folder)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def containers(self) -> list[dict[str, Any]]:
        """Return what `podman inspect` says of every container, running or not."""
        ids = self.run("ps", "--all", "--quiet").split()
        return list(json.loads(self.run("inspect", *ids, check=False) or "[]")) if ids else []

    def logs(self) -> str:
        """Return the last lines of every container."""
        texts = []
        for container in self.containers():
            command = ["podman", "logs", "--tail", "15", container["Id"]]
            output = subprocess.run(command, env=self.environment, capture_output=True, timeout=LIMIT_S, check=False)
            texts.append(f"--- {container['Name']}\n{output.stdout.decode()}{output.stderr.decode()}")
        return "\n".join(texts)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer on the socket, and run health checks.

        Podman leaves those to systemd's timers; where there is no systemd a container would stay "starting" for ever.
        """
        stop = threading.Event()

        def quietly(*arguments: str) -> str:
            # A container may have gone, and podman may wait long for its own locks: the next time is soon.
            with suppress(subprocess.TimeoutExpired):
                command = ["podman", *arguments]
                return subprocess.run(
                    command, env=self.environment, capture_output=True, text=True, timeout=20.0, check=False
                ).stdout
            return ""

        def check_health() -> None:
            while not stop.wait(1.0):
                for container in quietly("ps", "--quiet").split():
                    quietly("healthcheck", "run", container)

        command = ["podman", "system", "service", "--time", "0", f"unix://{self.socket}"]
        with (self._folder / "service.log").open("wb") as log:
            service = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        checks = threading.Thread(target=check_health)
        try:
            until(self.socket.exists, "podman's socket")
            checks.start()
            yield
        finally:
            stop.set()
            if checks.is_alive():
                checks.join(LIMIT_S)
            service.terminate()
            service.wait(LIMIT_S)

    def clean(self) -> None:
        """Stop and remove everything, the folder's content included."""
        for arguments in (["rm", "--all", "--force", "--time", "2"], ["volume", "prune", "--force"]):
            self.run(*arguments, check=False)
        self.run("network", "prune", "--force", check=False)
        self.run("unmount", "--all", "--force", check=False)
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self._folder}/")]):
            run(["umount", "--lazy", mount], self.environment, LIMIT_S, check=False)
        # Gigabytes in a hundred thousand files; what is still mounted is left alone.
        run(["rm", "-rf", "--one-file-system", str(self._folder)], self.environment, 300.0, check=False)

    def _settings(self) -> str:
        # runc: crun refuses the hybrid control groups of some machines. Limits: podman asks for more than a machine
        # may allow. Locks in files: those in shared memory are the same for every storage of this machine.
        open_files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % 2**63, 20_000)
        return f"""
[containers]
default_ulimits = ["nofile={open_files}:{open_files}", "nproc=4096:4096"]
init_path = "{shutil.which("catatonit")}"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{self._folder}/libpod"
static_dir = "{self._folder}/static"
volume_path = "{self._folder}/volumes"
[network]
network_backend = "netavark"
network_config_dir = "{self._folder}/networks"
"""

    def _storage(self) -> str:
        roots = f'graphroot = "{self._folder}/storage"\nrunroot = "{self._folder}/run"\n'
        return f'[storage]\ndriver = "overlay"\n{roots}'


@contextmanager
def own_podman(base: str) -> Iterator[tuple[Podman, str]]:
    """Set podman up, with an image of that name to build upon, and serve wheels to builds.

    Yields:
        Podman, and the address of the wheels as pip's `--find-links` takes it.
    """
    folder = Path(tempfile.mkdtemp(prefix="cutlayer-podman-", dir="/var/tmp"))
    podman = Podman(folder)
    wheels = folder / "wheels"
    try:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        flags = ["--dest", str(wheels), "--only-binary=:all:", "--python-version", BASE_PYTHON]
        downloading = subprocess.Popen(
            [*download, *flags, *requirements()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            tar = folder / "base.tar"
            make = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={BASE_PACKAGES}"]
            trim = ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
            run([*make, *trim, BASE_SUITE, str(tar)], podman.environment, 900.0)
            podman.run("import", "--quiet", "--change", f"ENV PATH={SEARCH_PATH}", str(tar), base, timeout_s=300.0)
            tar.unlink()
            output, _ = downloading.communicate(timeout=900.0)
        finally:
            downloading.kill()
            downloading.wait()
        if downloading.returncode:
            pytest.fail(f"pip download: {output.decode()}")
        with serving_files(wheels) as url:
            yield podman, url
    finally:
        podman.clean()


SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def requirements() -> Sequence[str]:
    """Return all that the images install, from pyproject.toml."""
    content = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    extras = [requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras, *content["build-system"]["requires"]]


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


@contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_SilentHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(command: Sequence[str], environment: dict[str, str], timeout_s: float, *, check: bool = True) -> str:
    """Run a command and return what it printed; fail the test when it fails or takes too long."""
    try:
        result = subprocess.run(
            command, env=environment, cwd=PROJECT, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{' '.join(command)}: nothing after {timeout_s} s\n{(error.stdout or b'').decode()[-3000:]}")
    if check and result.returncode:
        pytest.fail(f"{' '.join(command)}: {result.stdout.decode()[-3000:]}{result.stderr.decode()[-3000:]}")
    return result.stdout.decode()
