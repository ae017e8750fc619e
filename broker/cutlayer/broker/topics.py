"""Every topic name and topic filter of the protocol. Nobody else joins strings with slashes.

    <agent>/up/<worker>/activations, <agent>/up/<worker>/gradients      agent -> that worker
    <agent>/up/telemetry                                                agent -> any worker
    <agent>/up/missing                                                  agent -> whichever worker sent the chunks
    <agent>/down/outputs, <agent>/down/gradients, <agent>/down/control  worker -> agent
    <agent>/state                                                       retained, with a will
    cutlayer/run                                                        retained: the run manifest
    cutlayer/model/<digest>/<index>                                     retained: client-side weights
    cutlayer/workers/<worker>/state                                     retained, with a will
    cutlayer/workers/<worker>/inbox/<agent>                             Hello, TrainingDone, Goodbye
    cutlayer/workers/<worker>/window                                    worker -> workers of its pool
    cutlayer/workers/<worker>/report                                    worker -> whoever watches the run

An agent's topic may have several levels (`clinic/07`); a worker's name has one.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from cutlayer.broker.errors import SettingsError

__all__ = [
    "RUN",
    "WORKER_REPORTS",
    "WORKER_STATES",
    "WORKER_WINDOWS",
    "AgentTopics",
    "WorkerTopics",
    "agent_of",
    "model_chunk",
    "model_chunks",
]

ROOT = "cutlayer"
RUN = f"{ROOT}/run"
WORKER_STATES = f"{ROOT}/workers/+/state"
WORKER_WINDOWS = f"{ROOT}/workers/+/window"
WORKER_REPORTS = f"{ROOT}/workers/+/report"
MAX_AGENT_TOPIC = 200

_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def model_chunk(digest: str, index: int) -> str:
    """Return the topic name of one piece of the client-side weights."""
    return f"{ROOT}/model/{digest}/{index}"


def model_chunks(digest: str) -> str:
    """Return the topic filter of all pieces of the client-side weights."""
    return f"{ROOT}/model/{digest}/+"


@dataclass(frozen=True, slots=True)
class WorkerTopics:
    """A worker's own topics.

    Args:
        name: The worker's name: letters, digits, `.`, `_`, `-`.

    Raises:
        SettingsError: When the name is none.
    """

    name: str

    def __post_init__(self) -> None:
        if not _LEVEL.fullmatch(self.name):
            raise SettingsError(
                f"worker name {self.name!r} is not usable in a topic",
                "use letters, digits, '.', '_' and '-', at most 64",
            )

    @property
    def state(self) -> str:
        """Retained state."""
        return f"{ROOT}/workers/{self.name}/state"

    @property
    def window(self) -> str:
        """What it holds of the open window, for the other workers of its pool."""
        return f"{ROOT}/workers/{self.name}/window"

    @property
    def report(self) -> str:
        """Its metrics, for whoever watches."""
        return f"{ROOT}/workers/{self.name}/report"

    @property
    def inboxes(self) -> str:
        """Topic filter of all agents' inboxes here."""
        return f"{ROOT}/workers/{self.name}/inbox/#"

    def inbox_of(self, agent: str) -> str:
        """Where one agent asks this worker for a lease: a topic of its own, so that nobody asks in its name."""
        return f"{ROOT}/workers/{self.name}/inbox/{agent}"


@dataclass(frozen=True, slots=True)
class AgentTopics:
    """An agent's own topics.

    Args:
        root: The agent's `--topic`, one or more levels of letters, digits, `.`, `_`, `-`.

    Raises:
        SettingsError: When the root is no such topic or lies in Cutlayer's own.
    """

    root: str

    def __post_init__(self) -> None:
        if not _is_agent_root(self.root):
            raise SettingsError(
                f"topic {self.root!r} cannot be an agent's",
                "use levels of letters, digits, '.', '_' and '-' joined by '/', such as clinic/07; not "
                f"{ROOT!r} first and not 'up' or 'down' anywhere; at most {MAX_AGENT_TOPIC} characters",
            )

    def up_activations(self, worker: str) -> str:
        """Activations to one worker."""
        return f"{self.root}/up/{worker}/activations"

    def up_gradients(self, worker: str) -> str:
        """Output gradients to one worker."""
        return f"{self.root}/up/{worker}/gradients"

    def up_to(self, worker: str) -> str:
        """Topic filter of all that goes to one worker."""
        return f"{self.root}/up/{worker}/+"

    @property
    def telemetry(self) -> str:
        """Counters for whichever worker listens."""
        return f"{self.root}/up/telemetry"

    @property
    def missing(self) -> str:
        """Asks for chunks: they do not name their worker, so all of this agent's listen, and one knows them."""
        return f"{self.root}/up/missing"

    @property
    def down_outputs(self) -> str:
        """Outputs."""
        return f"{self.root}/down/outputs"

    @property
    def down_gradients(self) -> str:
        """Commits, with activation gradients where tokenizers train."""
        return f"{self.root}/down/gradients"

    @property
    def down_control(self) -> str:
        """Welcome, Busy, Reject, Phase, Resend, MissingChunks."""
        return f"{self.root}/down/control"

    @property
    def down_all(self) -> str:
        """Topic filter of all that comes down."""
        return f"{self.root}/down/+"

    @property
    def state(self) -> str:
        """Retained state."""
        return f"{self.root}/state"


@functools.lru_cache(maxsize=65_536)
def agent_of(topic: str) -> str | None:
    """Return the agent whose own topic this is, or None; what is returned is usable in `AgentTopics`.

    Args:
        topic: A topic name such as `clinic/07/up/w1/activations`, `clinic/07/state` or
            `cutlayer/workers/w1/inbox/clinic/07`.
    """
    levels = topic.split("/")
    if levels[0] == ROOT:
        is_inbox = len(levels) > 4 and levels[1] == "workers" and levels[3] == "inbox"
        return "/".join(levels[4:]) if is_inbox and _is_agent(levels[4:]) else None
    markers = [index for index, level in enumerate(levels) if level in ("up", "down")]
    if markers:
        levels = levels[: markers[0]]
    elif levels[-1] == "state":
        levels = levels[:-1]
    else:
        return None
    return "/".join(levels) if _is_agent(levels) else None


@functools.lru_cache(maxsize=65_536)
def _is_agent_root(root: str) -> bool:
    return _is_agent(root.split("/"))


def _is_agent(levels: list[str]) -> bool:
    return (
        bool(levels)
        and levels[0] != ROOT
        and len("/".join(levels)) <= MAX_AGENT_TOPIC
        and all(_LEVEL.fullmatch(level) and level not in ("up", "down") for level in levels)
    )
