"""What tokenizers refuse, and how they say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable, SettingsError
from cutlayer.broker.modality_spec import SpecOfModality

__all__ = ["Parts", "bad_weights", "checked_parts", "is_within", "unfit", "width_of"]

Parts = Mapping[str, NDArray[np.float32]]
"""Parameters of one tokenizer, by part."""


def is_within(values: NDArray[Any], low: float, high: float) -> bool:
    """Whether all values are finite and from `low` to `high`."""
    # NaN fails every comparison, so these two also find what is not finite.
    return values.size == 0 or bool(values.min() >= low and values.max() <= high)


def unfit(modality: str, raw: NDArray[Any], expected: str, fix: str) -> SettingsError:
    """Return the error for raw data that a tokenizer cannot take."""
    span = f", values {raw.min():g} to {raw.max():g}" if raw.size and raw.dtype.kind in "biuf" else ""
    return SettingsError(f"{modality}: got {raw.shape} {raw.dtype}{span}; expected {expected}", fix)


def bad_weights(what: str) -> ManifestUnsatisfiable:
    """Return the error for client-side weights that do not fit the manifest."""
    return ManifestUnsatisfiable(what, "start the run again with the weights of its own model")


def width_of(spec: SpecOfModality, parts: Mapping[str, NDArray[Any]]) -> int:
    """Return D: the last axis of the first part, whatever its name; 0 where there is none."""
    first = next(iter(spec.parameter_shapes(1)))
    part = parts.get(first)
    return int(part.shape[-1]) if part is not None and part.ndim else 0


def checked_parts(
    modality: str, spec: SpecOfModality, parts: Mapping[str, NDArray[Any]], width: int
) -> dict[str, NDArray[np.float32]]:
    """Return the parts that `spec` asks for, float32.

    Args:
        modality: Its name, for errors.
        spec: Says the shapes.
        parts: The weights.
        width: D.

    Raises:
        ManifestUnsatisfiable: When one is missing, or has the wrong shape or dtype.
    """
    found = {}
    for part, shape in spec.parameter_shapes(width).items():
        tensor = parts.get(part)
        if tensor is None:
            have = ", ".join(f"{modality}.{name}" for name in sorted(parts)) or "nothing"
            raise bad_weights(f"the client-side weights lack {f'{modality}.{part}'!r} (of it they have {have})")
        if tensor.shape != shape or tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
            raise bad_weights(f"{modality}.{part} is {tensor.shape} {tensor.dtype}; expected {shape} of finite floats")
        found[part] = np.ascontiguousarray(tensor, dtype=np.float32)
    return found
