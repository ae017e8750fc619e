"""Several runs beside each other: what each has reached and cost, as rows that every drawer shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cutlayer.broker.task_metrics import ACCURACY, Metric
from cutlayer.dashboards.html_parts import flattened
from cutlayer.dashboards.run_record import JOINT, Moved, RunRecord, load_run, parse_run
from cutlayer.dashboards.units import bytes_text, count_text, duration_text, latency_text, metric_text, ratio_text

__all__ = [
    "COMPARISON_FORMAT",
    "ComparedRun",
    "ComparisonRow",
    "comparison_json",
    "comparison_rows",
    "differing_settings",
    "load_runs",
]

COMPARISON_FORMAT: Final = 1
"""Version of the form of `comparison_json`: keys may be added under the same one."""
NOT_KNOWN: Final = "-"

Better = Literal["less", "more"]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run under a label that no other one has.

    Attributes:
        label: As short as tells it apart.
        path: Its `run.json`.
        record: The content.
    """

    label: str
    path: Path
    record: RunRecord

    @property
    def final(self) -> float | None:
        """The test metric of the final model given all modalities, or of the last epoch where that is not there."""
        if JOINT in self.record.scores:
            return self.record.scores[JOINT]
        return self.record.curve[-1][1] if self.record.curve else None

    @property
    def best(self) -> float | None:
        """The best test metric of any epoch, the final one included."""
        values = [value for _, value in self.record.curve]
        if self.final is not None:
            values.append(self.final)
        return (max if self.record.metric.better == "more" else min)(values, default=None)

    @property
    def bytes(self) -> Moved:
        """Bytes of both directions."""
        return self.record.bytes.total

    @property
    def samples_per_s(self) -> float | None:
        """Training samples committed a second, from the start of training to the last commit."""
        return self.record.samples / self.record.training_s if self.record.training_s else None

    def setting(self, *keys: str) -> str:
        """Return a setting of the manifest as text."""
        value: object = self.record.manifest
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return NOT_KNOWN if value is None else str(value)


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One figure of all runs.

    Attributes:
        section: What it belongs to; rows of one section follow each other.
        name: Of the figure.
        texts: As people read it, a text a run.
        best: Positions of the runs that are best in it; none where all are equal, or nothing is better.
    """

    section: str
    name: str
    texts: tuple[str, ...]
    best: frozenset[int] = frozenset()


def load_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read runs and give each a label: its folder's name, and so much of the path before it as tells them apart.

    Raises:
        SettingsError: When one cannot be read or is no record of a run; the text names it.
    """
    records = [parse_run(load_run(path), str(path)) for path in paths]
    return [ComparedRun(*run) for run in zip(_labels(paths), paths, records, strict=True)]


def comparison_rows(runs: Sequence[ComparedRun]) -> list[ComparisonRow]:
    """Return the comparison, row by row."""
    rows = _Rows(runs)
    rows.words("run", "id", lambda run: run.record.run_id)
    rows.words("run", "mode", lambda run: run.setting("window", "mode"))
    rows.words("run", "codec of activations", lambda run: run.setting("codecs", "activations"))
    rows.words("run", "model", lambda run: run.setting("model").partition(" (")[0])
    rows.words("run", "agents", lambda run: count_text(run.record.num_agents))
    rows.words("run", "epochs", lambda run: run.setting("epochs"))
    rows.words("run", "training samples", lambda run: count_text(run.record.samples))
    rows.words("run", "windows", lambda run: count_text(run.record.windows))
    rows.words("run", "steps", lambda run: count_text(run.record.steps))
    for metric in dict.fromkeys(run.record.metric for run in runs):
        _add_metric(rows, metric)
    rows.numbers("time", "whole run", lambda run: run.record.duration_s, duration_text, "less")
    rows.numbers("time", "until the last commit", lambda run: run.record.training_s, duration_text, "less")
    rows.numbers("time", "training samples/s", lambda run: run.samples_per_s, _rate_text, "more")
    rows.numbers("time", "round trip, median", lambda run: run.record.round_trip_s.p50, latency_text, "less")
    rows.numbers("time", "round trip, 95 %", lambda run: run.record.round_trip_s.p95, latency_text, "less")
    rows.numbers("bytes", "raw (as float32)", lambda run: run.bytes.raw, bytes_text)
    rows.numbers("bytes", "payload", lambda run: run.bytes.payload, bytes_text, "less")
    rows.numbers("bytes", "wire", lambda run: run.bytes.wire, bytes_text, "less")
    rows.numbers("bytes", "wire, up", lambda run: run.record.bytes.up.wire, bytes_text, "less")
    rows.numbers("bytes", "wire, down", lambda run: run.record.bytes.down.wire, bytes_text, "less")
    rows.numbers("bytes", "wire, per sample", lambda run: run.record.bytes_per_sample, bytes_text, "less")
    rows.numbers("bytes", "wire, an agent and day", lambda run: run.record.bytes_per_agent_day, bytes_text)
    rows.numbers("ratio", "raw / wire", lambda run: _ratio(run.bytes.raw, run.bytes.wire), _times_text, "more")
    first, lowest = runs[0].bytes.wire, min(run.bytes.wire for run in runs)
    rows.numbers("ratio", "wire / the first run's", lambda run: _ratio(run.bytes.wire, first), _times_text)
    rows.numbers("ratio", "wire / the lowest run's", lambda run: _ratio(run.bytes.wire, lowest), _times_text)
    rows.numbers("for comparison", "without a codec", lambda run: run.bytes.raw, bytes_text)
    rows.numbers("for comparison", "federated averaging", _federated_bytes, bytes_text)
    rows.words("for comparison", "that / wire", lambda run: ratio_text(_federated_bytes(run), run.bytes.wire))
    rows.numbers("trouble", "messages sent again", lambda run: run.record.resends, _whole_text, "less")
    rows.numbers("trouble", "connections made again", lambda run: run.record.reconnects, _whole_text, "less")
    return rows.rows


