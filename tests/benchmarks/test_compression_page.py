"""The page's tables and picture say what the results say, and nothing else changes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from benchmarks.compression_page import TRAINING_TABLES, filled, headline_table, reduction_table, table, training_table
from benchmarks.compression_plot import draw
from benchmarks.compression_results import Row, Trainings, read_trainings
from benchmarks.compression_tensor_tables import TENSOR_TABLES
from benchmarks.compression_tensors import byte_entropy
from benchmarks.compression_training import SCHEMES

PAGE = Path(__file__).parents[2] / "docs" / "compression.md"


def rows_of(scheme: str, num_bytes: int, *accuracies: float) -> list[Row]:
    return [
        {
            "scheme": scheme,
            "seed": seed,
            "accuracy": accuracy,
            "up_bytes": num_bytes - 1,
            "down_bytes": 1,
            "num_train": 1000,
        }
        for seed, accuracy in enumerate(accuracies)
    ]


def cells(text: str, row: int) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[2 + row].strip("|").split("|")]


def test_a_scheme_is_compared_with_float32_in_its_own_setting() -> None:
    trainings = read_trainings(
        rows_of("paper", 300_000_000, 0.94, 0.95, 0.96)
        + rows_of("once-lowrank-0.1", 2_000_000, 0.93, 0.95, 0.94)
        + rows_of("trained-fp32", 600_000_000, 0.97, 0.97, 0.97)
        + rows_of("trained-lowrank-0.1", 20_000_000, 0.96, 0.96, 0.96)
    )
    once, trained = cells(headline_table(trainings), 0), cells(headline_table(trainings), 1)
    # -1, 0 and -2 points: the standard error is 1 / sqrt(3), t of two degrees of freedom 4.303.
    assert once[1:] == ["3", "-1.00 ± 2.48", "246", "150", "2,000", "14 %"]
    assert trained[1:] == ["3", "-1.00 ± 0.00", "25", "30", "20,000", "136 %"]


def test_the_reference_is_not_compared_with_itself() -> None:
    text = training_table(read_trainings(rows_of("paper", 300_000_000, 0.9, 0.92)))
    assert cells(text, 0) == [
        *("float32", "frozen, every step", "2", "91.00 (1.00)", "", "300.0", "300,000", "1.6", "1.0")
    ]


def test_schemes_without_their_reference_have_no_difference() -> None:
    text = training_table(read_trainings(rows_of("once-int8", 30_000_000, 0.9)))
    assert cells(text, 0)[3:5] == ["90.00", ""]
    assert cells(text, 0)[-1] == ""


def test_fewer_tokens_are_compared_with_all_of_them() -> None:
    text = reduction_table(
        read_trainings(rows_of("once-int8", 30_000_000, 0.9, 0.9) + rows_of("once-merge-half", 15_000_000, 0.89, 0.89))
    )
    assert cells(text, 1)[2:] == ["89.00", "-1.00 ± 0.00", "15.0", "50 %"]


def test_schemes_are_drawn_by_the_seeds_that_all_have() -> None:
    trainings = read_trainings(rows_of("paper", 300, 0.9, 0.8, 0.1) + rows_of("once-int8", 30, 0.9, 0.7))
    common = trainings.of_common_seeds()
    assert common.accuracy("paper").value == pytest.approx(0.85)
    assert common.accuracy("once-int8").value == pytest.approx(0.8)
    assert read_trainings([]).of_common_seeds().names == []


def test_results_of_an_unknown_scheme_are_refused() -> None:
    with pytest.raises(ValueError, match="no scheme 'carrier-pigeon'"):
        read_trainings(rows_of("carrier-pigeon", 1, 1.0))


def test_only_what_is_between_the_markers_changes() -> None:
    page = "before\n<!-- table: a -->\nold\n<!-- end -->\nbetween\n<!-- table: b -->\n<!-- end -->\nafter\n"
    once = filled(page, {"a": table(["x"], [["1"]]), "b": table(["y"], [])})
    assert once.startswith("before\n<!-- table: a -->\n\n| x |\n| --- |\n| 1 |\n\n<!-- end -->\nbetween\n")
    assert "old" not in once
    assert once.endswith("No results yet.\n\n<!-- end -->\nafter\n")
    assert filled(once, {"a": table(["x"], [["1"]]), "b": table(["y"], [])}) == once


def test_a_table_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="around each table's place"):
        filled("no place\n", {"a": ""})


def test_the_page_has_a_place_for_every_table() -> None:
    names = re.findall(r"<!-- table: ([a-z-]+) -->", PAGE.read_text(encoding="utf-8"))
    assert sorted(names) == sorted([*TENSOR_TABLES, *TRAINING_TABLES])


def test_tensors_of_both_modalities_share_a_row() -> None:
    measured = {"kind": "activations", "codec": "int8", "entropy_bits": 7.5, "encode_mb_s": 1234.0}
    rows = [
        {**measured, "modality": "image", "bytes_per_element": 1.0, "decode_mb_s": 5.55, "relative_error": 0.0},
        {**measured, "modality": "audio", "bytes_per_element": 0.12345, "decode_mb_s": 55.5, "relative_error": 0.0123},
    ]
    head, body = TENSOR_TABLES["activations"](rows)
    assert head[1] == "bytes an element: image, audio"
    assert body == [["`int8`", "1, 0.123", "7.50, 7.50", "1,200, 1,200", "5.5, 56", "0, 0.012"]]


def test_entropy_is_of_single_bytes_in_all_messages_together() -> None:
    assert byte_entropy([b"\x00\x01", b"\x01\x00"]) == 1.0
    assert byte_entropy([bytes(range(256))]) == 8.0
    assert byte_entropy([b"\x07" * 9]) == 0.0
    assert byte_entropy([b"aaab"]) == pytest.approx(-0.75 * math.log2(0.75) + 0.5)


def all_schemes(spread: float) -> Trainings:
    rows: list[Row] = []
    for place, name in enumerate(SCHEMES):
        accuracy = 0.94 + spread * (place % 5)
        rows += rows_of(name, round(3e6 * 1.3**place), accuracy, accuracy + 0.003, accuracy - 0.003)
    return read_trainings(rows)


@pytest.mark.parametrize("spread", [0.002, 0.01])
def test_every_scheme_of_a_crowded_picture_has_a_label_of_its_own(spread: float, tmp_path: Path) -> None:
    # `draw` raises where a label has no free place.
    draw(all_schemes(spread), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_results_draw_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw(all_schemes(0.002), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
