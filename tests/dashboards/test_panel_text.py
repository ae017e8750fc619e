import pytest

from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panel_text import labels_of, legend_text, panel_text, value_text
from cutlayer.dashboards.panels import Shape, Target, Unit
from cutlayer.dashboards.query import Minus, Rate, Ratio, Times, Top, Value


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0, Unit.BYTES, None, "0 B"),
        (1_234_567, Unit.BYTES, None, "1.2 MB"),
        (1_234_567, Unit.BYTES_PER_SECOND, None, "1.2 MB/s"),
        (0.0123, Unit.SECONDS, None, "12.3 ms"),
        (0.5, Unit.SHARE, None, "50.0 %"),
        (0.5, Unit.SHARE, 0, "50 %"),
        (1_234.5, Unit.PER_SECOND, None, "1,234/s"),
        (12.34, Unit.PER_SECOND, None, "12.3/s"),
        (0.256, Unit.PER_SECOND, None, "0.26/s"),
        (0, Unit.PER_SECOND, None, "0/s"),
        (3.94, Unit.TIMES, 1, "3.9x"),
        (4, Unit.PLAIN, 0, "4"),
        (12_345, Unit.COUNT, None, "12,345"),
        (1.5, Unit.MONEY, None, "$1.50"),
        (0.000012, Unit.SCIENTIFIC, None, "1.20e-05"),
    ],
)
def test_values_have_few_digits_and_their_unit(value: float, unit: Unit, decimals: int | None, text: str) -> None:
    assert value_text(value, unit, decimals) == text


@pytest.mark.parametrize("unit", list(Unit))
def test_every_unit_of_a_panel_can_be_written(unit: Unit) -> None:
    assert value_text(0.25, unit)


def test_legend_names_the_labels_that_the_query_keeps() -> None:
    rates = Top(Rate("cutlayer_wire_bytes_total", ("direction", "kind")), 6)
    target = Target(rates, "{{kind}} {{direction}} {{other}}")
    assert labels_of(rates) == ("direction", "kind")
    assert legend_text(target, ("up", "Activations")) == "Activations up {{other}}"


def test_label_value_that_looks_like_a_placeholder_stays_as_it_is() -> None:
    target = Target(Value("cutlayer_agent_round_trip_seconds", ("agent", "share")), "{{agent}}")
    assert legend_text(target, ("{{share}}", "0.5")) == "{{share}}"


def test_labels_of_a_tree_are_those_of_its_leaves() -> None:
    value = Value("cutlayer_loss", ("split",))
    assert labels_of(Ratio(value, value)) == labels_of(Minus(value, value)) == labels_of(Times(value, 2)) == ("split",)


def test_every_number_of_the_overview_can_be_shown() -> None:
    for panel in OVERVIEW.panels:
        if panel.shape is Shape.NUMBER:
            assert panel_text(panel, 0.0)
