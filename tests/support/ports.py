"""TCP ports for tests whose servers are told where to listen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["free_port", "listens"]

FIRST, LAST = 10_000, 65_535
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""First and last of the ports that the system gives to whoever asks for any."""
_choice = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses now, and that this process has not had before.

    It is not one that the system gives to whoever asks for any, where there are others: until the server listens
    there, or while it is away, such a port may become the other end of anybody's connection, even of its own client's.
    """
    ephemeral = _ephemeral()
    ports = [port for port in range(FIRST, LAST + 1) if port not in ephemeral and port not in _given]
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wanted = _choice.choice(ports) if ports else 0
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                ports.remove(wanted)
                continue
            port: int = probe.getsockname()[1]
        _given.add(port)
        return port


def listens(port: int) -> bool:
    """Tell whether somebody listens on a port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ephemeral() -> range:
    try:
        first, last = map(int, EPHEMERAL.read_text(encoding="ascii").split())
    except OSError:  # no Linux: the range that IANA suggests
        first, last = 49_152, 65_535
    return range(first, last + 1)
