"""Tokenizers that are a site's own, called `package.module:callable` on the command line.

    build(spec, width, seed) -> torch.nn.Module     frozen or trained (`torch_tokenizer.py`)
                             -> any other callable   of NumPy arrays, frozen (`frozen_tokenizer.py`)

Torch is loaded by the user's own file where that needs it, and by nothing else at an agent.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.modalities import TokensSpec
from cutlayer.edge_agent.data_factory import find_factory, is_factory
from cutlayer.edge_agent.frozen_tokenizer import FrozenTokenizer
from cutlayer.edge_agent.site_parts import SiteParts, TokenizerSource
from cutlayer.edge_agent.tokenizers import Tokenizer

__all__ = ["OwnTokenizer", "check_sources", "open_own_tokenizers", "parse_sources"]

FLAG = "--tokenizer"


class OwnTokenizer(Tokenizer, Protocol):
    """A tokenizer whose parameters never leave the site."""

    def learn(self, gradients: Mapping[str, NDArray[np.float32]], num_samples: int) -> None:
        """Make a step.

        Args:
            gradients: Of a loss that is summed over samples, by part.
            num_samples: How many samples.
        """

    def save(self) -> None:
        """Write what was learned to the tokenizer's file, if it has one and learns.

        Raises:
            SettingsError: When it cannot be written.
        """


def parse_sources(
    tokenizers: Collection[str], weights: Collection[str], states: Collection[str]
) -> dict[str, TokenizerSource]:
    """Read `--tokenizer`, `--tokenizer-weights` and `--tokenizer-state`, `MODALITY=VALUE` each.

    Raises:
        SettingsError: When one has another form, or files are of a modality without a tokenizer.
    """
    factories = _pairs(FLAG, tokenizers, "image=my_project.tokenizer:build")
    of_weights = _pairs("--tokenizer-weights", weights, "image=weights.safetensors")
    of_states = _pairs("--tokenizer-state", states, "image=tokenizer.safetensors")
    for flag, names in (("--tokenizer-weights", of_weights), ("--tokenizer-state", of_states)):
        for name in names.keys() - factories.keys():
            raise SettingsError(
                f"{flag} {name}={names[name]} is of no {FLAG}", f"give {FLAG} {name}=MODULE:CALLABLE, too"
            )
    return {
        name: TokenizerSource(
            factory,
            Path(of_weights[name]) if name in of_weights else None,
            Path(of_states[name]) if name in of_states else None,
        )
        for name, factory in factories.items()
    }


def check_sources(sources: Mapping[str, TokenizerSource]) -> None:
    """Check what can be checked before a run is known, so that a wrong flag shows at once.

    Raises:
        SettingsError: When a callable cannot be found, torch is missing, or a file of weights is not there.
    """
    for name, source in sources.items():
        find_factory(source.factory, flag=f"{FLAG} {name}=")
        if source.weights is not None and not source.weights.is_file():
            raise SettingsError(f"--tokenizer-weights {name}={source.weights}: no such file", "name an existing file")


def open_own_tokenizers(
    manifest: Manifest,
    modalities: Collection[str],
    site: SiteParts,
    planned_samples: int,
    *,
    is_visit: bool = False,
) -> dict[str, OwnTokenizer]:
    """Make the tokenizers of those modalities that the run leaves to its sites.

    Args:
        manifest: The run.
        modalities: Those that this agent has.
        site: Says where its tokenizers come from.
        planned_samples: Training samples of this agent in the whole run.
        is_visit: Whether they are only used.

    Raises:
        ManifestUnsatisfiable: When the run needs one that is not given, or does not take one that is; or trains one
            that is only used here, and what it has learned is not given.
        SettingsError: When one cannot be made.
    """
    for name in sorted(site.tokenizers.keys() & manifest.modalities.keys()):
        kind = manifest.modalities[name].kind
        if kind != "tokens":
            raise ManifestUnsatisfiable(
                f"its {name} is of kind {kind!r}, whose tokenizer comes with the run",
                f'leave {FLAG} {name} out, or set [modalities.{name}] kind = "tokens" in the run settings',
            )
    found: dict[str, OwnTokenizer] = {}
    for name, spec in manifest.modalities.items():
        if not isinstance(spec, TokensSpec) or name not in modalities:
            continue
        source = site.tokenizers.get(name)
        if source is None:
            raise ManifestUnsatisfiable(
                f"it leaves the tokenizer of {name} to its sites", f"give one: {FLAG} {name}=package.module:callable"
            )
        if is_visit and manifest.tokenizers.mode == "trainable" and source.weights is None:
            raise ManifestUnsatisfiable(
                f"its sites train their tokenizers of {name}, and this one would be as it began",
                f"give what it has learned: --tokenizer-weights {name}=FILE, the agent's --tokenizer-state",
            )
        found[name] = _open(manifest, name, spec, source, site.agent, planned_samples, is_visit=is_visit)
    return found


def _open(
    manifest: Manifest,
    name: str,
    spec: TokensSpec,
    source: TokenizerSource,
    agent: str,
    planned_samples: int,
    *,
    is_visit: bool,
) -> OwnTokenizer:
    build: Any = find_factory(source.factory, flag=f"{FLAG} {name}=")
    has_torch = "torch" in sys.modules  # by the user's module, if at all
    if has_torch:
        from cutlayer.edge_agent import torch_tokenizer

        torch_tokenizer.set_seed(manifest.seed)
    try:
        made: Any = build(spec, manifest.width, manifest.seed)
    except Exception as error:  # a user's code raises whatever it raises
        raise SettingsError(
            f"{FLAG} {name}={source.factory} fails: {type(error).__name__}: {error}", "mend it"
        ) from error
    if has_torch and torch_tokenizer.is_module(made):
        return torch_tokenizer.open_torch_tokenizer(
            manifest, name, spec, source, made, agent, planned_samples, learns=not is_visit
        )
    if not callable(made):
        raise SettingsError(
            f"{FLAG} {name}={source.factory} gives a {type(made).__name__}",
            "return a torch.nn.Module, or a callable of NumPy arrays",
        )
    if source.weights is not None or source.state is not None:
        raise SettingsError(
            f"{FLAG} {name}={source.factory} gives no torch module",
            "leave out --tokenizer-weights and --tokenizer-state, which are for torch modules",
        )
    return FrozenTokenizer(name, spec, made, manifest.width)


def _pairs(flag: str, values: Collection[str], example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not name or not equals or not rest or (flag == FLAG and not is_factory(rest)):
            raise SettingsError(f"{flag} {value!r} is not in the right form", f"write it as in {flag} {example}")
        if name in found:
            raise SettingsError(f"{flag} {name} is given twice", "keep one of them")
        found[name] = rest
    return found
