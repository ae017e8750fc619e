"""How an agent behaves, chosen once at the edge of the program."""

from __future__ import annotations

from dataclasses import dataclass, field

from cutlayer.broker.agent_session import Deadlines
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.edge_agent.visit import Visit

__all__ = ["AgentOptions"]


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How an agent behaves.

    Attributes:
        connect_timeout_s: How long the first connection is tried.
        deadlines: When messages are sent again.
        software: Version for the worker's log.
        may_be_kept: Whether workers may keep this site's activations, where the run lets them.
        max_uplink_bytes_per_s: Limit of what it sends; None for none.
        visit: What it has the model do with its samples, where it trains nothing; None for taking part in the run.
        site: What the site has of the model by itself.
    """

    connect_timeout_s: float = 20.0
    deadlines: Deadlines = field(default_factory=Deadlines)
    software: str = ""
    may_be_kept: bool = True
    max_uplink_bytes_per_s: float | None = None
    visit: Visit | None = None
    site: SiteParts = field(default_factory=SiteParts)
