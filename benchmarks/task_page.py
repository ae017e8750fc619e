"""Writes the tables of docs/benchmarks.md, between their markers, and its pictures, from the results.

The same results give the same page. Nothing of it that is measured is written by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.compression_page import filled, table
from benchmarks.compression_statistics import Mean, mean_of, paired_difference
from benchmarks.task_plot import draw_costs, draw_metrics
from benchmarks.task_results import PARTITION_TITLES, POOLED, TITLES, Compared, Results
from benchmarks.task_training import RESULTS, read_rows

from cutlayer.broker.task_metrics import Metric

GIGA, MEGA = 1e9, 1e6


def value_text(mean: Mean, metric: Metric) -> str:
    """Return a mean of a metric with its 95 % interval, in percent where it is a share."""
    return _with_interval(mean, metric, "")


def difference_text(mean: Mean | None, metric: Metric) -> str:
    """Return a difference of a metric with its 95 % interval, in points where it is a share."""
    return "" if mean is None else _with_interval(mean, metric, "+")


def _with_interval(mean: Mean, metric: Metric, sign: str) -> str:
    scale, places = (100, 2) if metric.is_share else (1, 3)
    half_width = mean.half_width()
    interval = "" if half_width is None else f" ± {scale * half_width:.{places}f}"
    return f"{scale * mean.value:{sign}.{places}f}{interval}"


def _called(metric: Metric) -> str:
    unit = "%" if metric.is_share else metric.unit
    return f"{metric.title}, {unit}" if unit else metric.title


def _points(metric: Metric) -> str:
    return "points" if metric.is_share else metric.unit or "of it"


def ratio_text(value: float | None, reference: float | None) -> str:
    """Return how many times a reference a value is; nothing where there is none of the two."""
    if not value or not reference:
        return ""
    ratio = value / reference
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2g}"


def scheme_table(compared: Compared) -> str:
    """Return the table of a task under a partition."""
    metric = compared.metric
    own = "cutlayer" if "cutlayer" in compared.rows else None
    rows = []
    for scheme in compared.schemes:
        mean = compared.value(scheme)
        costs = (compared.num_bytes, compared.flops, compared.cpu_s)
        values = [cost(scheme) for cost in costs]
        of_own = [cost(own) if own is not None else None for cost in costs]
        ratios = ["" if scheme == own else ratio_text(*pair) for pair in zip(values, of_own, strict=True)]
        rows.append(
            [
                TITLES[scheme],
                str(mean.num_seeds),
                value_text(mean, metric),
                "" if own is None or scheme == own else difference_text(compared.difference(own, scheme), metric),
                _bytes_text(compared, scheme),
                ratios[0],
                "" if values[1] is None else f"{values[1] / GIGA:,.1f}",
                ratios[1],
                "" if values[2] is None else f"{values[2]:,.1f}",
                ratios[2],
            ]
        )
    return table(
        [
            "scheme",
            "seeds",
            _called(metric),
            f"Cutlayer minus it, {_points(metric)}",
            "bytes, MB",
            "x Cutlayer's",
            "sites' operations, GFLOP",
            "x Cutlayer's",
            "sites' processor seconds",
            "x Cutlayer's",
        ],
        rows,
    )


def _bytes_text(compared: Compared, scheme: str) -> str:
    moved = compared.num_bytes(scheme)
    if moved is None:
        return ""
    text = f"{moved / MEGA:,.1f}" if moved >= MEGA / 10 or not moved else f"{moved / MEGA:,.3f}"
    whole = compared.bytes_with_evaluation(scheme)
    return text if whole is None else f"{text} ({whole / MEGA:,.1f} with evaluation)"


def task_tables(results: Results) -> str:
    """Return each task's tables, with headings."""
    parts = [
        f"### {results.title(task)}, {PARTITION_TITLES[partition]}\n\n"
        + scheme_table(results.compared(task, partition))
        for task in results.tasks
        for partition in results.partitions(task)
    ]
    return "\n".join(parts) if parts else table([], [])


def summary_table(results: Results) -> str:
    """Return a line for each task and partition."""
    rows = []
    for task in results.tasks:
        for partition in results.partitions(task):
            compared = results.compared(task, partition)
            metric = compared.metric
            if not {"cutlayer", "fedavg"} <= compared.rows.keys():
                continue
            means = [
                value_text(compared.value(scheme), metric) if scheme in compared.rows else ""
                for scheme in ("cutlayer", "fedavg", "centralized", "local")
            ]
            differences = [
                difference_text(compared.difference("cutlayer", scheme), metric) for scheme in ("fedavg", "centralized")
            ]
            costs = [
                ratio_text(cost("fedavg"), cost("cutlayer"))
                for cost in (compared.num_bytes, compared.flops, compared.cpu_s)
            ]
            name = f"{results.title(task)}, {PARTITION_TITLES[partition]}"
            better = "" if metric.better == "more" else " (less is better)"
            rows.append([name, f"{_called(metric)}{better}", *means, *differences, *costs])
    return table(
        [
            "task",
            "metric",
            *("Cutlayer", "federated", "centralized", "each alone"),
            *("Cutlayer minus federated", "Cutlayer minus centralized"),
            *("times fewer bytes", "times fewer operations at sites", "times fewer processor seconds"),
        ],
        rows,
    )


def pictures(results: Results) -> str:
    """Return the places of the pictures, once there is something to draw."""
    if not results.tasks:
        return table([], [])
    return (
        "![Each task's metric, a point a scheme](img/benchmarks-metrics.png)\n\n"
        "![What each scheme costs the sites](img/benchmarks-costs.png)\n"
    )


