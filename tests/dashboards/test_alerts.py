"""Each alert fires when it should, and only then: promtool runs the shipped rules against made-up histories."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cutlayer.dashboards.alerts import ALERTS, Alert, rules_text
from cutlayer.dashboards.boards import BOARDS
from dashboards.test_grafana import EXPORTED
from support.prometheus import SHIPPED, needs_prometheus, promtool
from support.promql import metric_names

pytestmark = needs_prometheus
TESTS = SHIPPED / "tests" / "alerts_test.yml"


def test_the_shipped_rules_fire_when_they_should_and_only_then() -> None:
    result = promtool("test", "rules", TESTS)
    assert result.returncode == 0, result.stdout


def test_promtool_takes_the_rules() -> None:
    result = promtool("check", "rules", "--lint-fatal", SHIPPED / "rules" / "alerts.yml")
    assert result.returncode == 0, result.stdout
    assert f"{len(ALERTS)} rules found" in result.stdout


def test_an_alert_that_never_fires_fails_the_tests(tmp_path: Path) -> None:
    """The tests of the rules would otherwise pass for an alert that none of them is about."""
    broken = tuple(replace(alert, expression=f"({alert.expression}) and on () vector(1) > 1") for alert in ALERTS)
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "rules" / "alerts.yml").write_text(rules_text(broken))
    (tmp_path / "tests" / TESTS.name).write_bytes(TESTS.read_bytes())
    result = promtool("test", "rules", tmp_path / "tests" / TESTS.name)
    assert result.returncode != 0
    assert set(re.findall(r'alertname="(\w+)"', result.stdout)) == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_reads_what_is_exported_and_says_what_to_do(alert: Alert) -> None:
    assert metric_names(alert.expression) <= EXPORTED | {"up"}
    assert re.fullmatch(r"[A-Z][A-Za-z]+", alert.name)
    assert alert.action.endswith(".")
    assert not alert.summary.endswith(".")
    assert alert.board in {board.uid for board in BOARDS}


def test_the_rules_are_yaml_with_the_label_that_the_dashboards_go_by() -> None:
    (group,) = yaml.safe_load((SHIPPED / "rules" / "alerts.yml").read_text())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [alert.name for alert in ALERTS]
    for rule, alert in zip(group["rules"], ALERTS, strict=True):
        assert rule["expr"] == alert.expression
        assert rule["labels"] == {"service": "cutlayer", "severity": alert.severity}
        assert rule["annotations"]["action"] == alert.action
