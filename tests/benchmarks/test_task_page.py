"""The page of the tasks says what the results say, and nothing of other settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks.compression_page import filled
from benchmarks.disjoint_results import BEST, CHOSEN
from benchmarks.task_flops import VIT_B16, Work
from benchmarks.task_page import (
    TABLES,
    disjoint_table,
    given_both_table,
    negatives_table,
    ratio_text,
    scheme_table,
    summary_table,
    tuning_table,
    work_table,
)
from benchmarks.task_plot import draw_costs, draw_metrics
from benchmarks.task_results import Results, Row

from cutlayer.broker.task_metrics import ACCURACY, Metric

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MAE = Metric("mae", "mean absolute error", "less", "years")
WORK = Work("tiny", 10, True, 800, tokenize=100, forward=1_000, step=3_000, raw_bytes=500)


def row(
    scheme: str, seed: int, value: float, *, task: str = "digits", metric: Metric = ACCURACY, **more: object
) -> Row:
    place = "pooled" if scheme == "centralized" else "iid"
    return {
        "task": task,
        "scheme": scheme,
        "partition": place,
        "seed": seed,
        "digest": "a",
        "title": task.capitalize(),
        "metric": asdict(metric),
        "epochs": 10,
        "value": value,
        "num_train": 1_000,
        "up_bytes": 600_000,
        "down_bytes": 400_000,
        "cpu_s": 2.0,
        **more,
    }


def flops(task: str = "digits", digest: str = "a") -> Row:
    return {"task": task, "scheme": "flops", "partition": "-", "seed": 0, "digest": digest, "work": asdict(WORK)}


def three(scheme: str, *values: float, **more: object) -> list[Row]:
    return [row(scheme, seed, value, **more) for seed, value in enumerate(values)]  # type: ignore[arg-type]


ROWS: list[Row] = [
    flops(),
    *three("centralized", 0.95, 0.95, 0.95),
    *three("cutlayer", 0.94, 0.95, 0.96, total_bytes=3_000_000),
    *three(
        "fedavg",
        0.90,
        0.92,
        0.94,
        up_bytes=50_000_000,
        down_bytes=50_000_000,
        cpu_s=50.0,
        choice={"factor": 3.0, "local_epochs": 2},
    ),
    *three("local", 0.70, 0.72, 0.74, up_bytes=0, down_bytes=0, cpu_s=50.0),
]


def cells(text: str, place: int) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[2 + place].strip("|").split("|")]


def test_schemes_are_compared_seed_by_seed_with_their_interval() -> None:
    text = scheme_table(Results(ROWS).compared("digits", "iid"))
    # t of two degrees of freedom is 4.303; the standard errors are 1 / sqrt(3) and 2 / sqrt(3) points.
    assert cells(text, 0) == [
        *("Cutlayer", "3", "95.00 ± 2.48", "", "1.0 (3.0 with evaluation)", ""),
        *("0.0", "", "2.0", ""),
    ]
    federated = cells(text, 2)
    assert federated[:6] == ["federated averaging", "3", "92.00 ± 4.97", "+3.00 ± 2.48", "100.0", "100"]
    # Operations: 10 epochs of 3,100 for each of 1,000 samples, against 100 once.
    assert federated[6:] == ["0.0", "310", "50.0", "25"]


def test_the_bytes_of_centralized_training_are_those_of_the_raw_samples() -> None:
    centralized = cells(scheme_table(Results(ROWS).compared("digits", "iid")), 1)
    assert centralized[0] == "centralized"
    assert centralized[4:] == ["0.5", "0.5", "", "", "", ""]


def test_the_summary_says_how_many_times_less() -> None:
    text = summary_table(Results(ROWS))
    assert cells(text, 0) == [
        *("Digits, IID", "accuracy, %", "95.00 ± 2.48", "92.00 ± 4.97", "95.00 ± 0.00", "72.00 ± 4.97"),
        *("+3.00 ± 2.48", "+0.00 ± 2.48", "100", "310", "25"),
    ]


def test_one_seed_has_no_interval() -> None:
    rows = [flops(), row("cutlayer", 0, 0.94), row("fedavg", 0, 0.9)]
    assert cells(summary_table(Results(rows)), 0)[2:4] == ["94.00", "90.00"]


def test_only_seeds_that_both_have_are_compared() -> None:
    rows = [row("cutlayer", 0, 0.94), row("cutlayer", 1, 0.5), row("fedavg", 0, 0.9)]
    difference = Results(rows).compared("digits", "iid").difference("cutlayer", "fedavg")
    assert difference is not None
    assert difference.num_seeds == 1
    assert difference.value == pytest.approx(0.04)


def test_errors_have_their_unit_and_less_is_better() -> None:
    rows = three("cutlayer", 3.0, 3.0, task="ages", metric=MAE) + three("fedavg", 4.0, 4.0, task="ages", metric=MAE)
    found = cells(summary_table(Results(rows)), 0)
    assert found[1:4] == ["mean absolute error, years (less is better)", "3.000 ± 0.000", "4.000 ± 0.000"]
    assert found[6] == "-1.000 ± 0.000"


def test_results_of_older_settings_are_left_out() -> None:
    old = [{**entry, "digest": "old", "value": 0.1} for entry in ROWS if entry["scheme"] != "flops"]
    results = Results([*old, *ROWS])
    assert results.num_stale == len(old)
    assert results.compared("digits", "iid").value("cutlayer").value == pytest.approx(0.95)


def disjoint_rows(*tried: tuple[float, list[float], list[float]], **more: object) -> list[Row]:
    rows = []
    for factor, together, alone in tried:
        choice = {"factor": factor, "local_epochs": 1}
        for how, values in (("together", together), ("alone", alone)):
            given = {"given": ["audio", "image"], "partition": "disjoint", "choice": choice, "by_site": values}
            rows += three(f"disjoint-{how}", 0.5, 0.5, 0.5, **given, **more)
    return rows


def test_a_site_of_each_modality_is_compared_with_itself_alone() -> None:
    text = disjoint_table(Results(disjoint_rows((1.0, [0.6, 0.5], [0.5, 0.55]))))
    assert cells(text, 0)[1:] == ["1", "audio", "3", "60.00 ± 0.00", "50.00 ± 0.00", "+10.00 ± 0.00"]
    assert cells(text, 1)[-1] == "-5.00 ± 0.00"
    assert len(text.splitlines()) == 4


def test_a_site_alone_is_compared_at_its_best_learning_rate_too() -> None:
    tried = (1.0, [0.6, 0.5], [0.4, 0.4]), (0.3, [0.5, 0.5], [0.5, 0.3])
    found = [cells(disjoint_table(Results(disjoint_rows(*tried))), place) for place in range(6)]
    assert [line[1] for line in found] == ["0.3", "0.3", "1", "1", BEST, BEST]
    # Together there is one model, of rate 1; alone sounds do best with 0.3, and images with 1.
    assert found[4][4:] == ["60.00 ± 0.00", "50.00 ± 0.00", "+10.00 ± 0.00"]
    assert found[5][4:] == ["50.00 ± 0.00", "40.00 ± 0.00", "+10.00 ± 0.00"]


def test_of_an_error_the_least_is_the_best() -> None:
    tried = (1.0, [2.0, 2.0], [4.0, 4.0]), (0.3, [3.0, 3.0], [3.5, 5.0])
    found = Results(disjoint_rows(*tried, metric=MAE)).disjoint("digits")[BEST]
    assert [(set(site.together.values()), set(site.alone.values())) for site in found] == [
        ({2.0}, {3.5}),
        ({2.0}, {4.0}),
    ]


def test_a_learning_rate_of_which_one_half_is_not_there_yet_is_left_out() -> None:
    rows = disjoint_rows((1.0, [0.6, 0.5], [0.4, 0.4]), (0.3, [0.5, 0.5], [0.5, 0.3]))
    assert list(Results(rows[:-3]).disjoint("digits")) == ["1"]


def test_where_both_modalities_are_given_the_model_of_both_is_compared_with_each_and_with_their_mean() -> None:
    rows = disjoint_rows((1.0, [0.6, 0.5], [0.5, 0.55]))
    assert "60" not in given_both_table(Results(rows)), "nothing has been given both"
    for entry in rows:
        entry["given_both"] = 0.8 if entry["scheme"] == "disjoint-together" else 0.7
    found = cells(given_both_table(Results(rows)), 0)
    assert found[1:4] == ["1", "3", "80.00 ± 0.00"]
    assert found[4] == "audio: 50.00 ± 0.00, image: 55.00 ± 0.00"
    assert found[5:] == ["+30.00 ± 0.00, +25.00 ± 0.00", "70.00 ± 0.00", "+10.00 ± 0.00"]


def validated(factor: float, seed: int, pooled: float, alone: list[float]) -> list[Row]:
    more: dict[str, Any] = {"partition": "disjoint", "choice": {"factor": factor, "local_epochs": 1}}
    together = row("disjoint-together-tuning", seed, 0.0, pooled=[pooled], by_site=[0.0, 0.0], **more)
    return [together, row("disjoint-alone-tuning", seed, 0.0, pooled=alone, by_site=alone, **more)]


def test_each_seed_takes_the_learning_rate_that_its_own_validation_samples_choose() -> None:
    rows = disjoint_rows((1.0, [0.6, 0.5], [0.4, 0.45]), (0.3, [0.55, 0.4], [0.5, 0.3]))
    assert CHOSEN not in Results(rows).disjoint("digits"), "nothing has been validated"
    for seed in range(3):
        # Together the first two choose 1 and the third 0.3; alone sounds are led astray, and images are not.
        together_best = 1.0 if seed < 2 else 0.3
        rows += validated(together_best, seed, 0.7, [0.9, 0.2])
        rows += validated(0.3 if seed < 2 else 1.0, seed, 0.6, [0.8, 0.1])
    found = Results(rows).disjoint("digits")[CHOSEN]
    assert [site.together for site in found] == [{0: 0.6, 1: 0.6, 2: 0.55}, {0: 0.5, 1: 0.5, 2: 0.4}]
    assert [site.alone for site in found] == [{0: 0.4, 1: 0.4, 2: 0.5}, {0: 0.45, 1: 0.45, 2: 0.3}]


def test_negatives_of_the_window_are_compared_with_those_of_a_microbatch() -> None:
    rows = three("cutlayer", 0.4, 0.5, task="emoji") + three("cutlayer-agent-negatives", 0.1, 0.2, task="emoji")
    assert cells(negatives_table(Results(rows)), 0)[-1] == "+30.00 ± 0.00"


def test_the_table_of_operations_has_the_model_and_both_ratios() -> None:
    found = cells(work_table(Results([flops(VIT_B16)])), 0)
    assert found[:2] == [VIT_B16, "`tiny`"]
    assert found[-3:] == ["10", "31", "310"]


def test_what_was_tried_and_what_was_taken_is_told() -> None:
    tried = [
        row("fedavg-tuning", 0, value, choice={"factor": factor, "local_epochs": epochs})
        for factor, epochs, value in ((1.0, 1, 0.8), (3.0, 2, 0.9))
    ]
    pooled = row("centralized-tuning", 0, 0.7, partition="pooled", choice={"factor": 0.3, "local_epochs": 1})
    text = tuning_table(Results([*ROWS, *tried, pooled]))
    assert cells(text, 0) == ["Digits", "in one place", "0.3", "", "70.00", ""]
    assert cells(text, 1) == ["Digits", "federated averaging, IID", "1", "1", "80.00", ""]
    assert cells(text, 2) == ["Digits", "federated averaging, IID", "3", "2", "90.00", "yes"]


@pytest.mark.parametrize(
    ("value", "reference", "text"), [(453.8, 1.0, "454"), (1.25, 1.0, "1.2"), (1.0, 40.0, "0.025"), (0.0, 1.0, "")]
)
def test_ratios_are_short(value: float, reference: float, text: str) -> None:
    assert ratio_text(value, reference) == text


def test_the_page_has_a_place_for_each_table_and_none_that_is_written_by_hand() -> None:
    page = PAGE.read_text()
    results = Results(ROWS)
    again = filled(page, {name: make(results) for name, make in TABLES.items()})
    assert "| federated averaging | 3 | 92.00 ± 4.97 |" in again
    assert filled(page, {name: make(Results([])) for name, make in TABLES.items()}).count("No results yet.") == len(
        TABLES
    )


def test_pictures_are_drawn(tmp_path: Path) -> None:
    results = Results([*ROWS, *three("cutlayer", 3.0, 3.5, task="ages", metric=MAE)])
    draw_metrics(results, tmp_path / "metrics.png")
    draw_costs(results, tmp_path / "costs.png")
    sizes = [(tmp_path / name).stat().st_size for name in ("metrics.png", "costs.png")]
    assert min(sizes) > 5_000
    first = (tmp_path / "costs.png").read_bytes()
    draw_costs(results, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes() == first
