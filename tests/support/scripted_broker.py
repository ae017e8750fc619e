"""A broker that says what a test tells it, for answers that no real broker here can be made to give."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8


def accept_5() -> bytes:
    """CONNACK of MQTT 5: success."""
    return bytes.fromhex("20 03 00 00 00")


def accept_3_1_1() -> bytes:
    """CONNACK of MQTT 3.1.1: success."""
    return bytes.fromhex("20 02 00 00")


@contextlib.contextmanager
def scripted_broker(*connections: Sequence[tuple[int, bytes]]) -> Iterator[int]:
    """Serve one script a connection, the last one again and again; the value is the TCP port.

    Args:
        connections: Each a sequence of (packet type to wait for, bytes to answer). An answer that ends in `!` closes
            the connection after the rest of it.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = []

    def serve() -> None:
        for number in range(10_000):
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(stream)
            with contextlib.suppress(OSError), stream:
                _play(stream, connections[min(number, len(connections) - 1)])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for stream in open_sockets:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        thread.join()


def _play(stream: socket.socket, script: Sequence[tuple[int, bytes]]) -> None:
    with stream.makefile("rb") as packets:
        for awaited, answer in script:
            while True:
                kind, packet_identifier = _read_packet(packets)
                if kind < 0:
                    return
                if kind == awaited:
                    break
            stream.sendall(answer.removesuffix(b"!").replace(b"ID", packet_identifier))
            if answer.endswith(b"!"):
                return
        while _read_packet(packets)[0] >= 0:
            pass


def _read_packet(packets: object) -> tuple[int, bytes]:
    read = packets.read  # type: ignore[attr-defined]
    first = read(1)
    if not first:
        return -1, b""
    length = shift = 0
    while True:
        byte = read(1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    body = read(length)
    kind = first[0] >> 4
    if kind == PUBLISH:
        topic_length = int.from_bytes(body[:2], "big")
        return kind, body[2 + topic_length : 4 + topic_length]
    return kind, body[:2]
