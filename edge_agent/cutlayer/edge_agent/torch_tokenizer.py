"""A site's own tokenizer as a torch module.

    build(spec, width, seed) -> nn.Module      raw samples (B, ...) -> tokens (B, N, D)

The module is always in evaluation mode, also where it is trained, so that the gradient is that of the tokens which went
up: dropout is off, and batch norm takes its running statistics, which do not move.

Axes: B samples, N tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.modalities import TokensSpec
from cutlayer.broker.site_optimizer import SiteOptimizer
from cutlayer.edge_agent.site_file import write_whole
from cutlayer.edge_agent.site_parts import TokenizerSource
from cutlayer.edge_agent.tokenizer_checks import Parts

__all__ = ["SAVE_EVERY_STEPS", "TorchTokenizer", "is_module", "open_torch_tokenizer", "set_seed"]

log = logging.getLogger(__name__)

SAVE_EVERY_STEPS = 20
_STATE = "optimizer/"


class TorchTokenizer:
    """A tokenizer of one modality in one run.

    Args:
        modality: Its name.
        spec: Its specification.
        module: Raw samples (B, ...), as the data set gives them, to tokens (B, N, D), of any float type.
        width: D.
        optimizer: How it is trained; None where it is frozen.
        planned_samples: Training samples of this agent in the whole run.
        state: File of what it has learned; None to keep that in memory alone.
        owner: Run and agent, which the file is of.

    Raises:
        SettingsError: When the file cannot be read, or is of another run, agent or module.
    """

    def __init__(
        self,
        modality: str,
        spec: TokensSpec,
        module: nn.Module,
        width: int,
        *,
        optimizer: SiteOptimizer | None = None,
        planned_samples: int = 1,
        state: Path | None = None,
        owner: Mapping[str, str] | None = None,
    ) -> None:
        self._modality = modality
        self._spec = spec
        self._width = width
        self._module = module.eval().requires_grad_(optimizer is not None)
        self._settings = optimizer
        self._optimizer = None if optimizer is None else _optimizer_of(module, optimizer)
        self._planned_samples = planned_samples
        self._num_samples = 0
        self._num_steps = 0
        self._state = state if optimizer is not None else None
        self._owner = dict(owner or {})
        if self._state is not None and self._state.exists():
            self._load(self._state)
        if optimizer is not None and state is None:
            log.warning(
                "the tokenizer of %s is trained in memory alone; give --tokenizer-state %s=FILE", modality, modality
            )

    @property
    def num_tokens(self) -> int:
        """Tokens N of a sample."""
        return self._spec.num_tokens

    @property
    def width(self) -> int:
        """Width D of a token."""
        return self._width

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self._module

    def features(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Return raw samples as they are: all that follows may need weights."""
        return raw

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return tokens_BND, float32 (B, N, D).

        Raises:
            SettingsError: When the module fails, or gives something else.
        """
        with torch.no_grad():
            tokens: NDArray[np.float32] = self._tokens(features).float().cpu().numpy()
        if not np.isfinite(tokens).all():
            raise SettingsError(f"--tokenizer {self._modality} gives tokens that are not finite", "mend the module")
        return tokens

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return None: all tokens are always there."""
        del features
        return None

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the gradients of the parameters that have one, by name; see `Tokenizer.gradients`."""
        named = {name: value for name, value in self._module.named_parameters() if value.requires_grad}
        with torch.enable_grad():
            tokens_BND = self._tokens(features)
            found = torch.autograd.grad(
                tokens_BND,
                list(named.values()),
                torch.tensor(gradient_BND).to(tokens_BND),
                allow_unused=True,
            )
        return {
            name: gradient.float().cpu().numpy()
            for name, gradient in zip(named, found, strict=True)
            if gradient is not None
        }

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`."""
        return self.project(self.features(raw))

    def take_weights(self, parts: Parts) -> None:
        """Leave the weights as they are: no others ever come."""
        del parts

    def learn(self, gradients: Mapping[str, NDArray[np.float32]], num_samples: int) -> None:
        """Make a step; a mean gradient that is not finite changes nothing. Saves the state now and then.

        Raises:
            SettingsError: When the state cannot be written.
        """
        assert self._optimizer is not None
        assert self._settings is not None
        self._num_samples += num_samples
        named = dict(self._module.named_parameters())
        for name, gradient in gradients.items():
            named[name].grad = torch.tensor(gradient / num_samples).to(named[name])
        given = [value for value in named.values() if value.grad is not None]
        norm = nn.utils.get_total_norm([value.grad for value in given if value.grad is not None])
        if bool(torch.isfinite(norm)):
            if self._settings.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(given, self._settings.clip_norm, norm)
            for group in self._optimizer.param_groups:
                group["lr"] = self._settings.rate(self._num_samples, self._planned_samples)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._num_steps += 1
        if self._num_steps % SAVE_EVERY_STEPS == 0:
            self.save()

    def save(self) -> None:
        """Write module and optimizer to the state's file, if there is one: whole or not at all.

        Raises:
            SettingsError: When it cannot be written.
        """
        if self._state is None or self._optimizer is None:
            return
        tensors = {name: value.detach().clone().contiguous() for name, value in self._module.state_dict().items()}
        for name, parameter in self._module.named_parameters():
            for quantity, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{_STATE}{name}/{quantity}"] = value.detach().clone().contiguous()
        metadata = {**self._owner, "samples": str(self._num_samples), "steps": str(self._num_steps)}
        content = safetensors.torch.save(tensors, metadata)
        write_whole(self._state, content, f"--tokenizer-state {self._modality}=")

    def _tokens(self, raw: NDArray[Any]) -> Tensor:
        wanted = (len(raw), self._spec.num_tokens, self._width)
        try:
            tokens = self._module(torch.tensor(raw))
        except Exception as error:  # a user's code raises whatever it raises
            raise SettingsError(
                f"--tokenizer {self._modality} fails on raw samples {raw.dtype} {raw.shape}: "
                f"{type(error).__name__}: {error}",
                "mend the module",
            ) from error
        if not isinstance(tokens, Tensor) or tuple(tokens.shape) != wanted:
            given = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise SettingsError(
                f"--tokenizer {self._modality} gives {given} for raw samples {raw.shape}, and the run wants {wanted}",
                f"give (B, {wanted[1]}, {wanted[2]}), or change num_tokens in the run settings",
            )
        return tokens

    def _load(self, path: Path) -> None:
        assert self._optimizer is not None
        metadata, tensors = _read(path, f"--tokenizer-state {self._modality}={path}")
        for what, own in self._owner.items():
            if metadata.get(what) != own:
                raise SettingsError(
                    f"--tokenizer-state {self._modality}={path} has {what} {metadata.get(what)!r}, and this is {own!r}",
                    "name another file (this one would be written over), or begin with it: --tokenizer-weights",
                )
        named = dict(self._module.named_parameters())
        try:
            _load_weights(self._module, tensors)
            for name, value in tensors.items():
                if name.startswith(_STATE):
                    parameter, _, quantity = name.removeprefix(_STATE).rpartition("/")
                    self._optimizer.state[named[parameter]][quantity] = value
            self._num_samples, self._num_steps = int(metadata["samples"]), int(metadata["steps"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"--tokenizer-state {self._modality}={path} is of another module: {error}", "name another file"
            ) from error
        log.info("the tokenizer of %s goes on from %s", self._modality, path)


def set_seed(seed: int) -> None:
    """Set torch's own generator, which nothing else at an agent draws from."""
    torch.manual_seed(seed)


def is_module(made: object) -> bool:
    """Return whether something is a torch module."""
    return isinstance(made, nn.Module)


def open_torch_tokenizer(
    manifest: Manifest,
    modality: str,
    spec: TokensSpec,
    source: TokenizerSource,
    module: nn.Module,
    agent: str,
    planned_samples: int,
    *,
    learns: bool = True,
) -> TorchTokenizer:
    """Make a tokenizer for a run.

    Args:
        manifest: The run.
        modality: The modality.
        spec: Its specification.
        source: Where the tokenizer comes from.
        module: What it has given.
        agent: The agent's topic.
        planned_samples: Training samples of this agent in the whole run.
        learns: Whether it is trained, where the run trains tokenizers.

    Raises:
        SettingsError: When it cannot be made.
    """
    if source.weights is not None:
        what = f"--tokenizer-weights {modality}={source.weights}"
        try:
            _load_weights(module, _read(source.weights, what)[1])
        except (KeyError, RuntimeError) as error:
            raise SettingsError(f"{what} do not fit the module: {error}", "name weights of this module") from error
    optimizer = manifest.site_optimizer if learns and manifest.tokenizers.mode == "trainable" else None
    return TorchTokenizer(
        modality,
        spec,
        module,
        manifest.width,
        optimizer=optimizer,
        planned_samples=planned_samples,
        state=source.state,
        owner={"run": manifest.run_id, "agent": agent},
    )


def _optimizer_of(module: nn.Module, settings: SiteOptimizer) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def _read(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise SettingsError(f"{what} cannot be read: {error}", "name a safetensors file") from error


def _load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    module.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_STATE)})
