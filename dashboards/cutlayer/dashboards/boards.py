"""All boards, in the order of their links."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.broker_board import BROKER_AND_POOL
from cutlayer.dashboards.communication_board import COMMUNICATION
from cutlayer.dashboards.latency_board import LATENCY
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panels import Board
from cutlayer.dashboards.sites_board import SITES

__all__ = ["BOARDS"]

BOARDS: Final[tuple[Board, ...]] = (OVERVIEW, COMMUNICATION, LATENCY, SITES, BROKER_AND_POOL)
