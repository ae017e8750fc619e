"""What a worker tells agents of trainable tokenizers: gradients at the cut with each commit, weights now and then.

A commit may be lost, and its gradients with it: the agent then repeats its output gradients and is told again what it
was told then. So those of the last commits are kept, as many for an agent as it can still ask for: its credits.
"""

from __future__ import annotations

from collections.abc import Iterable

from cutlayer.broker.actions import Publish, WorkerAction
from cutlayer.broker.leases import Lease
from cutlayer.broker.messages import TokenizerWeights
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.work import NamedTensors

__all__ = ["CommitMemory", "WeightsDesk"]


class CommitMemory:
    """The gradients at the cut of each agent's last commits.

    Args:
        per_agent: How many commits of an agent are kept.
    """

    def __init__(self, per_agent: int) -> None:
        self._per_agent = per_agent
        self._agents: dict[str, dict[int, NamedTensors]] = {}

    def keep(self, agent: str, step: int, tensors: NamedTensors) -> None:
        """Keep what a commit carries."""
        if not tensors:
            return
        commits = self._agents.setdefault(agent, {})
        commits[step] = tensors
        while len(commits) > self._per_agent:
            del commits[next(iter(commits))]

    def of(self, agent: str, step: int) -> NamedTensors:
        """Return what a commit has carried; nothing where that is not known any more."""
        return self._agents.get(agent, {}).get(step, ())

    def forget(self, agent: str) -> None:
        """Forget an agent that is gone."""
        self._agents.pop(agent, None)


class WeightsDesk:
    """The tokenizers' newest weights, ready to be sent.

    Attributes:
        version: Version of the weights; -1 while there are none.
    """

    def __init__(self) -> None:
        self.version = -1
        self._tensors: NamedTensors = ()

    def take(self, version: int, tensors: NamedTensors) -> None:
        """Take newer weights, or those of another worker's run."""
        self.version, self._tensors = version, tensors

    def tell(self, leases: Iterable[Lease]) -> list[WorkerAction]:
        """Send them to these agents; nothing where tokenizers are frozen."""
        if not self._tensors:
            return []
        return [
            Publish(AgentTopics(lease.agent).down_gradients, TokenizerWeights(lease.lease, self.version, self._tensors))
            for lease in leases
        ]
