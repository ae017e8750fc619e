"""A head that stays at its agent: features come down, their gradients go up, and nobody else sees outputs.

The head is stepped with the gradient of each of the agent's own training steps, which the worker's commit makes final:

    what is committed ─> the head    + gradients of steps that are out, in their order ─> the head that is used

So a step whose outputs come again (of newer weights, or after a crash) is computed with the head that lacks it, counts
once, and is forgotten when the run goes back behind it. The file has both parts, and is written before a gradient goes
up: whichever moment ends the process, the next one goes on with the same head.

Axes: B samples, C outputs, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.site_optimizer import HeadStart
from cutlayer.edge_agent.head_file import HeadFile, SavedHead
from cutlayer.edge_agent.head_optimizer import HeadGradient, HeadState, stepped
from cutlayer.edge_agent.loss_result import LossResult

__all__ = ["PrivateHead", "first_head"]

log = logging.getLogger(__name__)

FIRST_STD = 0.02
"""Of the first weights, as the worker's own head has them."""
_PURPOSE = 0x48454144
"""Sets these draws apart from others of the same seed."""


def first_head(start: HeadStart, seed: int, num_outputs: int, width: int) -> dict[str, NDArray[np.float64]]:
    """Return the head that a run begins with: `weight`, float64 (C, D), and `bias`, (C)."""
    rng = np.random.default_rng([seed, _PURPOSE] if start == "alike" else None)
    return {"weight": rng.normal(0.0, FIRST_STD, (num_outputs, width)), "bias": np.zeros(num_outputs)}


class PrivateHead:
    """The head of one agent.

    Args:
        manifest: The run, whose heads are at the agents.
        agent: The agent's topic.
        planned_samples: Training samples of this agent in the whole run.
        path: The head's file; None to keep it in memory alone.
        is_visit: Whether it is only used. Then it comes from the file, which stays as it is; under whatever topic it
            was trained.

    Raises:
        ManifestUnsatisfiable: When it is only used, and there is no file.
        SettingsError: When the file is no head of this run and agent.
    """

    def __init__(
        self, manifest: Manifest, agent: str, planned_samples: int, path: Path | None, *, is_visit: bool = False
    ) -> None:
        assert manifest.head is not None
        assert manifest.site_optimizer is not None
        self._optimizer = manifest.site_optimizer
        self._planned_samples = planned_samples
        shape = (manifest.task.num_outputs, manifest.width)
        shapes: dict[str, tuple[int, ...]] = {"weight": shape, "bias": shape[:1]}
        self._file = None if path is None else HeadFile(path, manifest.run_id, None if is_visit else agent, shapes)
        saved = None if self._file is None else self._file.read()
        if is_visit and saved is None:
            raise ManifestUnsatisfiable(
                "its heads are at the agents"
                if path is None
                else f"its heads are at the agents, and {path} is not there",
                "name the file that this site's agent has kept its head in: --head FILE",
            )
        self._is_visit = is_visit
        self._begins_anew = saved is None
        self._base = HeadState(first_head(manifest.head, manifest.seed, *shape)) if saved is None else saved.state
        self._pending = {} if saved is None else dict(saved.pending)
        self._now: HeadState | None = None
        if is_visit:
            return
        if self._file is None:
            log.warning("this site's head is kept in memory alone; give --head FILE to have it afterwards")
        else:
            log.info(
                "this site's head is in %s%s", self._file.path, "" if saved is None else ", and goes on from there"
            )
            self.save()

    @property
    def parts(self) -> dict[str, NDArray[np.float64]]:
        """The head that is used: `weight`, float64 (C, D), and `bias`, (C)."""
        return self._used().parts

    def outputs(self, features_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs of samples, float32 (B, C)."""
        return _outputs(self._used(), features_BD)

    def loss(
        self,
        features_BD: NDArray[np.float32],
        loss_of: Callable[[NDArray[np.float32]], LossResult],
        step: int | None,
    ) -> LossResult:
        """Return the loss, with the gradient at the features in the place of that at the outputs.

        Args:
            features_BD: What came down.
            loss_of: Makes the loss of outputs (B, C).
            step: The training step whose gradient the head learns from; None to learn nothing.

        Raises:
            SettingsError: When the head's file cannot be written.
        """
        state = self._used() if step is None else self._without(step)
        result = loss_of(_outputs(state, features_BD))
        gradient_BC = result.gradient_BC.astype(np.float64)
        if step is not None:
            parts = {"weight": gradient_BC.T @ features_BD, "bias": gradient_BC.sum(axis=0)}
            self._pending[step] = HeadGradient(parts, len(features_BD))
            self._now = None
            self.save()
        return replace(result, gradient_BC=(gradient_BC @ state.parts["weight"]).astype(np.float32))

    def committed(self, step: int) -> None:
        """Take notice of a committed step."""
        gradient = self._pending.pop(step, None)
        if gradient is not None:
            self._base = stepped(self._optimizer, self._base, gradient, self._planned_samples)
            self._now = None

    def resume(self, committed: tuple[tuple[int, int], ...], *, lacks_steps: bool) -> None:
        """Go by a worker's ledger.

        Args:
            committed: Ranges of this agent's steps in it.
            lacks_steps: Whether it lacks steps that were taken for committed: all that are out begin anew.
        """
        ledger = StepRanges(committed)
        if self._begins_anew and len(ledger):
            log.warning(
                "%d of this agent's steps are committed, and its head, which they have trained, is not here: it begins "
                "anew. Start the agent with the --head FILE that it had",
                len(ledger),
            )
        self._begins_anew = False
        for step in [step for step in self._pending if step in ledger]:
            self.committed(step)
        if lacks_steps:
            self._pending.clear()
            self._now = None

    def save(self) -> None:
        """Write the head to its file, if it has one.

        Raises:
            SettingsError: When it cannot be written.
        """
        if self._file is not None and not self._is_visit:
            self._file.write(SavedHead(self._base, self._pending))

    def _used(self) -> HeadState:
        if self._now is None:
            self._now = self._without(None)
        return self._now

    def _without(self, left_out: int | None) -> HeadState:
        """Return the head after all steps but one."""
        state = self._base
        for step, gradient in self._pending.items():
            if step != left_out:
                state = stepped(self._optimizer, state, gradient, self._planned_samples)
        return state


def _outputs(state: HeadState, features_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs_BC = features_BD.astype(np.float64) @ state.parts["weight"].T + state.parts["bias"]
    return outputs_BC.astype(np.float32)
