"""A TCP relay that counts bytes, and that tests can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from support.waiting import LIMIT_S


class Relay:
    """Passes bytes between clients and a server.

    Args:
        port: The server's TCP port on the loopback interface.

    Attributes:
        port: The relay's own TCP port.
        up_bytes: Bytes from clients to the server.
        down_bytes: Bytes from the server to clients.
    """

    def __init__(self, port: int) -> None:
        self.up_bytes = 0
        self.down_bytes = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection; new ones are taken."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def settle(self) -> None:
        """Wait until every connection has ended at both sides; then all of its bytes are counted."""
        for thread in self._threads[1:]:
            thread.join(LIMIT_S)
            assert not thread.is_alive(), "a connection goes on"

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            for source, sink, is_up in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink, is_up), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if is_up:
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(port: int) -> Iterator[Relay]:
    """Run a relay to a server's port."""
    running = Relay(port)
    try:
        yield running
    finally:
        running.close()
