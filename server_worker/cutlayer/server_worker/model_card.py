"""The model card: what an exported model is, what it was trained on, what that reached and what it cost.

After "Model Cards for Model Reporting" (Mitchell et al., arXiv 1810.03993). It says what the run knows, and leaves to
its owner what only she knows: what the model is for, and whose data it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.selection import judging_metric
from cutlayer.broker.task_metrics import metrics_of, primary_metric
from cutlayer.broker.tasks import RegressionSpec, RetrievalSpec, TaskSpec

__all__ = ["model_card"]

_OWNERS = """## For its owner to say
- What it is for, and what it is not for.
- Where the data come from, who agreed to their use, and whom they stand for.
- The licence of these weights, and of the weights that training began with.
"""


def model_card(
    manifest: Manifest, known_samples: Mapping[str, int], forms: Mapping[str, str], report: Mapping[str, Any] | None
) -> str:
    """Return the card, Markdown.

    Args:
        manifest: The run.
        known_samples: Training samples of each site.
        forms: What raw samples of each modality look like.
        report: `run.json`; None where there is none.
    """
    parts = [
        f"# {manifest.run_id}",
        f"{manifest.model}, {_fusion(manifest)}, trained with Cutlayer by parallel split learning (arXiv 2502.06355).",
        _use(forms, has_head=manifest.head is None),
        _data(manifest, known_samples),
    ]
    if report is not None:
        parts += [_reached(manifest.task, report), *_chosen(manifest.task, report), _cost(report)]
    return "\n\n".join([*parts, _OWNERS])


def _fusion(manifest: Manifest) -> str:
    if len(manifest.modalities) == 1:
        return "one modality"
    return f"{manifest.fusion} fusion of {' and '.join(sorted(manifest.modalities))}"


def _use(forms: Mapping[str, str], *, has_head: bool) -> str:
    inputs = ", ".join(f'"{name}": {name}' for name in forms)
    lines = [
        "## Use",
        "```python",
        "from load_model import load    # needs torch, timm, safetensors",
        "",
        'model = load(".")' if has_head else 'model = load(".", head="HEAD.safetensors")    # a site\'s own: --head',
        f"model.predict({{{inputs}}})",
        "```",
        "",
        "Inputs are arrays or tensors:",
        "",
        "| input | form, B samples |",
        "| --- | --- |",
        *(f"| `{name}` | {form} |" for name, form in forms.items()),
        "",
        "An input that there is nothing of is left out. `model.onnx`, where it is here, takes all of them.",
    ]
    if not has_head:
        lines.append(
            "Each site has a head of its own, which is not here. Without one, `model(...)` gives features, as "
            "`model.onnx` does: what a head is linear in."
        )
    return "\n".join(lines)


def _data(manifest: Manifest, known_samples: Mapping[str, int]) -> str:
    counts = sorted(known_samples.values())
    lines = [
        "## Data",
        f"{sum(counts):,} training samples at {len(counts)} sites, which kept them; {manifest.epochs} epochs.",
    ]
    if counts:
        lines[-1] += f" The smallest site had {counts[0]:,}, the largest {counts[-1]:,}."
    lines += ["", *_task(manifest.task)]
    return "\n".join(lines)


def _task(task: TaskSpec) -> list[str]:
    if isinstance(task, RetrievalSpec):
        return [
            f"Task: {task.between[0]} and {task.between[1]} are matched; embeddings of {task.dimensions} dimensions."
        ]
    if isinstance(task, RegressionSpec):
        targets = (f"{target.name}{f' ({target.unit})' if target.unit else ''}" for target in task.targets)
        return [f"Task: regression of {', '.join(targets)}."]
    return [f"Task: {task.kind}, {task.num_outputs} classes: {', '.join(task.output_names[:50])}."]


def _reached(task: TaskSpec, report: Mapping[str, Any]) -> str:
    of_task = {metric.name: metric for metric in metrics_of(task)}
    found: dict[str, dict[str, float]] = report.get("metrics") or {
        given: {primary_metric(task).name: value} for given, value in report.get("accuracy", {}).items()
    }
    lines = [
        "## Reached",
        "On the sites' own test samples, pooled:",
        "",
        "| given | metric | value |",
        "| --- | --- | --- |",
    ]
    for given, values in found.items():
        for name, value in values.items():
            metric = of_task.get(name)
            title = name if metric is None else metric.title
            text = f"{value:.1%}" if metric is not None and metric.is_share else f"{value:.4g}"
            unit = "" if metric is None or not metric.unit else f" {metric.unit}"
            lines.append(f"| {'all modalities' if given == 'joint' else given} | {title} | {text}{unit} |")
    return "\n".join(lines)


def _chosen(task: TaskSpec, report: Mapping[str, Any]) -> list[str]:
    """Say which weights these are, where they were chosen."""
    selection = report.get("selection")
    if not selection:
        return []
    metric = judging_metric(task, selection["metric"])
    kept = selection["kept_epoch"]
    lines = [
        "## Weights",
        f"Those of epoch {kept}, the best on" if kept is not None else "The last ones; candidates were judged by",
    ]
    lines[-1] += f" the sites' validation samples, pooled, by {metric.title}."
    if selection["is_early"]:
        lines[-1] += f" Training ended early: {report['reason']}."
    lines += ["", f"| epoch | validation {metric.title} | loss | samples |", "| --- | --- | --- | --- |"]
    for row in selection["candidates"]:
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        loss = "-" if row["loss"] is None else f"{row['loss']:.4g}"
        lines.append(
            f"| {row['epoch']}{' (kept)' if row['epoch'] == kept else ''} | {value} | {loss} | {row['num_samples']:,} |"
        )
    return ["\n".join(lines)]


def _cost(report: Mapping[str, Any]) -> str:
    moved = report["bytes"]
    wire = moved["up"]["wire"] + moved["down"]["wire"]
    lines = [
        "## Cost",
        f"{report['training_s']:,.0f} s of training; {wire:,} B on the wire: both ways, all sites, with evaluations.",
    ]
    federated = report.get("federated_averaging")
    if federated:
        lines.append(
            f"Federated averaging of its {federated['parameters']:,} parameters would have moved "
            f"{federated['bytes']:,} B (computed)."
        )
    return "\n".join(lines)
