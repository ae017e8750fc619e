"""Mosquitto as a child process: where it is, and a configuration for it."""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import secrets
import shutil
from pathlib import Path

from cutlayer.broker.broker_options import BrokerOptions, read_passwords

__all__ = ["INSTALL", "find_mosquitto", "mosquitto_user", "write_configuration"]

INSTALL = (
    "install it (Debian, Ubuntu: apt install mosquitto; Fedora: dnf install mosquitto; macOS: brew install mosquitto)"
)

OTHER_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
"""Where packages put it, and what is not on every user's PATH."""
PBKDF2_ITERATIONS = 10_000
MEMORY_LIMIT_BYTES = 2 * 1024**3


def find_mosquitto() -> Path | None:
    """Return the path of the mosquitto binary, or None."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), *OTHER_PLACES])
    found = shutil.which("mosquitto", path=places)
    return Path(found) if found is not None else None


def mosquitto_user() -> str | None:
    """Return the user to run it as when this process is root, or None to run it as the present one."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("mosquitto").pw_name
    except KeyError:
        return "nobody"


def write_configuration(options: BrokerOptions, port: int, directory: Path, user: str | None) -> Path:
    """Write the configuration and what it refers to.

    Mosquitto reads everything when it starts; the files may go as soon as it answers.

    Args:
        options: The broker to start.
        port: TCP port.
        directory: Empty directory for the files; given to `user`.
        user: The user that it will run as, if another than the present one.

    Returns:
        Path of the configuration.
    """
    lines = [
        f"listener {port} {options.host}",
        "set_tcp_nodelay true",  # without it small QoS 1 messages take 44 ms instead of 0.2 ms
        f"max_packet_size {options.max_packet_bytes}",  # never message_size_limit: MQTT 3.1.1 clients lose silently
        "max_inflight_messages 20",
        "max_queued_messages 1000",  # more than agents x credits: a drop is then a bug
        f"memory_limit {MEMORY_LIMIT_BYTES}",  # disconnects loudly before the kernel kills it
        "persistence false",  # agents resend; nothing in flight is worth a disk write
        f"sys_interval {options.figures_s}",
        "connection_messages false",
        "log_dest stderr",
        *(f"log_type {level}" for level in ("error", "warning")),
    ]
    # A certificate stands for a user only where the ACL has to tell users apart: then it must hold a common name.
    by_certificate = options.client_ca is not None and options.acl_file is not None and options.password_file is None
    lines.append(f"allow_anonymous {'false' if options.password_file is not None or by_certificate else 'true'}")

    def placed(path: Path) -> Path:
        if user is None:
            return path
        # The other user may not be allowed to read the original, least of all the key.
        copy = directory / f"{len(list(directory.iterdir()))}-{path.name}"
        shutil.copyfile(path, copy)
        return copy

    if options.certificate is not None and options.key is not None:
        lines += [f"certfile {placed(options.certificate)}", f"keyfile {placed(options.key)}"]
    if options.client_ca is not None:
        lines += [f"cafile {placed(options.client_ca)}", "require_certificate true"]
    if by_certificate:
        lines.append("use_identity_as_username true")
    if options.password_file is not None:
        passwords = directory / "passwords"
        entries = [f"{name}:{_hashed(secret)}" for name, secret in read_passwords(options.password_file).items()]
        passwords.write_text("\n".join(entries) + "\n", encoding="utf-8")
        lines.append(f"password_file {passwords}")
    if options.acl_file is not None:
        lines.append(f"acl_file {placed(options.acl_file)}")
    configuration = directory / "mosquitto.conf"
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in (directory, *directory.iterdir()):
        path.chmod(0o700 if path is directory else 0o600)
        if user is not None:
            shutil.chown(path, user)
    return configuration


def _hashed(password: str) -> str:
    # mosquitto_passwd's format: $7$, iterations, salt, PBKDF2 with SHA-512. An entry that is hashed already stays.
    if password.startswith(("$6$", "$7$")):
        return password
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PBKDF2_ITERATIONS, 64)
    return f"$7${PBKDF2_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
