"""A head on this site's disk: whole or not there, checked when read, without pickle.

One safetensors file. `weight` (C, D) and `bias` (C) are what torch's `nn.Linear` has; beside them are the optimizer's
moments, `first.<part>` and `second.<part>`, and `pending.<step>.<part>`, gradients of steps that no worker has
committed yet. Its metadata say which run it is of. It is written under another name, fsynced and renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.head_optimizer import HeadGradient, HeadState
from cutlayer.edge_agent.site_file import write_whole

__all__ = ["HeadFile", "SavedHead"]

FORMAT = "1"
Tensors = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class SavedHead:
    """What a file has.

    Attributes:
        state: The head, after all steps that are committed.
        pending: Gradients of steps that may not be, by step.
    """

    state: HeadState
    pending: dict[int, HeadGradient]


class HeadFile:
    """The file of one agent's head in one run.

    Args:
        path: The file; its folder has to be there.
        run_id: The run.
        agent: The agent's topic; None to read whichever agent's it is, and write none.
        shapes: Of `weight` and `bias`.
    """

    def __init__(self, path: Path, run_id: str, agent: str | None, shapes: dict[str, tuple[int, ...]]) -> None:
        self.path = path
        self._run_id = run_id
        self._agent = agent
        self._shapes = shapes

    def read(self) -> SavedHead | None:
        """Return what was saved; None where there is no file.

        Raises:
            SettingsError: When the file cannot be read, or is of another run or agent.
        """
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        except FileNotFoundError:
            return None
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise SettingsError(f"--head {self.path} cannot be read: {error}", "name another file") from error
        for what, own in (("format", FORMAT), ("run", self._run_id), ("agent", self._agent)):
            if own is not None and metadata.get(what) != own:
                raise SettingsError(
                    f"--head {self.path} has {what} {metadata.get(what)!r}, and this is {own!r}",
                    "name another file: this one would be written over",
                )
        try:
            return self._saved(tensors, metadata)
        except (KeyError, ValueError) as error:
            raise SettingsError(f"--head {self.path} is damaged: {error}", "name another file") from error

    def write(self, saved: SavedHead) -> None:
        """Replace what was saved.

        Raises:
            SettingsError: When the file cannot be written.
        """
        assert self._agent is not None
        state = saved.state
        tensors: Tensors = dict(state.parts)
        tensors |= {f"first.{name}": part for name, part in state.first.items()}
        tensors |= {f"second.{name}": part for name, part in state.second.items()}
        metadata = {
            "format": FORMAT,
            "run": self._run_id,
            "agent": self._agent,
            "steps": str(state.num_steps),
            "samples": str(state.num_samples),
        }
        for step, gradient in saved.pending.items():
            tensors |= {f"pending.{step}.{name}": part for name, part in gradient.parts.items()}
            metadata[f"pending.{step}"] = str(gradient.num_samples)
        content = safetensors.numpy.save({n: np.ascontiguousarray(t) for n, t in tensors.items()}, metadata)
        write_whole(self.path, content, "--head ")

    def _saved(self, tensors: Tensors, metadata: dict[str, str]) -> SavedHead:
        state = HeadState(
            parts=self._parts(tensors, ""),
            first=self._parts(tensors, "first."),
            second=self._parts(tensors, "second."),
            num_steps=int(metadata["steps"]),
            num_samples=int(metadata["samples"]),
        )
        if not state.parts:
            raise ValueError("it has no weight")
        steps = sorted(int(name.removeprefix("pending.")) for name in metadata if name.startswith("pending."))
        pending = {
            step: HeadGradient(self._parts(tensors, f"pending.{step}."), int(metadata[f"pending.{step}"]))
            for step in steps
        }
        return SavedHead(state, pending)

    def _parts(self, tensors: Tensors, prefix: str) -> Tensors:
        """Return the parts below a prefix: all of them or none."""
        if not any(f"{prefix}{name}" in tensors for name in self._shapes):
            return {}
        for name, shape in self._shapes.items():
            part = tensors[f"{prefix}{name}"]
            if part.shape != shape or part.dtype != np.float64:
                raise ValueError(f"{prefix}{name} is {part.dtype} {part.shape}, and the run's is float64 {shape}")
        return {name: tensors[f"{prefix}{name}"] for name in self._shapes}