def work_table(results: Results) -> str:
    """Return what a training sample costs a site, and the ratio of both ways."""
    rows = [
        [
            task,
            f"`{work.model}`",
            f"{work.num_parameters:,}",
            f"{work.tokenize / MEGA:,.2f}",
            f"{work.forward / MEGA:,.1f}",
            f"{work.step / MEGA:,.1f}",
            f"{work.step / work.forward:.2f}",
            str(work.epochs),
            ratio_text(work.ratio(is_sent_once=False), 1.0) if work.tokenize else "no products",
            ratio_text(work.ratio(is_sent_once=True), 1.0) if work.tokenize else "no products",
        ]
        for task, work in results.works().items()
    ]
    head = ["task", "model", "trained parameters", "agent: tokenize, MFLOP", "client: forward, MFLOP"]
    head += ["forward and backward, MFLOP", "x forward", "epochs"]
    head += ["client / agent, sent every epoch", "client / agent, sent once"]
    return table(head, rows)


def tuning_table(results: Results) -> str:
    """Return what was tried, by the metric on the validation samples."""
    rows = []
    for task in results.tasks:
        for partition in (POOLED, *results.partitions(task)):
            tried = results.tunings(task, partition)
            metric, whom = results.metric(task), "centralized" if partition == POOLED else "fedavg"
            taken = {
                (row["choice"]["factor"], row["choice"]["local_epochs"])
                for row in results.compared(task, partition).rows.get(whom, {}).values()
                if "choice" in row
            }
            for row in sorted(tried, key=lambda row: (row["choice"]["local_epochs"], row["choice"]["factor"])):
                choice = (row["choice"]["factor"], row["choice"]["local_epochs"])
                value = "diverged" if row["value"] is None else value_text(mean_of([row["value"]]), metric)
                place = "in one place" if partition == POOLED else f"federated averaging, {PARTITION_TITLES[partition]}"
                epochs = "" if partition == POOLED else str(choice[1])
                mark = "yes" if choice in taken else ""
                rows.append([results.title(task), place, f"{choice[0]:g}", epochs, value, mark])
    head = ["task", "training", "learning rate x the run's", "local epochs", "metric on validation samples", "taken"]
    return table(head, rows)


def disjoint_table(results: Results) -> str:
    """Return what sites with one modality each gain from each other."""
    rows = [
        [
            f"{results.title(task)}, {_called(results.metric(task))}",
            rate,
            site.given,
            str(len(site.together.keys() & site.alone.keys())),
            *(value_text(mean_of(each.values()), results.metric(task)) for each in (site.together, site.alone)),
            difference_text(paired_difference(site.together, site.alone), results.metric(task)),
        ]
        for task in results.tasks
        for rate, sites in results.disjoint(task).items()
        for site in sites
    ]
    head = ["task", "learning rate x the run's", "site with", "seeds", "together", "alone", "together minus alone"]
    return table(head, rows)


def given_both_table(results: Results) -> str:
    """Return what the model of sites with one modality each does where both are known."""
    rows = []
    for task in results.tasks:
        metric = results.metric(task)
        for rate, found in results.given_both(task).items():
            alone = ", ".join(
                f"{name}: {value_text(mean_of(own.values()), metric)}" for name, own in found.alone.items()
            )
            gains = [difference_text(paired_difference(found.together, own), metric) for own in found.alone.values()]
            rows.append(
                [
                    f"{results.title(task)}, {_called(metric)}",
                    rate,
                    str(len(found.together.keys() & found.mean.keys())),
                    value_text(mean_of(found.together.values()), metric),
                    alone,
                    ", ".join(gains),
                    value_text(mean_of(found.mean.values()), metric),
                    difference_text(paired_difference(found.together, found.mean), metric),
                ]
            )
    head = ["task", "learning rate x the run's", "seeds", "the model of both, given both", "each alone, given its own"]
    head += ["minus each alone", "mean of both alone", "minus that mean"]
    return table(head, rows)


def negatives_table(results: Results) -> str:
    """Return what negatives of the whole window bring against those of a microbatch."""
    rows = []
    for task in results.tasks:
        for partition in results.partitions(task):
            compared = results.compared(task, partition)
            other = "cutlayer-agent-negatives"
            if not {"cutlayer", other} <= compared.rows.keys():
                continue
            means = [value_text(compared.value(scheme), compared.metric) for scheme in ("cutlayer", other)]
            difference = difference_text(compared.difference("cutlayer", other), compared.metric)
            name = f"{results.title(task)}, {PARTITION_TITLES[partition]}"
            rows.append([name, _called(compared.metric), *means, difference])
    return table(["task", "metric", "window's negatives", "microbatch's negatives", "difference"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary_table,
    "pictures": pictures,
    "tasks": task_tables,
    "work": work_table,
    "negatives": negatives_table,
    "disjoint": disjoint_table,
    "given-both": given_both_table,
    "tuning": tuning_table,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/img"))
    arguments = parser.parse_args()
    results = Results(read_rows(arguments.results))
    page = arguments.page.read_text(encoding="utf-8")
    tables = {name: make(results) for name, make in TABLES.items()}
    arguments.page.write_text(filled(page, tables), encoding="utf-8")
    if results.tasks:
        draw_metrics(results, arguments.pictures / "benchmarks-metrics.png")
        draw_costs(results, arguments.pictures / "benchmarks-costs.png")
    stale = f", {results.num_stale} lines of other settings left out" if results.num_stale else ""
    print(f"{arguments.page}: {len(results.tasks)} tasks{stale}")


if __name__ == "__main__":
    main()
