"""The torch side of a worker: forward and backward passes over microbatches, and the step. No messages here.

Axes: b samples of a microbatch, B samples of a group, M modalities, N tokens, D width, C classes.

Several microbatches go forward as one *group*, whose graph waits for their output gradients:

    window:  forward -> group 0 ─┐
             forward -> group 1 ─┤ backward adds to the window's gradient sums ─> commit: mean, clip, step,
             forward -> group 2 ─┘                                                        next version

The gradients of a group may come back together or in pieces. A piece costs a backward pass over the whole group,
with zeros for the rest, so wait for all of them while the deadline allows it. A group may be older than the
newest commit: its graph holds the parameter version that it was computed with (`parameters.py`).

Not thread-safe: one thread owns an engine.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.server_worker.contrastive import WindowContrast, info_nce
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.group_pass import GroupPass, finite_outputs, rows_of
from cutlayer.server_worker.held_tokenizers import held_name, tokenizer_weights
from cutlayer.server_worker.parameters import CommitResult, EngineState, VersionedParameters
from cutlayer.server_worker.passes import Backwarded, Forwarded, ForwardItem
from cutlayer.server_worker.settings import OptimizerSettings

__all__ = ["Engine"]


@dataclass(frozen=True, slots=True)
class _Group:
    outputs: Tensor  # (B, C), with its graph
    parameters: tuple[Tensor, ...]  # of the version of the forward pass
    rows: Mapping[Hashable, slice]
    waiting: set[Hashable]
    tokens: Mapping[str, Tensor]  # (B, K, D), where their gradients are wanted
    positions: Mapping[Hashable, Mapping[str, NDArray[np.intp]]]


class Engine:
    """Runs microbatches through the encoder and steps it.

    Dropout inside the blocks (timm's `drop_path_rate` and the like) draws from torch's global generator, and so
    depends on the order of arrival; modality dropout does not.

    Args:
        encoder: The master copy of the parameters, taken over. Its device and dtype are the engine's; parameters
            that need no gradient stay as they are.
        optimizer: The [optimizer] section.
        seed: Of modality dropout.
        modality_dropout: Probability that a modality of a training sample is hidden, 0..1, 1 excluded.
        contrasts_window: Whether the loss is computed here, over all samples of a window (`contrastive.py`). Training
            outputs are then each sample's loss among those that went forward with it, (b, 1), and the gradients that
            come for them say no more than that the microbatch is part of the window.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        optimizer: OptimizerSettings,
        *,
        seed: int,
        modality_dropout: float = 0.0,
        contrasts_window: bool = False,
    ) -> None:
        self._encoder = encoder
        self._parameters = VersionedParameters(encoder, optimizer)
        self._contrast = WindowContrast(self._parameters.add) if contrasts_window else None
        self._pass = GroupPass(encoder, seed, modality_dropout)
        self._groups: dict[int, _Group] = {}
        self._num_groups = 0

    @property
    def version(self) -> int:
        """The newest parameter version: steps so far."""
        return self._parameters.version

    @property
    def num_live_graphs(self) -> int:
        """Groups that wait for output gradients, or for the window's end, and hold memory."""
        return len(self._groups) + (0 if self._contrast is None else self._contrast.num_graphs)

    @property
    def live_samples(self) -> int:
        """Samples in those groups."""
        return sum(len(group.outputs) for group in self._groups.values())

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Run microbatches as one batch, on the newest parameter version or, for `eval`, on one that is held.

        Args:
            items: At least one, of the same mode and modalities, with distinct keys.
            candidate: Name of the version that is held; empty for the newest.

        Raises:
            ValueError: When items do not fit together, or activations are not (b, K, D) of a known modality.
            KeyError: When no such candidate is held.
        """
        self._pass.check(items)
        assert not candidate or items[0].mode == "eval", "gradients are of the newest version alone"
        version = self._parameters.version
        weights = self._parameters.held[candidate] if candidate else self._parameters.newest
        outputs_BC, tokens = self._pass.run(items, weights)
        outputs, refused = finite_outputs(items, outputs_BC)
        if items[0].mode == "eval" or not outputs:
            return Forwarded(None, version, outputs, refused)
        if refused:
            # Zero output gradients would not save the others, since 0 * NaN is NaN: they go again, alone.
            items = [item for item in items if item.key in outputs]
            outputs_BC, tokens = self._pass.run(items, weights)
        group_id = self._num_groups
        self._num_groups += 1
        self._groups[group_id] = _Group(
            outputs_BC,
            tuple(self._parameters.newest.values()),
            dict(rows_of(items)),
            set(outputs),
            tokens if self._encoder.tokenizers is not None else {},
            {item.key: item.positions for item in items if item.positions},
        )
        if self._contrast is not None:
            outputs = dict(zip(outputs, _losses(items, outputs_BC), strict=True))
        return Forwarded(group_id, version, outputs, refused)

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Add the gradient of some of a group's microbatches to the window's sums.

        Args:
            group_id: From `forward`.
            gradients: Gradients of the *summed* loss at the outputs, (b, C), by key; each key once.
            last: Whether the group is done: its graph is freed.
            tokenizer_gradients: What came with some of these: gradients of tokenizers, as their file names them.

        Raises:
            KeyError: When there is no such group.
            ValueError: When a key is not in the group, was given before, or its gradient has another shape. The
                group and the window are then as they were.
        """
        group = self._groups[group_id]
        finite: list[Hashable] = []
        gradients_BC = np.zeros(tuple(group.outputs.shape) if self._contrast is None else (len(group.outputs), 1))
        for key, gradient_bC in gradients.items():
            if key not in group.waiting:
                raise ValueError(f"group {group_id} waits for no gradient of {key!r}")
            rows_bC = gradients_BC[group.rows[key]]
            if gradient_bC.shape != rows_bC.shape:
                raise ValueError(f"gradient of {key!r} is {gradient_bC.shape}, its outputs are {rows_bC.shape}")
            if np.isfinite(gradient_bC).all():
                rows_bC[:] = gradient_bC
                finite.append(key)
        group.waiting.difference_update(gradients)
        if last:
            del self._groups[group_id]
        if self._contrast is not None:
            rows = [group.rows[key] for key in finite]
            self._contrast.collect(group_id, group.outputs, group.parameters, rows, is_last=last)
            return Backwarded(tuple(finite), tuple(key for key in gradients if key not in finite))
        if finite:
            found = torch.autograd.grad(
                group.outputs,
                (*group.parameters, *group.tokens.values()),
                self._pass.to_torch(gradients_BC),
                retain_graph=not last,
                allow_unused=True,
            )
            cut_gradients = self._cut_gradients(group, found[len(group.parameters) :], finite)
            sums = self._with_tokenizers(found[: len(group.parameters)], tokenizer_gradients or {}, finite)
            if cut_gradients is None or not self._parameters.add(sums):
                finite = []
        refused = tuple(key for key in gradients if key not in finite)
        return Backwarded(tuple(finite), refused, (cut_gradients or {}) if finite else {}, group.positions)

    def _cut_gradients(
        self, group: _Group, found: Sequence[Tensor | None], keys: Sequence[Hashable]
    ) -> dict[Hashable, dict[str, NDArray[np.float32]]] | None:
        """Return the gradients at the cut of some of a group's microbatches; None when one is not finite."""
        whole = {
            name: torch.zeros_like(tokens) if gradient is None else gradient
            for (name, tokens), gradient in zip(group.tokens.items(), found, strict=True)
        }
        arrays = {name: gradient.cpu().numpy().astype(np.float32) for name, gradient in whole.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return None
        return {key: {name: array[group.rows[key]] for name, array in arrays.items()} for key in keys if arrays}

    def _with_tokenizers(
        self,
        gradients: Sequence[Tensor | None],
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]],
        keys: Sequence[Hashable],
    ) -> list[Tensor | None]:
        """Return the gradients of the parameters with those of the tokenizers, which the graph does not reach."""
        sums = list(gradients)
        for key in keys:
            for name, gradient in tokenizer_gradients.get(key, {}).items():
                place = self._parameters.place_of(held_name(name))
                before, added = sums[place], self._pass.to_torch(gradient.copy())
                sums[place] = added if before is None else before + added
        return sums

    def release(self, group_id: int) -> None:
        """Free a group's graph without its gradient. A group that is gone already is no error."""
        self._groups.pop(group_id, None)

    def commit(self, num_samples: int, progress: float | None) -> CommitResult:
        """Close the window: see `VersionedParameters.commit`."""
        if not self._close_contrast():
            return CommitResult(self.version, float("nan"), 0.0, applied=False)
        return self._parameters.commit(num_samples, progress)

    def _close_contrast(self) -> bool:
        """Add what the window's embeddings give, where the loss is computed here; return whether it is finite."""
        return self._contrast is None or self._contrast.close()

    def gradient_sums(self) -> list[Tensor]:
        """Return the open window's gradient sums: see `VersionedParameters.gradient_sums`."""
        self._close_contrast()
        return self._parameters.gradient_sums()

    def gradients_present(self) -> bytes:
        """Return which parameters have one: see `VersionedParameters.gradients_present`."""
        self._close_contrast()
        return self._parameters.gradients_present()

    def set_gradient_sums(self, sums: Sequence[Tensor], present: bytes | None = None) -> None:
        """Replace them: see `VersionedParameters.set_gradient_sums`."""
        self._parameters.set_gradient_sums(sums, present)

    def drop_gradients(self) -> None:
        """Empty the open window."""
        if self._contrast is not None:
            self._contrast.drop()
        sums = self._parameters.gradient_sums()
        self._parameters.set_gradient_sums(sums, bytes(len(sums)))

    def hold_candidate(self) -> str:
        """Hold the newest weights as a candidate; return its name, the same for bit-identical weights alone."""
        return self._parameters.hold()

    def hold_only(self, names: Collection[str]) -> None:
        """Let go of all candidates but these."""
        held = self._parameters.held
        self._parameters.held = {name: held[name] for name in held if name in names}

    def keep_candidate(self, name: str) -> int:
        """Go on from a candidate's weights, or, without a name, from the newest; return their version.

        Live graphs and the open window are dropped.
        """
        self._parameters.keep(name)
        self._groups.clear()
        if self._contrast is not None:
            self._contrast.drop()
        return self._parameters.version

    def candidates(self) -> dict[str, dict[str, Tensor]]:
        """Return the trained parameters of each candidate that is held, which later commits do not change."""
        held = self._parameters.held
        return {name: {key: value.detach() for key, value in values.items()} for name, values in held.items()}

    def load_candidates(self, candidates: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Hold these candidates instead.

        Raises:
            ValueError: When they are of another model.
        """
        self._parameters.load_held(candidates)

    def tokenizer_weights(self, candidate: str = "") -> dict[str, NDArray[np.float32]]:
        """Return the newest weights of the tokenizers, or a candidate's, as their file names them; empty if frozen."""
        return tokenizer_weights(self._parameters.held[candidate] if candidate else self._parameters.newest)

    def fingerprint(self) -> str:
        """Return a cheap digest of the weights: see `VersionedParameters.fingerprint`."""
        return self._parameters.fingerprint()

    def parameters_digest(self) -> str:
        """Return the SHA-256 of the weights, in hexadecimal: see `VersionedParameters.digest`."""
        return self._parameters.digest()

    def state_dict(self) -> EngineState:
        """Return a snapshot that later commits do not change. Live graphs and the open window are not in it."""
        return self._parameters.state_dict()

    def load_state_dict(self, state: EngineState) -> None:
        """Continue from a snapshot; live graphs and the open window are dropped.

        Raises:
            ValueError: When the snapshot is of another model or optimizer. Nothing has changed then.
        """
        self._parameters.load_state_dict(state)
        self._groups.clear()
        if self._contrast is not None:
            self._contrast.drop()


def _losses(items: Sequence[ForwardItem], outputs_BC: Tensor) -> Iterator[NDArray[np.float32]]:
    """Yield each microbatch's losses, (b, 1), among the samples of the group."""
    losses_B1 = info_nce(outputs_BC.detach())[:, None].cpu().numpy().astype(np.float32)
    for _, rows in rows_of(items):
        yield losses_B1[rows]