def _add_metric(rows: _Rows, metric: Metric) -> None:
    """Add the rows of a task's metric; runs whose task has another one have no value in them."""

    def text(value: float | None) -> str:
        return metric_text(metric, value)

    def final(run: ComparedRun) -> float | None:
        return run.final if run.record.metric == metric else None

    def best(run: ComparedRun) -> float | None:
        return run.best if run.record.metric == metric else None

    rows.numbers(f"test {metric.title}", "final", final, text, metric.better)
    rows.numbers(f"test {metric.title}", "best", best, text, metric.better)


def comparison_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the comparison for scripts: numbers in base units, None where a record has none.

    `of_first` and `of_lowest` are wire bytes by those of the first run, and of the run with the fewest.
    """
    first, lowest = runs[0].bytes.wire, min(run.bytes.wire for run in runs)
    return {
        "format": COMPARISON_FORMAT,
        "runs": [
            {
                "label": run.label,
                "path": str(run.path),
                "run_id": run.record.run_id,
                "mode": run.setting("window", "mode"),
                "codecs": run.record.manifest.get("codecs"),
                "model": run.setting("model"),
                "agents": run.record.num_agents,
                "epochs": run.record.manifest.get("epochs"),
                "samples": run.record.samples,
                "windows": run.record.windows,
                "steps": run.record.steps,
                "metric": asdict(run.record.metric),
                "score": {"final": run.final, "best": run.best},
                "accuracy": _accuracy(run),
                "duration_s": run.record.duration_s,
                "training_s": run.record.training_s,
                "samples_per_s": run.samples_per_s,
                "round_trip_s": run.record.round_trip_s.model_dump(),
                "bytes": {
                    "up": run.record.bytes.up.model_dump(),
                    "down": run.record.bytes.down.model_dump(),
                    "both": run.bytes.model_dump(),
                },
                "bytes_per_sample": run.record.bytes_per_sample,
                "bytes_per_agent_day": run.record.bytes_per_agent_day,
                "ratio": _ratio(run.bytes.raw, run.bytes.wire),
                "of_first": _ratio(run.bytes.wire, first),
                "of_lowest": _ratio(run.bytes.wire, lowest),
                "without_codec_bytes": run.bytes.raw,
                "federated_averaging_bytes": _federated_bytes(run),
                "resends": run.record.resends,
                "reconnects": run.record.reconnects,
                "history": [row.model_dump() for row in run.record.history],
            }
            for run in runs
        ],
    }


def differing_settings(runs: Sequence[ComparedRun]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the settings that are not the same in all runs: dotted key, and its text in each."""
    settings = [dict(flattened(run.record.manifest)) for run in runs]
    keys = sorted(set().union(*settings) - {"run_id"})
    rows = [(key, tuple(each.get(key, NOT_KNOWN) for each in settings)) for key in keys]
    return [(key, texts) for key, texts in rows if len(set(texts)) > 1]


class _Rows:
    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        self.rows: list[ComparisonRow] = []
        self._runs = runs

    def words(self, section: str, name: str, text: Callable[[ComparedRun], str]) -> None:
        self.rows.append(ComparisonRow(section, name, tuple(text(run) for run in self._runs)))

    def numbers(
        self,
        section: str,
        name: str,
        number: Callable[[ComparedRun], float | None],
        text: Callable[[float | None], str],
        better: Better | None = None,
    ) -> None:
        numbers = [number(run) for run in self._runs]
        texts = tuple(text(value) for value in numbers)
        self.rows.append(ComparisonRow(section, name, texts, _best(numbers, texts, better)))


def _best(numbers: Sequence[float | None], texts: Sequence[str], better: Better | None) -> frozenset[int]:
    known = [value for value in numbers if value is not None]
    if better is None or len(set(texts)) == 1 or len(known) < 2:
        return frozenset()
    best = min(known) if better == "less" else max(known)
    # What reads the same is as good.
    best_text = texts[numbers.index(best)]
    return frozenset(index for index, text in enumerate(texts) if text == best_text)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return a label for each path: as many of its last parts as it takes, and a number where it stands twice."""
    parts = [_parts(path) for path in paths]
    labels: list[str] = []
    for index, own in enumerate(parts):
        others = [each for position, each in enumerate(parts) if position != index and each != own]
        length = 1
        while length < len(own) and any(each[-length:] == own[-length:] for each in others):
            length += 1
        label = "/".join(own[-length:])
        copies = parts[: index + 1].count(own)
        labels.append(f"{label} ({copies})" if copies > 1 else label)
    return labels


def _parts(path: Path) -> tuple[str, ...]:
    """Return the parts of a path that name a run: its folder's, where the file has the name that all runs' have."""
    whole = path.absolute()
    named = whole.parent if whole.name == "run.json" else whole.with_suffix("")
    return tuple(part for part in named.parts if part != named.anchor) or (whole.stem,)


def _accuracy(run: ComparedRun) -> dict[str, float | None]:
    """Return what `score` is where the metric is accuracy: scripts read it from there."""
    is_accuracy = run.record.metric.name == ACCURACY.name
    return {"final": run.final if is_accuracy else None, "best": run.best if is_accuracy else None}


def _federated_bytes(run: ComparedRun) -> int:
    return run.record.federated_averaging.bytes


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _times_text(factor: float | None) -> str:
    return NOT_KNOWN if factor is None else f"{factor:.2f}x"


def _rate_text(rate: float | None) -> str:
    return NOT_KNOWN if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _whole_text(count: float | None) -> str:
    return count_text(None if count is None else int(count))
