"""Every error that Cutlayer raises on purpose.

    CutlayerError
    ├── SettingsError           yours: a flag, a TOML key, an environment variable, a file      exit 2
    ├── WireError               theirs: what a peer sent
    │   ├── MalformedMessage        cannot be parsed, or a field is out of its limits
    │   ├── WrongVersion            another protocol version
    │   └── OversizedMessage        more bytes than a named limit allows
    ├── NetworkError            the network's or the broker's                                   exit 3
    │   ├── BrokerUnreachable       no broker answers at that address
    │   ├── NotAuthorized           user, password, certificate or rights are wrong
    │   ├── PacketTooLarge          the broker's packet limit is below what a message needs
    │   └── PoolError               the pool's lighthouse cannot be reached
    ├── RunError                the run cannot use this program, or this program the run        exit 4
    │   ├── ManifestUnsatisfiable   the agent lacks a modality, a codec or a data set
    │   ├── Rejected                a worker refused the agent; `reason` says why
    │   └── CheckpointError         no checkpoint that can be resumed from, served or exported
    └── IdentityTaken           another process uses this topic or worker name                  exit 5

Tensor coding has a tree of its own (`cutlayer.compression.errors`), since that room knows no messages; a
`DecodeError` met while reading a message is re-raised as `MalformedMessage`. Facts are attributes, so that a
program can act on them; the text names the thing and the fix for a person.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BrokerUnreachable",
    "CheckpointError",
    "CutlayerError",
    "IdentityTaken",
    "MalformedMessage",
    "ManifestUnsatisfiable",
    "NetworkError",
    "NotAuthorized",
    "OversizedMessage",
    "PacketTooLarge",
    "PoolError",
    "Rejected",
    "RunError",
    "SettingsError",
    "WireError",
    "WrongVersion",
]


_WHEN_ENDED = (
    "start another run (server-worker start) to train, or have a worker serve this one's model (server-worker serve) "
    "and ask it with edge-agent evaluate or predict"
)


class CutlayerError(Exception):
    """Root of everything that Cutlayer raises on purpose."""

    exit_code: ClassVar[int] = 1
    """Exit status of a command that ends with this error."""


class SettingsError(CutlayerError, ValueError):
    """A setting that its owner can mend: a flag, a TOML key, an environment variable or a file.

    Args:
        problem: What is wrong, naming the setting and its value.
        fix: What to do, as an imperative.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)


class WireError(CutlayerError):
    """A peer sent something that the protocol does not allow. Counted and dropped, never fatal.

    Args:
        detail: What is wrong with the bytes.
        label: A short constant that names the kind of fault, fit for a metric label.
    """

    label: ClassVar[str] = "wire"

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class MalformedMessage(WireError):
    """The bytes cannot be parsed, or a field is outside its limits."""

    label = "malformed"


class WrongVersion(WireError):
    """The message has another protocol version.

    Args:
        got: The version in the message.
        supported: The version this program speaks.
    """

    label = "version"

    def __init__(self, got: int, supported: int) -> None:
        self.got = got
        self.supported = supported
        super().__init__(
            f"protocol version {got}, this program speaks {supported}: install the same release on both sides"
        )


class OversizedMessage(WireError):
    """The message declares or holds more bytes than a named limit allows.

    Args:
        what: What is too large.
        size_bytes: Its size.
        limit_bytes: The limit.
    """

    label = "oversized"

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(f"{what}: {size_bytes} B is over the limit of {limit_bytes} B")


class NetworkError(CutlayerError):
    """The network or the broker failed. Drivers retry these; they end a program only at its start."""

    exit_code = 3


class BrokerUnreachable(NetworkError):
    """No broker answers at the address.

    Args:
        url: The address.
        detail: What the operating system or the broker said.
    """

    def __init__(self, url: str, detail: str) -> None:
        self.url = url
        self.detail = detail
        super().__init__(
            f"no broker at {url}: {detail}\n"
            "  fix: start one (`cutlayer broker start`), or name another with --broker mqtt://HOST:PORT"
        )


class NotAuthorized(NetworkError):
    """The broker refuses these credentials, or this topic.

    Args:
        url: The broker's address.
        detail: What the broker said.
    """

    def __init__(self, url: str, detail: str) -> None:
        self.url = url
        self.detail = detail
        super().__init__(
            f"the broker at {url} refuses: {detail}\n"
            "  fix: check --username, the password file, the client certificate and the broker's ACL"
        )


class PacketTooLarge(NetworkError):
    """The packet limit leaves no room for a chunk.

    Args:
        limit_bytes: The packet limit, from the broker or from the settings.
        needed_bytes: The least that is needed.
    """

    def __init__(self, limit_bytes: int, needed_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.needed_bytes = needed_bytes
        super().__init__(
            f"a packet limit of {limit_bytes} B is below the {needed_bytes} B that one chunk needs\n"
            "  fix: raise --max-packet-bytes or the broker's limit (Mosquitto: max_packet_size)"
        )


class PoolError(NetworkError):
    """The lighthouse of a pool cannot be reached.

    Args:
        lighthouse: Its address.
        detail: Why.

    Attributes:
        lighthouse: Its address.
    """

    def __init__(self, lighthouse: str, detail: str) -> None:
        super().__init__(
            f"no pool at lighthouse {lighthouse}: {detail}\n"
            "  fix: start `torchft_lighthouse --min_replicas 1`, and give its address with --pool\n"
            "  (a worker that trains alone needs neither)"
        )
        self.lighthouse = lighthouse


class RunError(CutlayerError):
    """This program and the run do not fit together."""

    exit_code = 4


class ManifestUnsatisfiable(RunError):
    """The run asks for something that this agent does not have.

    Args:
        what: The thing asked for.
        fix: What to do.
    """

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"this agent cannot take part in the run: {what}\n  fix: {fix}")


class Rejected(RunError):
    """A worker refused this agent.

    Args:
        worker_id: The worker.
        reason: A constant of `cutlayer.broker.messages.RejectReason`.
        detail: The worker's text.
    """

    def __init__(self, worker_id: str, reason: str, detail: str) -> None:
        self.worker_id = worker_id
        self.reason = reason
        self.detail = detail
        fix = f"\n  fix: {_WHEN_ENDED}" if reason == "ended" else ""
        super().__init__(f"worker {worker_id} refuses this agent ({reason}): {detail}{fix}")


class CheckpointError(RunError):
    """No checkpoint here that this program can use.

    Args:
        path: Where was looked.
        detail: What is wrong with it.
        doing: What it was to be used for.
        fix: What to do, as an imperative.
    """

    def __init__(self, path: str, detail: str, *, doing: str = "resume from", fix: str = "") -> None:
        self.path = path
        self.detail = detail
        self.fix = fix
        super().__init__(f"cannot {doing} {path}: {detail}" + (f"\n  fix: {fix}" if fix else ""))


class IdentityTaken(CutlayerError):
    """Another process uses this topic or name.

    Args:
        identity: The agent's topic or the worker's name.
        other: How to call this process otherwise, as an imperative; the default is a worker's.
    """

    exit_code = 5

    def __init__(self, identity: str, other: str = "give this one another name (--name)") -> None:
        self.identity = identity
        super().__init__(
            f"another process now runs as {identity!r}; two cannot share an identity\n"
            f"  fix: stop the other one, or {other}"
        )
