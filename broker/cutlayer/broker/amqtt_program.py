"""The program of the embedded broker: amqtt, alone in a process. `python -m cutlayer.broker.amqtt_program --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError
from amqtt.session import Session
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from cutlayer.broker.broker_options import read_passwords

__all__ = ["main"]

SHUTDOWN_TIMEOUT_S = 1.0


class QuietBytes(bytes):
    """A payload whose text form is short: amqtt formats each one for a log line that it then does not write."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class EmbeddedBroker(Broker):  # type: ignore[misc]  # amqtt ships no type information
    """amqtt 0.12.1 with four faults mended; the version is pinned, since these are private methods."""

    async def _delete_session(self, client_id: str) -> None:
        """Close the old connection of a client identifier that connects again (MQTT 3.1.1, section 3.1.4-2).

        amqtt leaves it open, deaf, and its will unpublished until TCP notices.
        """
        old = self._sessions.get(client_id)
        await super()._delete_session(client_id)
        if old is not None and old[0].transitions.state == "connected":
            await old[1].handle_connection_closed()
            await old[1].stop()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Send retained messages to whom they are for.

        amqtt sends each new client what matches *anybody's* subscription, and fails when one is added meanwhile.
        """
        subscribers = self._subscriptions.get(subscription[0], ())
        if any(subscriber.client_id == session.client_id for subscriber, _ in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        """Allow every topic, without giving way to other tasks.

        amqtt passes a message on in a loop over the subscriptions that asks here each time; a subscription that comes
        while it waits for the answer (of no plugin at all) ends the loop, and the message is lost to the rest.
        """
        del session, topic, action
        return True

    async def _broadcast_message(
        self, session: Session | None, topic: str | None, data: bytes | None, force_qos: int | None = None
    ) -> None:
        """Pass a message on, without its payload being spelled out for the debug log (5 ms a megabyte)."""
        await super()._broadcast_message(session, topic, QuietBytes(data or b""), force_qos)


def main(arguments: list[str] | None = None) -> int:
    """Run the broker until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(description="Run amqtt, an MQTT 3.1.1 broker.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=1883, help="TCP port")
    parser.add_argument("--tls-cert", help="certificate (PEM), which turns TLS on")
    parser.add_argument("--tls-key", help="its private key (PEM)")
    parser.add_argument("--password-file", type=Path, help="users, one name:password a line")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    try:
        asyncio.run(_serve(options))
    except AMQTTError as error:
        cause = error.__cause__ or error
        print(f"Error: {cause}", file=sys.stderr)
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="cutlayer-amqtt-") as directory:
        broker = EmbeddedBroker(_configuration(options, Path(directory)))  # reads its files here, once
    await broker.start()
    await stop.wait()
    try:
        await asyncio.wait_for(broker.shutdown(), SHUTDOWN_TIMEOUT_S)
    except (TimeoutError, AMQTTError):
        logging.getLogger("cutlayer.broker").debug("the broker did not shut down in time; it ends anyway")


def _configuration(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    host = f"[{options.host}]" if ":" in options.host else options.host
    listener: dict[str, Any] = {"type": "tcp", "bind": f"{host}:{options.port}"}
    if options.tls_cert is not None:
        listener |= {"ssl": True, "certfile": options.tls_cert, "keyfile": options.tls_key}
    plugins: dict[str, Any] = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    if options.password_file is not None:
        hasher = PasswordHash((Argon2Hasher(),))
        entries = [
            f"{name}:{secret if secret.startswith('$argon2') else hasher.hash(secret)}"
            for name, secret in read_passwords(options.password_file).items()
        ]
        hashed = directory / "passwords"
        hashed.touch(mode=0o600)
        hashed.write_text("\n".join(entries) + "\n", encoding="utf-8")
        plugins = {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(hashed)}}
    return {"listeners": {"default": listener}, "plugins": plugins}


if __name__ == "__main__":
    sys.exit(main())
