"""What sites that share no modality reach together and alone: the rows of `task_disjoint`, by learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.task_disjoint import SCHEMES, TUNING

Row = dict[str, Any]
BEST = "each one's best"
CHOSEN = "chosen by each one's validation samples"


@dataclass(frozen=True, slots=True)
class DisjointSite:
    """One site's metric, given its own modality.

    Attributes:
        given: The modality.
        together: By seed, of the model that both sites trained.
        alone: By seed, of the site's own.
    """

    given: str
    together: Mapping[int, float]
    alone: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class GivenBoth:
    """The metric of samples of which both modalities are given, by seed; and of each site's own model, given its own.

    Attributes:
        together: Of the model that both sites trained.
        mean: Of the mean of what both sites' own models say.
        alone: Of each site's own, by the modality it is given.
    """

    together: Mapping[int, float]
    mean: Mapping[int, float]
    alone: Mapping[str, Mapping[int, float]]


def compare_given_both(rows: Sequence[Row]) -> dict[str, GivenBoth]:
    """Return what the models of a task do given both modalities, by learning rate as a factor on the run's.

    Args:
        rows: Those of one task.
    """
    found: dict[float, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if "given_both" in row:
            by_scheme = found.setdefault(row["choice"]["factor"], {scheme: {} for scheme in SCHEMES})
            by_scheme[row["scheme"]][int(row["seed"])] = row
    by_rate = {}
    for factor, by_scheme in sorted(found.items()):
        together, alone = (by_scheme[scheme] for scheme in SCHEMES)
        if together and alone:
            names = next(iter(alone.values()))["given"]
            by_rate[f"{factor:g}"] = GivenBoth(
                {seed: row["given_both"] for seed, row in together.items()},
                {seed: row["given_both"] for seed, row in alone.items()},
                {name: _values(alone, place) for place, name in enumerate(names)},
            )
    return by_rate


def compare_disjoint(rows: Sequence[Row], *, is_more_better: bool) -> dict[str, list[DisjointSite]]:
    """Return the sites by learning rate, as a factor on the run's, and by `BEST` and `CHOSEN` where several were tried.

    With `BEST` each takes the rate that has the best mean over the seeds: a site alone its own; together there is one
    model, so that it takes the best mean over both sites. With `CHOSEN` each takes, seed by seed, the rate that was
    best on its validation samples: a site alone on its own, together on those of both.

    Args:
        rows: Those of one task.
        is_more_better: Whether more of its metric is better.
    """
    found: dict[float, dict[str, dict[int, Row]]] = {}
    for row in rows:
        by_scheme = found.setdefault(row["choice"]["factor"], {scheme: {} for scheme in (*SCHEMES, *TUNING)})
        by_scheme[row["scheme"]][int(row["seed"])] = row
    by_rate: dict[str, list[DisjointSite]] = {}
    for factor, by_scheme in sorted(found.items()):
        together, alone = (by_scheme[scheme] for scheme in SCHEMES)
        if not together or not alone:
            continue
        names = next(iter(together.values()))["given"]
        by_rate[f"{factor:g}"] = [
            DisjointSite(name, _values(together, place), _values(alone, place)) for place, name in enumerate(names)
        ]
    if len(by_rate) > 1:
        sign = 1 if is_more_better else -1
        by_rate[BEST] = _best(list(by_rate.values()), sign)
        if sites := _chosen(by_rate[BEST], [by_scheme for _, by_scheme in sorted(found.items())], sign):
            by_rate[CHOSEN] = sites
    return by_rate


def _values(by_seed: Mapping[int, Row], place: int) -> dict[int, float]:
    return {seed: row["by_site"][place] for seed, row in by_seed.items()}


def _best(tried: Sequence[Sequence[DisjointSite]], sign: int) -> list[DisjointSite]:
    def mean(*values: Mapping[int, float]) -> float:
        return sign * statistics.fmean(statistics.fmean(each.values()) for each in values)

    shared = max(tried, key=lambda sites: mean(*(site.together for site in sites)))
    return [
        DisjointSite(site.given, site.together, max((sites[place].alone for sites in tried), key=mean))
        for place, site in enumerate(shared)
    ]


def _chosen(
    sites: Sequence[DisjointSite], tried: Sequence[Mapping[str, Mapping[int, Row]]], sign: int
) -> list[DisjointSite]:
    """Return the sites with the rate that each seed's validation chooses; of the seeds of which everything is there."""
    schemes = (*SCHEMES, *TUNING)
    seeds = set.intersection(*(set(by_scheme[scheme]) for by_scheme in tried for scheme in schemes))
    (together, alone), (together_tuning, alone_tuning) = SCHEMES, TUNING

    def best(seed: int, scheme: str, values: str, place: int) -> Mapping[str, Mapping[int, Row]]:
        return max(tried, key=lambda by_scheme: sign * by_scheme[scheme][seed][values][place])

    found = []
    for place, site in enumerate(sites):
        shared = {seed: best(seed, together_tuning, "pooled", 0) for seed in seeds}
        own = {seed: best(seed, alone_tuning, "by_site", place) for seed in seeds}
        found.append(
            DisjointSite(
                site.given,
                {seed: by_scheme[together][seed]["by_site"][place] for seed, by_scheme in shared.items()},
                {seed: by_scheme[alone][seed]["by_site"][place] for seed, by_scheme in own.items()},
            )
        )
    return found if seeds else []
