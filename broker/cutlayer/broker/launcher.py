"""Starts a broker as a child process, waits until it answers, and ends it again.

`with launch_broker(BrokerOptions(kind="auto")) as broker: print(broker.url)`
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from cutlayer.broker import parent_guard
from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.launcher_mosquitto import INSTALL, find_mosquitto, mosquitto_user, write_configuration

__all__ = ["BrokerProcess", "launch_broker"]

AMQTT_PROGRAM = "cutlayer.broker.amqtt_program"
INSTALL_AMQTT = "install it (pip install 'cutlayer[broker]')"
READY_TIMEOUT_S = 60.0
"""A broker that cannot start ends at once; one that is there and slow, on a loaded machine, is worth the wait."""
STOP_TIMEOUT_S = 5.0
ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a table, not a bind
CONNECT = bytes.fromhex("10 17 0004 4d515454 04 02 001e 000b") + b"is-it-ready"
"""An MQTT 3.1.1 CONNECT with a clean session, 30 s keep alive and a client identifier of 11 characters."""
CONNACK = b"\x20"
DISCONNECT = bytes.fromhex("e000")


class BrokerProcess:
    """A running broker. Use as a context manager, or call `stop`.

    Attributes:
        kind: Which broker it is.
        url: Where clients on this machine reach it.
        host: Address that it listens on.
        port: TCP port.
        pid: Process id.
        log_file: What it prints.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        kind: Literal["amqtt", "mosquitto"],
        options: BrokerOptions,
        port: int,
        log_file: Path,
        directory: Path,
    ) -> None:
        self.kind = kind
        self.host = options.host
        self.port = port
        self.pid = process.pid
        self.log_file = log_file
        self._process = process
        self._directory = directory
        reachable = ANY_ADDRESS.get(options.host, options.host)
        address = f"[{reachable}]" if ":" in reachable else reachable
        self.url = f"{'mqtts' if options.certificate else 'mqtt'}://{address}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Sleep until the process ends, or `timeout_s` seconds have passed; return its status, None if it lives."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def last_log_line(self) -> str:
        """Return the last line that the broker printed, without its time stamp."""
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        stamp, _, text = last.partition(": ")
        return text if stamp.isdigit() else last

    def stop(self, *, kill: bool = False) -> None:
        """End the process: SIGTERM, and SIGKILL after 5 s or at once. Its temporary files go with it."""
        if self.is_running():
            if kill:
                self._process.kill()
            else:
                self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def launch_broker(options: BrokerOptions) -> BrokerProcess:
    """Start a broker and wait until it answers a CONNECT.

    On Linux it ends with the thread that calls this, however that ends (`cutlayer.broker.parent_guard`).

    Args:
        options: The broker to start.

    Returns:
        The running broker.

    Raises:
        SettingsError: When it is not installed, the port is taken, or it does not start; with its last log line.
    """
    kind = _choose(options)
    port = _free_port(options.host, options.port)
    directory = Path(tempfile.mkdtemp(prefix="cutlayer-broker-"))
    secrets = directory / "mosquitto"
    log_file = options.log_file or directory / "broker.log"
    try:
        process = _start(kind, options, port, secrets, log_file)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    broker = BrokerProcess(process, kind, options, port, log_file, directory)
    try:
        _wait_until_ready(broker)
    except BaseException:
        broker.stop(kill=True)
        raise
    # Mosquitto has read its files; a parent that is killed later could not remove them.
    shutil.rmtree(secrets, ignore_errors=True)
    return broker


def _choose(options: BrokerOptions) -> Literal["amqtt", "mosquitto"]:
    has_mosquitto, has_amqtt = find_mosquitto() is not None, importlib.util.find_spec("amqtt") is not None
    kind = options.kind
    if kind == "auto":
        if not has_mosquitto and not has_amqtt:
            raise SettingsError("no MQTT broker is installed", f"Mosquitto: {INSTALL}; or amqtt: {INSTALL_AMQTT}")
        kind = "mosquitto" if has_mosquitto else "amqtt"
    if kind == "mosquitto" and not has_mosquitto:
        raise SettingsError("mosquitto is not installed", f"{INSTALL}, or use --kind amqtt")
    if kind == "amqtt" and not has_amqtt:
        raise SettingsError("amqtt is not installed", INSTALL_AMQTT)
    if kind == "amqtt":
        for name in ("client_ca", "acl_file"):
            if getattr(options, name) is not None:
                raise SettingsError(f"amqtt has no use for {name}", f"use --kind mosquitto: {INSTALL}")
    return kind


def _free_port(host: str, port: int) -> int:
    # Asked before the start: a broker that is there already would answer the readiness probe in our broker's place.
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            bound: int = probe.getsockname()[1]
            return bound
    except OSError as error:
        fix = "use --port 0 for a free one, or stop what listens there" if port else "check --host"
        raise SettingsError(f"cannot listen on {host}, port {port} ({error.strerror})", fix) from error


def _start(
    kind: Literal["amqtt", "mosquitto"], options: BrokerOptions, port: int, secrets: Path, log_file: Path
) -> subprocess.Popen[bytes]:
    user = None
    if kind == "mosquitto":
        user = mosquitto_user()
        secrets.mkdir()
        secrets.parent.chmod(0o711)  # so that Mosquitto's user can pass through to its own folder
        program = [str(find_mosquitto()), "-c", str(write_configuration(options, port, secrets, user))]
    else:
        program = [sys.executable, "-m", AMQTT_PROGRAM, "--host", options.host, "--port", str(port)]
        named = {"--tls-cert": options.certificate, "--tls-key": options.key, "--password-file": options.password_file}
        program += [word for flag, path in named.items() if path is not None for word in (flag, str(path))]
    guard = [sys.executable, "-I", "-S", str(parent_guard.__file__), str(os.getpid()), user or "-"]
    try:
        with log_file.open("ab") as log:
            return subprocess.Popen(
                [*guard, *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches the parent, which then ends this in order
            )
    except OSError as error:
        raise SettingsError(f"log_file {log_file} cannot be written ({error.strerror})", "name another") from error


def _wait_until_ready(broker: BrokerProcess) -> None:
    end_s = time.monotonic() + READY_TIMEOUT_S
    while broker.is_running() and time.monotonic() < end_s:
        if _answers(broker):
            return
        time.sleep(0.02)
    state = "does not answer" if broker.is_running() else "ended at once"
    raise SettingsError(
        f"{broker.kind} {state} on {broker.host}, port {broker.port}: {broker.last_log_line() or 'it printed nothing'}",
        "use another --port, or mend what the broker says",
    )


def _answers(broker: BrokerProcess) -> bool:
    """Send a CONNECT; any CONNACK counts, since who may connect is not the question."""
    parts = urlsplit(broker.url)
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(socket.create_connection((parts.hostname, broker.port), timeout=1.0))
            if parts.scheme == "mqtts":
                # Our own child, on this machine, and no secret is sent: nothing to verify, and nothing to verify by.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                stream = stack.enter_context(context.wrap_socket(stream))
            stream.sendall(CONNECT)
            answer = stream.recv(4)
            if answer[:1] == CONNACK:
                stream.sendall(DISCONNECT)
            return answer[:1] == CONNACK
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it wants a client certificate: it is there
    except OSError:
        return False
