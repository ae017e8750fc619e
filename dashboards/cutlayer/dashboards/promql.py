"""Queries of panels as PromQL, with the variables of the dashboards."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.catalogue import AGENT_NAMES, metric
from cutlayer.dashboards.metric_declaration import Across
from cutlayer.dashboards.query import (
    Buckets,
    Increase,
    Mean,
    Minus,
    Quantile,
    Query,
    Rate,
    Ratio,
    Selection,
    Times,
    Top,
    Value,
    Within,
    Written,
)

__all__ = ["AGENT_MATCHERS", "MATCHERS", "RATE_WINDOW", "promql"]

RATE_WINDOW: Final = "$__rate_interval"
MATCHERS: Final = 'job=~"$job",instance=~"$worker"'
"""Of every selector in a dashboard."""
AGENT_MATCHERS: Final = 'instance=~"$worker"'
"""Of selectors of `AGENT_METRICS`, which are scraped by a job of their own, less often."""


def promql(query: Query, *, matchers: str = MATCHERS, window: str = RATE_WINDOW, span: str = "$__range") -> str:
    """Write a query as PromQL.

    Args:
        query: The query.
        matchers: Label matchers of every selector; may be empty.
        window: Range of rates.
        span: Range of increases.
    """

    def write(part: Query) -> str:
        return promql(part, matchers=matchers, window=window, span=span)

    match query:
        case Value():
            return _aggregate(query, _selector(query, query.name, matchers))
        case Rate():
            return _aggregate(query, f"rate({_selector(query, query.name, matchers)}[{window}])")
        case Increase():
            return _aggregate(query, f"increase({_selector(query, query.name, matchers)}[{span}])")
        case Mean():
            sums, counts = (
                _aggregate(query, f"rate({_selector(query, query.name + end, matchers)}[{window}])")
                for end in ("_sum", "_count")
            )
            return f"{sums} / ({counts} > 0)"
        case Quantile():
            buckets = f"rate({_selector(query, query.name + '_bucket', matchers)}[{window}])"
            return f"histogram_quantile({query.share:g}, {_aggregate(query, buckets, extra=('le',))})"
        case Buckets():
            return _aggregate(
                query, f"rate({_selector(query, query.name + '_bucket', matchers)}[{window}])", extra=("le",)
            )
        case Within():
            bound = f"${query.variable}" if query.variable and matchers else repr(float(query.bound))
            below = _selector(
                query, query.name + "_bucket", ",".join(part for part in (matchers, f'le="{bound}"') if part)
            )
            count = _selector(query, query.name + "_count", matchers)
            return (
                f"{_aggregate(query, f'rate({below}[{window}])')} / "
                f"({_aggregate(query, f'rate({count}[{window}])')} > 0)"
            )
        case Written():
            return query.text.replace("MATCHERS", matchers).replace("WINDOW", window)
        case Ratio():
            return f"({write(query.above)}) / ({write(query.below)} > 0)"
        case Minus():
            return f"({write(query.first)}) - ({write(query.second)})"
        case Times():
            return f"({write(query.query)}) * {f'${query.variable}' if query.variable else f'{query.factor:g}'}"
        case Top():
            return f"topk({query.count}, {write(query.query)})"


def _aggregate(query: Selection, inner: str, extra: tuple[str, ...] = ()) -> str:
    labels = (*extra, *query.by)
    entry = metric(query.name)
    by = f" by ({', '.join(labels)})" if labels else ""
    if entry.across is Across.SUM:
        return f"sum{by} ({inner})"
    # Each worker's series first: a maximum over series of one worker would be no number of anything.
    return f"max{by} (sum by (instance{''.join(f', {label}' for label in labels)}) ({inner}))"


def _selector(query: Selection, name: str, matchers: str) -> str:
    parts = [AGENT_MATCHERS if matchers and query.name in AGENT_NAMES else matchers] if matchers else []
    for label, wanted in query.where.items():
        if isinstance(wanted, str):
            parts.append(f'{label}="{wanted}"')
        else:
            parts.append(f'{label}=~"{"|".join(wanted)}"')
    parts += [f'{label}!="{unwanted}"' for label, unwanted in query.unless.items()]
    if matchers:
        parts += [f'{label}=~"${variable}"' for label, variable in query.variables.items()]
    return f"{name}{{{','.join(parts)}}}" if parts else name
