"""Queries of dashboards as Prometheus gets them: variables replaced, names of metrics read from the syntax tree."""

from __future__ import annotations

import re
from collections.abc import Mapping

import promql_parser

__all__ = ["DEFAULTS", "metric_names", "selectors", "with_variables"]

DEFAULTS: Mapping[str, str] = {
    "__rate_interval": "15s",
    "__range": "60s",
    "job": ".+",
    "worker": ".+",
    "codec": ".+",
    "agent": ".+",
    "slo": "1.0",
    "price_per_gb": "0.09",
}
"""What stands for each variable where nobody chooses."""


def with_variables(expression: str, **values: str) -> str:
    """Replace variables as Grafana does.

    Raises:
        KeyError: For a variable that no dashboard has.
    """
    chosen = {**DEFAULTS, **values}
    return re.sub(r"\$(\w+)", lambda found: chosen[found.group(1)], expression)


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Return all selectors of series in an expression.

    Raises:
        ValueError: When it is no PromQL.
    """
    found: list[promql_parser.VectorSelector] = []

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)
        elif isinstance(part, promql_parser.MatrixSelector):
            found.append(part.vector_selector)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def metric_names(expression: str) -> set[str]:
    """Return the names of all series that an expression reads."""
    return {selector.name for selector in selectors(expression) if selector.name is not None}
