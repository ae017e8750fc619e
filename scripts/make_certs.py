#!/usr/bin/env python3
"""Write what docker-compose.tls.yml needs, to try it with: a CA, the broker's certificate, passwords and an ACL.

Needs Python and the `openssl` command, nothing of the project. For more than a trial take certificates from a CA that
you trust and keep, and give each site a password of its own.

    python3 scripts/make_certs.py --host broker.example --agents 4

The folder is for its owner only. Files that a container reads as another user are readable by all inside it: a bind
mount shows the container the file and not the folder around it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import ipaddress
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DAYS = 30
PBKDF2_ITERATIONS = 10_000
WORKER_TOPICS = ("readwrite cutlayer/#", "readwrite demo/#", "read $SYS/broker/#")
AGENT_TOPICS = (
    "write {agent}/up/#",
    "read {agent}/down/#",
    "readwrite {agent}/state",
    "read cutlayer/run",
    "read cutlayer/model/#",
    "read cutlayer/workers/+/state",
    "write cutlayer/workers/+/inbox/{agent}",
)
"""As in broker/acl.example."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", action="append", default=[], help="a name or address of this machine; repeatable")
    parser.add_argument("--agents", type=int, default=4, help="users site-0 and on, for topics demo/site-0 and on")
    parser.add_argument("--output", type=Path, default=Path("secrets"), help="folder; %(default)s by default")
    arguments = parser.parse_args()
    if shutil.which("openssl") is None:
        print("error: no openssl command\n  fix: apt install openssl", file=sys.stderr)
        return 2
    folder: Path = arguments.output
    if (folder / "ca.pem").exists():
        print(f"error: {folder} has a CA already\n  fix: remove {folder}, or name another --output", file=sys.stderr)
        return 2
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_certificates(folder, ["broker", "localhost", "127.0.0.1", *arguments.host])
    write_users(folder, [f"site-{number}" for number in range(arguments.agents)])
    print(f"{folder}: valid for {DAYS} days; sites outside this machine need ca.pem and a user and password")
    return 0


def write_certificates(folder: Path, hosts: list[str]) -> None:
    """Write ca.pem, broker.pem and broker.key; the CA's own key is not kept, so it signs nothing else."""
    names = ",".join(f"{'IP' if is_address(host) else 'DNS'}:{host}" for host in dict.fromkeys(hosts))
    with tempfile.TemporaryDirectory() as temporary:
        ca_key, request, extensions = (Path(temporary) / name for name in ("ca.key", "broker.csr", "extensions"))
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n")
        ca, key = folder / "ca.pem", folder / "broker.key"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-sha256"]
        openssl(
            *["req", "-x509", *curve, "-days", str(DAYS), "-subj", "/CN=Cutlayer trial CA"],
            *["-addext", "keyUsage=critical,keyCertSign", "-keyout", str(ca_key), "-out", str(ca)],
        )
        openssl("req", *curve, "-subj", "/CN=broker", "-keyout", str(key), "-out", str(request))
        openssl(
            *["x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-days", str(DAYS)],
            *["-sha256", "-extfile", str(extensions), "-out", str(folder / "broker.pem")],
        )
    for path in (ca, key, folder / "broker.pem"):
        path.chmod(0o644)


def write_users(folder: Path, agents: list[str]) -> None:
    """Write the passwords in clear text for their users, hashed for the broker, and the ACL."""
    worker_password, agent_password = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    users = {"worker": worker_password, **dict.fromkeys(agents, agent_password)}
    blocks = ["\n".join(["user worker", *(f"topic {right}" for right in WORKER_TOPICS)])]
    for agent in agents:
        rights = [f"topic {right.format(agent=f'demo/{agent}')}" for right in AGENT_TOPICS]
        blocks.append("\n".join([f"user {agent}", *rights]))
    files = {
        "worker_password": worker_password,
        "agent_password": agent_password,
        "broker_passwords": "\n".join(f"{user}:{hashed(password)}" for user, password in users.items()),
        "broker_acl": "\n\n".join(blocks),
    }
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
        (folder / name).chmod(0o644)


def hashed(password: str) -> str:
    """Return a password in mosquitto_passwd's form: $7$, iterations, salt, PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PBKDF2_ITERATIONS, 64)
    return f"$7${PBKDF2_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def is_address(host: str) -> bool:
    """Return whether this is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def openssl(*arguments: str) -> None:
    """Run openssl, and show what it says when it fails."""
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)  # noqa: S607 - on PATH
    if result.returncode:
        raise SystemExit(f"openssl {arguments[0]}: {result.stderr}")


if __name__ == "__main__":
    raise SystemExit(main())
