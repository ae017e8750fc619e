"""A plan for people, within 80 columns, and for scripts."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table

from cutlayer.dashboards.units import bytes_text, count_text, duration_text, latency_text
from cutlayer.edge_agent.rate_text import rate_text
from cutlayer.simulation.plan import Part, RunPlan, SitePlan
from cutlayer.simulation.plan_comparison import verdicts
from cutlayer.simulation.plan_report import PlanReport
from cutlayer.simulation.plan_schedule import Stage
from cutlayer.simulation.plan_wire import Ways

__all__ = ["as_json", "print_plan"]

MAX_SITES_SHOWN = 8
_MODES: Final = {"once": "once", "every-step": "every step", "delta": "as changes"}
_LATER: Final = {
    "once": "references to what was sent",
    "every-step": str(Part.ACTIVATIONS),
    "delta": "changes of activations",
}


def print_plan(console: Console, report: PlanReport) -> None:
    """Print a plan."""
    plan, manifest = report.comparison.plan, report.comparison.plan.manifest
    console.print(
        f"{manifest.model}: {count_text(report.comparison.model.num_parameters)} parameters; "
        f"{len(plan.sites)} agents, {_samples(plan)} samples, {manifest.epochs} epochs; "
        f"activations {_MODES[plan.mode]}, as {manifest.codecs.activations}; "
        f"tokenizers {manifest.tokenizers.mode}.",
        highlight=False,
    )
    if report.is_bound:
        console.print(
            "No data were given, so tensors are reckoned as large as their codec can make them: an upper bound "
            "where its size depends on the data.",
            highlight=False,
        )
    console.print(_parts_table(report))
    console.print(_sites_table(report))
    console.print(_ways_table(report))
    console.print()
    lines = Table.grid(padding=(0, 1))
    for line in [*verdicts(report.comparison), *_times(report), *_work(report), *report.notes]:
        lines.add_row("-", line)
    console.print(lines, highlight=False)


def _samples(plan: RunPlan) -> str:
    parts = [f"{count_text(plan.num_train)} training", f"{count_text(plan.num_test)} test"]
    if plan.num_val:
        parts.insert(1, f"{count_text(plan.num_val)} validation")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _parts_table(report: PlanReport) -> Table:
    plan = report.comparison.plan
    epochs, num_train = plan.manifest.epochs, plan.num_train
    table = _table("\nAll agents together", "", "up", "down", "total", "a sample")

    def row(name: str, ways: Ways, num_samples: int | None = None, style: str | None = None) -> None:
        a_sample = bytes_text(ways.both / num_samples) if num_samples else ""
        table.add_row(name, *_sizes(ways), a_sample, style=style)

    row("first epoch", plan.of_stage(Stage.FIRST_EPOCH), num_train)
    row(f"  {Part.ACTIVATIONS}", plan.of_stage(Stage.FIRST_EPOCH, Part.ACTIVATIONS), num_train, "dim")
    row(f"  {Part.ANSWERS}", plan.of_stage(Stage.FIRST_EPOCH, Part.ANSWERS), num_train, "dim")
    if epochs > 1:
        each = 1 / (epochs - 1)
        row("each later epoch", plan.of_stage(Stage.LATER_EPOCHS) * each, num_train)
        row(f"  {_LATER[plan.mode]}", plan.of_stage(Stage.LATER_EPOCHS, Part.ACTIVATIONS) * each, num_train, "dim")
        row(f"  {Part.ANSWERS}", plan.of_stage(Stage.LATER_EPOCHS, Part.ANSWERS) * each, num_train, "dim")
    row("all evaluations", plan.of_stage(Stage.EVALUATION), plan.num_test + plan.num_val or None)
    if plan.manifest.tokenizers.mode == "trainable":
        row("tokenizers' gradients, weights", plan.tokenizers)
    row("joining and leaving", plan.presence)
    row("reports (an estimate)", plan.reports)
    row("the whole run", plan.whole, num_train, "bold")
    return table


def _sites_table(report: PlanReport) -> Table:
    sites = report.comparison.plan.sites
    table = _table("\nEach agent, whole run", "", "samples", "up", "down", "total", "time on its link")
    if len(sites) <= MAX_SITES_SHOWN:
        shown = [(site.agent, site) for site in sites]
    else:
        ordered = sorted(sites, key=lambda site: site.whole.both)
        places = {"the least": 0, "the median": len(sites) // 2, "the most": -1}
        shown = [(f"{name}: {ordered[place].agent}", ordered[place]) for name, place in places.items()]
    for name, site in shown:
        table.add_row(name, count_text(site.num_train), *_sizes(site.whole), duration_text(report.transfer_s(site)))
    return table


def _ways_table(report: PlanReport) -> Table:
    comparison = report.comparison
    plan, num_sites = comparison.plan, len(comparison.plan.sites)
    table = _table("\nAll agents, whole run, beside other ways", "", "up", "down", "total", "FLOPs a sample")
    flops_text = "-" if comparison.flops_ratio is None else _flops_text(comparison.agent_flops)
    table.add_row("Cutlayer", *_sizes(plan.whole), flops_text, style="bold")
    for kind in comparison.federated:
        flops = kind.flops * plan.manifest.epochs
        ways = Ways(kind.up_bytes, kind.down_bytes) * num_sites
        table.add_row(f"federated, {kind.name}", *_sizes(ways), _flops_text(flops))
    table.add_row("raw data, once", *_sizes(Ways(up=comparison.raw_bytes)), "-")
    return table


def _times(report: PlanReport) -> list[str]:
    plan, conditions = report.comparison.plan, report.conditions
    lines = []
    if plan.transfer_s is not None and conditions.up_rate is not None and conditions.down_rate is not None:
        lines.append(
            f"On a link of {rate_text(conditions.up_rate)} up and {rate_text(conditions.down_rate)} down the slowest "
            f"agent's bytes take {duration_text(plan.transfer_s)}."
        )
    source = "as asked for" if conditions.duration_s else "the least that links and this machine need; --hours sets it"
    lines.append(f"Reports are reckoned for a run of {duration_text(plan.duration_s)} ({source}).")
    return lines


def _work(report: PlanReport) -> list[str]:
    comparison = report.comparison
    work = "its tokenizers and their gradients" if comparison.learning_flops else "its tokenizers"
    of_training = _flops_text(3 * (comparison.forward_flops + comparison.projection_flops))
    if comparison.flops_ratio is None:
        lines = [
            "What the tokenizers of the sites' own take is for each site to say; training what is behind them there "
            f"would take {of_training}FLOP a sample."
        ]
    else:
        lines = [
            f"A pass over one sample takes an agent {_flops_text(comparison.pass_flops)}FLOP for {work} "
            f"(to prepare its raw data: {_flops_text(comparison.feature_flops)}FLOP, once); training the model at its "
            f"site would take {of_training}FLOP, {comparison.flops_ratio:,.0f}x as much."
        ]
    if report.tokenize_s is not None and report.encode_s is not None:
        lines.append(
            f"Measured here: a microbatch of {comparison.plan.manifest.microbatch_samples} takes an agent's processor "
            f"{latency_text(report.tokenize_s)} to tokenize and {latency_text(report.encode_s)} to encode"
            + (
                "."
                if report.learn_s is None
                else f", and {latency_text(report.learn_s)} for its tokenizers' gradients."
            )
        )
    parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in report.memory_bytes.items())
    at_least = comparison.federated[0].memory_bytes
    lines.append(
        f"An agent's memory: about {bytes_text(sum(report.memory_bytes.values()))} ({parts}). Training all parameters "
        f"at its site would take {bytes_text(at_least)} for weights, gradients and Adam alone."
    )
    return lines


def _sizes(ways: Ways) -> tuple[str, str, str]:
    return bytes_text(ways.up), bytes_text(ways.down), bytes_text(ways.both)


def _flops_text(flops: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.0f} "


def as_json(report: PlanReport) -> dict[str, Any]:
    """Return a plan as one JSON object: bytes, seconds and operations as plain numbers."""
    comparison = report.comparison
    plan, manifest = comparison.plan, comparison.plan.manifest
    return {
        "format": 1,
        "model": manifest.model,
        "parameters": comparison.model.num_parameters,
        "agents": len(plan.sites),
        "train_samples": plan.num_train,
        "test_samples": plan.num_test,
        "validation_samples": plan.num_val,
        "epochs": manifest.epochs,
        "activations": plan.mode,
        "tokenizers": manifest.tokenizers.mode,
        "codecs": dict(manifest.codecs),
        "is_upper_bound": report.is_bound,
        "duration_s": plan.duration_s,
        "transfer_s": plan.transfer_s,
        "bytes": {
            "whole_run": _ways(plan.whole),
            "first_epoch": _ways(plan.of_stage(Stage.FIRST_EPOCH)),
            "later_epochs": _ways(plan.of_stage(Stage.LATER_EPOCHS)),
            "evaluation": _ways(plan.of_stage(Stage.EVALUATION)),
            "tokenizers": _ways(plan.tokenizers),
            "joining_and_leaving": _ways(plan.presence),
            "reports": _ways(plan.reports),
        },
        "sites": [_site(report, site) for site in plan.sites],
        "agent": {
            "projection_flops": comparison.projection_flops,
            "learning_flops": comparison.learning_flops,
            "feature_flops": comparison.feature_flops,
            "run_flops": comparison.agent_flops,
            "tokenize_s": report.tokenize_s,
            "encode_s": report.encode_s,
            "learn_s": report.learn_s,
            "memory_bytes": report.memory_bytes,
        },
        "federated": [
            {
                "name": kind.name,
                "rounds": kind.rounds,
                "parameters_trained": kind.num_trained,
                "up": kind.up_bytes * len(plan.sites),
                "down": kind.down_bytes * len(plan.sites),
                "down_of_frozen_rest": kind.frozen_bytes * len(plan.sites),
                "flops_a_sample_pass": kind.flops,
                "memory_bytes_at_least": kind.memory_bytes,
            }
            for kind in comparison.federated
        ],
        "rehearsal": _rehearsal(report),
        "trial": _trial(report),
        "raw_bytes": {"all": comparison.raw_bytes, "training_samples": comparison.raw_train_bytes},
        "verdicts": verdicts(comparison),
        "notes": list(report.notes),
    }


def _rehearsal(report: PlanReport) -> dict[str, Any] | None:
    cadence = report.cadence
    if cadence is None:
        return None
    return {
        "windows": cadence.num_windows,
        "weights_down": cadence.num_weights,
        "gradients_share": list(cadence.gradients_share),
        "is_whole": cadence.is_whole,
    }


def _trial(report: PlanReport) -> dict[str, Any] | None:
    trial = report.trial
    if trial is None:
        return None
    epochs = trial.num_windows / trial.epoch_windows
    return {"windows": trial.num_windows, "epochs": epochs, "weights_moved": trial.moved}


def _site(report: PlanReport, site: SitePlan) -> dict[str, Any]:
    return {
        "agent": site.agent,
        "train_samples": site.num_train,
        "test_samples": site.num_test,
        "validation_samples": site.num_val,
        **_ways(site.whole),
        "reports": _ways(site.reports),
        "transfer_s": report.transfer_s(site),
    }


def _ways(ways: Ways) -> dict[str, int]:
    return {"up": round(ways.up), "down": round(ways.down)}
