"""The one sentence that compares a run with federated averaging, whichever of the two moved less."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.run_record import RunRecord
from cutlayer.dashboards.units import bytes_text, count_text, ratio_text

__all__ = ["federated_averaging_text"]

FLOAT32_BYTES: Final = 4


def federated_averaging_text(run: RunRecord) -> str:
    """Return what federated averaging of the same model would have moved, and the factor between the two.

    The figure is the agents' model down and up in float32, each round (McMahan et al., arXiv 1602.05629); it
    grows with the model and not with the data, so a small model on few samples says little about large ones.
    """
    other = run.federated_averaging
    wire_bytes = run.bytes.total.wire
    basis = (
        f"computed from {count_text(other.parameters)} float32 parameters, {_counted(other.rounds, 'round')} and "
        f"{_counted(other.agents, 'agent')}"
    )
    whole_bytes = 2 * FLOAT32_BYTES * other.parameters * other.rounds * other.agents
    if other.bytes < 0.995 * whole_bytes:
        basis += f", of which {other.bytes / whole_bytes * 100:.0f} % were trained"
    start = f"Federated averaging would have moved {bytes_text(other.bytes)} ({basis})"
    if not wire_bytes or not other.bytes:
        return f"{start}."
    if other.bytes >= wire_bytes:
        return f"{start}: {ratio_text(other.bytes, wire_bytes)} what this run moved, evaluation included."
    return (
        f"{start}. This run moved more: {ratio_text(wire_bytes, other.bytes)} as much, evaluation included. "
        "Its bytes grow with the samples, those of federated averaging with the model."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"
