"""The tables of what compression_tensors.py has measured: a head, and rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.compression_results import Row

Table = tuple[list[str], list[list[str]]]


def speed(value: float) -> str:
    """Return a speed with two digits."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


_UNITS = (
    ("bytes an element", "bytes_per_element", lambda value: f"{value:.3g}"),
    ("entropy of a byte, bits", "entropy_bits", lambda value: f"{value:.2f}"),
    ("encode, MB/s", "encode_mb_s", speed),
    ("decode, MB/s", "decode_mb_s", speed),
    ("relative error", "relative_error", lambda value: f"{value:.2g}"),
)


def by_codec(rows: Sequence[Row], kind: str) -> dict[str, dict[str, Row]]:
    """Return the rows of a kind, by codec and then by modality, in the order of the results."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == kind:
            found.setdefault(row["codec"], {})[row["modality"]] = row
    return found


def codecs_table(kind: str) -> Callable[[Sequence[Row]], Table]:
    """Return the maker of the table of a kind of tensor."""

    def make(rows: Sequence[Row]) -> Table:
        found = by_codec(rows, kind)
        modalities = list(next(iter(found.values()), {}))
        suffix = f": {', '.join(modalities)}" if len(modalities) > 1 else ""
        return ["codec", *(title + suffix for title, _, _ in _UNITS)], [
            [f"`{codec}`", *(_cell([text(row[key]) for row in by_modality.values()]) for _, key, text in _UNITS)]
            for codec, by_modality in found.items()
        ]

    return make


def _cell(texts: Sequence[str]) -> str:
    return ", ".join(texts)


def changes_table(rows: Sequence[Row]) -> Table:
    """Return the table of changes since the last visit."""
    found = by_codec(rows, "changes")
    num_epochs = max((len(row["change_bytes_per_element"]) for by in found.values() for row in by.values()), default=0)
    head = ["codec", "modality", f"whole, epoch {num_epochs}"]
    head += [f"change, epoch {epoch}" for epoch in range(2, num_epochs + 1)]
    return [*head, "relative error"], [
        [
            f"`{codec}`",
            modality,
            f"{row['whole_bytes_per_element'][-1]:.3g}",
            *(f"{value:.3g}" for value in row["change_bytes_per_element"][1:]),
            f"{row['relative_error']:.2g}",
        ]
        for codec, by_modality in found.items()
        for modality, row in by_modality.items()
    ]


def weight_gradients_table(rows: Sequence[Row]) -> Table:
    """Return the table of error feedback."""
    titles = ("bytes an element", "error of a message", "error of the sum", "of the sum with error feedback")
    head = ["codec", *(f"{title}: image, audio" for title in titles)]
    keys = ("relative_error", "sum_relative_error", "feedback_sum_relative_error")
    found = by_codec(rows, "weight gradients")
    return head, [
        [
            f"`{codec}`",
            _cell([f"{row['bytes_per_element']:.3g}" for row in by_modality.values()]),
            *(_cell([f"{row[key]:.2g}" for row in by_modality.values()]) for key in keys),
        ]
        for codec, by_modality in found.items()
    ]


def run_table(rows: Sequence[Row]) -> Table:
    """Return the line about the run that the tensors are of."""
    head = ["seed", "epochs", "test accuracy", "microbatches", "processor", "Python", "NumPy"]
    return head, [
        [
            str(row["seed"]),
            str(row["epochs"]),
            f"{100 * row['accuracy']:.1f} %",
            f"{row['microbatches']} of {row['microbatch']} samples",
            f"{row['processor']}, one core",
            row["python"],
            row["numpy"],
        ]
        for row in rows
        if row["kind"] == "run"
    ]


TENSOR_TABLES: dict[str, Callable[[Sequence[Row]], Table]] = {
    "tensors": run_table,
    "activations": codecs_table("activations"),
    "outputs": codecs_table("outputs"),
    "output-gradients": codecs_table("output gradients"),
    "activation-gradients": codecs_table("activation gradients"),
    "changes": changes_table,
    "weight-gradients": weight_gradients_table,
}
