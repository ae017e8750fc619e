"""The fields above a dashboard, each restricted by those before it, and the marks on its time axis."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.communication_board import DEFAULT_PRICE_PER_GB, PRICE_VARIABLE
from cutlayer.dashboards.grafana_panels import DATASOURCE, Json
from cutlayer.dashboards.latency_board import DEFAULT_SLO_S, SLO_VARIABLE
from cutlayer.dashboards.panels import Board
from cutlayer.dashboards.promql import AGENT_MATCHERS, MATCHERS, promql
from cutlayer.dashboards.sites_board import SITE_VARIABLE

__all__ = ["time_marks", "variables"]

SLO_CHOICES_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the round trip's buckets: a share within anything else could only be guessed."""
WORKER_MATCHERS: Final = 'job=~"$job"'
MARK_STEP: Final = "15s"


def variables(board: Board) -> list[Json]:
    """Return the variables that a board's queries use, in the order of their chain."""
    text = " ".join(promql(target.query) for panel in board.panels for target in panel.targets)
    found = [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "regex": "",
            "current": {},
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "options": [],
            "refresh": 1,
            "skipUrlSync": False,
        },
        _queried("job", "Job", "label_values(cutlayer_build_info, job)"),
        _queried("worker", "Worker", f"label_values(cutlayer_build_info{{{WORKER_MATCHERS}}}, instance)"),
    ]
    optional = {
        "codec": _queried(
            "codec", "Codec", f'label_values(cutlayer_raw_bytes_total{{{MATCHERS},codec!="none"}}, codec)', every=None
        ),
        SITE_VARIABLE: _queried(
            SITE_VARIABLE, "Site", f"label_values(cutlayer_agent_wire_bytes_total{{{AGENT_MATCHERS}}}, agent)"
        ),
        SLO_VARIABLE: _slo(),
        PRICE_VARIABLE: _price(),
    }
    return found + [variable for name, variable in optional.items() if f"${name}" in text]


def _queried(name: str, label: str, query: str, every: str | None = ".+") -> Json:
    """Return a variable that Prometheus knows the values of: several may be chosen, all are at first.

    `every` is what stands for all of them, None for their list: a codec's must not match messages that have none.
    """
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "regex": "",
        "allValue": every,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,
        "skipUrlSync": False,
        "sort": 1,
    }


def _slo() -> Json:
    def text(seconds: float) -> str:
        return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"

    options = [
        {"selected": seconds == DEFAULT_SLO_S, "text": text(seconds), "value": repr(seconds)}
        for seconds in SLO_CHOICES_S
    ]
    return {
        "name": SLO_VARIABLE,
        "label": "Target for the round trip",
        "type": "custom",
        "query": ", ".join(f"{option['text']} : {option['value']}" for option in options),
        "current": next(option for option in options if option["selected"]),
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": options,
        "skipUrlSync": False,
    }


def _price() -> Json:
    price = {"selected": True, "text": repr(DEFAULT_PRICE_PER_GB), "value": repr(DEFAULT_PRICE_PER_GB)}
    return {
        "name": PRICE_VARIABLE,
        "label": "Price per GB ($)",
        "type": "textbox",
        "query": repr(DEFAULT_PRICE_PER_GB),
        "current": price,
        "hide": 0,
        "options": [price],
        "skipUrlSync": False,
    }


def time_marks() -> list[Json]:
    """Return the marks of every dashboard: what happened, beside what it did to the figures."""
    phase = f"max by (phase) (cutlayer_run_phase{{{MATCHERS}}}"
    epochs = f"floor(max(cutlayer_run_epochs{{{MATCHERS}}}"
    return [
        _mark(
            "Worker started again",
            "orange",
            f"changes(process_start_time_seconds{{{MATCHERS}}}[1m]) > 0",
            "{{instance}} has started again",
        ),
        _mark("Alerts", "red", 'ALERTS{alertstate="firing",service="cutlayer"}', "{{alertname}}"),
        _mark("Phases", "purple", f"{phase}) == 1 unless {phase} offset {MARK_STEP}) == 1", "the run is {{phase}}"),
        _mark("Epochs", "green", f"{epochs})) > {epochs} offset {MARK_STEP}))", "an epoch is done", is_on=False),
    ]


def _mark(name: str, colour: str, expression: str, title: str, *, is_on: bool = True) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": is_on,
        "expr": expression,
        "hide": False,
        "iconColor": colour,
        "step": MARK_STEP,
        "titleFormat": title,
        "useValueForTime": False,
    }
