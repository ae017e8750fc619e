"""Checkpoints on disk: whole or not there, checked when read, without pickle.

    <folder>/checkpoint-0000000012/
        weights.safetensors     the encoder's parameters and buffers
        optimizer.safetensors   the optimizer's state, `<parameter>/<quantity>`
        candidates.safetensors  the trained parameters of weights that are judged, `<candidate>/<parameter>`; if any
        ledger.bin              opaque to this file
        checkpoint.json         format, version, meta, size and SHA-256 of the files above, and its own SHA-256

A checkpoint is written under a temporary name, each file and the folder are fsynced, and only then is it renamed.
So a crash leaves the old ones and at most a `.partial` folder, which the next save removes. A checkpoint that
does not match its digests (a torn disk, a stray hand) is passed over for the one before it. One process writes to
a folder at a time.

A folder may hold checkpoints of several runs, one after the other. A save removes older ones of its own run alone:
what another run has trained is its owner's to remove.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic
import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor

from cutlayer.broker.errors import CheckpointError
from cutlayer.server_worker.parameters import EngineState

__all__ = ["Checkpoint", "CheckpointNotSaved", "CheckpointStore", "HeldRun", "RestoredCheckpoint"]

_PREFIX = "checkpoint-"
_CONTENTS = "checkpoint.json"
_WEIGHTS, _OPTIMIZER, _LEDGER = "weights.safetensors", "optimizer.safetensors", "ledger.bin"
_CANDIDATES = "candidates.safetensors"
_FILES = (_WEIGHTS, _OPTIMIZER, _LEDGER, _CANDIDATES)


class CheckpointNotSaved(CheckpointError):
    """A checkpoint could not be written; the ones before it are as they were.

    Args:
        path: Where it should have been.
        detail: What the operating system said.
    """

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.args = (f"cannot save a checkpoint to {path}: {detail}; the ones before it are intact",)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a worker continues from.

    Attributes:
        state: Weights, optimizer and version.
        ledger: The session's account of committed steps, opaque here.
        meta: Counters and names of the caller, opaque here but for `manifest`, the run's, which says whose it is.
        candidates: Trained parameters of the weights that are judged, by the candidate's name, which has no slash.
    """

    state: EngineState
    ledger: bytes = b""
    meta: Mapping[str, JsonValue] = field(default_factory=dict)
    candidates: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestoredCheckpoint:
    """A checkpoint that was read back.

    Attributes:
        checkpoint: What was saved.
        path: Its folder.
        passed_over: What is wrong with each newer one, newest first; empty when all is well.
    """

    checkpoint: Checkpoint
    path: Path
    passed_over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that has checkpoints in a folder, as the newest of these says.

    Attributes:
        run_id: The run; empty where a checkpoint does not say.
        window: Windows committed.
        committed_samples: Samples committed.
    """

    run_id: str
    window: int
    committed_samples: int


class CheckpointStore:
    """The newest few checkpoints of each run, in a folder.

    Args:
        folder: Made by the first save.
        keep: Checkpoints of a run that stay; older ones of it are removed after a save.
        run_id: The only run whose checkpoints are read; empty for any.
    """

    def __init__(self, folder: Path, *, keep: int = 3, run_id: str = "") -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: keep at least one checkpoint")
        self._folder = folder
        self._keep = keep
        self._run_id = run_id

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, and remove those of its run beyond `keep`.

        Returns:
            Its folder.

        Raises:
            CheckpointNotSaved: When the disk is full or refuses; the checkpoints before it are as they were.
        """
        existing = self._existing()
        number = _number(existing[0]) + 1 if existing else 0
        path = self._folder / f"{_PREFIX}{number:010d}"
        partial = path.with_suffix(".partial")
        try:
            self._remove_partial()
            partial.mkdir(parents=True)
            _write(partial, checkpoint)
            partial.rename(path)
            _sync_folder(self._folder)
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointNotSaved(str(path), _detail(error)) from error
        run_id = _run_of(checkpoint.meta)
        # One that cannot be read may be anybody's.
        own = [found for found in self._existing() if (meta := _meta_of(found)) is not None and _run_of(meta) == run_id]
        for old in own[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def held(self) -> tuple[HeldRun, ...]:
        """Return the runs that have checkpoints here, the one with the newest first; digests are not looked at."""
        found: dict[str, HeldRun] = {}
        for path in self._existing():
            meta = _meta_of(path)
            if meta is not None and (run_id := _run_of(meta)) not in found:
                found[run_id] = HeldRun(run_id, _whole(meta, "window"), _whole(meta, "committed_samples"))
        return tuple(found.values())

    def load_latest(self) -> RestoredCheckpoint:
        """Read the newest checkpoint that is whole.

        Raises:
            CheckpointError: When there is none; the text says what is wrong with each.
        """
        passed_over: list[str] = []
        for path in self._existing():
            if self._run_id and (meta := _meta_of(path)) is not None and _run_of(meta) != self._run_id:
                continue
            try:
                restored = RestoredCheckpoint(_read(path), path, tuple(passed_over))
            except (OSError, safetensors.SafetensorError, _Damaged) as error:
                passed_over.append(f"{path.name}: {_detail(error)}")
                continue
            return restored
        of_run = f" of run {self._run_id}" if self._run_id else ""
        there = ", ".join(run.run_id for run in self.held() if run.run_id) if self._run_id else ""
        none = f"there is no checkpoint{of_run}" + (f", but of {there}" if there else "")
        raise CheckpointError(str(self._folder), "; ".join(passed_over) or none)

    def _existing(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        return sorted(
            (path for path in self._folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()),
            key=_number,
            reverse=True,
        )

    def _remove_partial(self) -> None:
        for path in self._folder.glob(f"{_PREFIX}*.partial"):
            shutil.rmtree(path)


class _Damaged(Exception):
    """A checkpoint is not what was written."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    num_bytes: int
    sha256: str


class _Contents(BaseModel):
    """`checkpoint.json`. `digest` is the SHA-256 of the document with an empty digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    version: int
    meta: dict[str, JsonValue]
    files: dict[str, _File]
    digest: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode()

    def sealed(self) -> _Contents:
        unsealed = self.model_copy(update={"digest": ""})
        return self.model_copy(update={"digest": hashlib.sha256(unsealed.to_bytes()).hexdigest()})


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    state = checkpoint.state
    safetensors.torch.save_file(state.weights, folder / _WEIGHTS)
    safetensors.torch.save_file(state.optimizer, folder / _OPTIMIZER)
    (folder / _LEDGER).write_bytes(checkpoint.ledger)
    names = [_WEIGHTS, _OPTIMIZER, _LEDGER]
    if checkpoint.candidates:
        # Versions share no memory, and safetensors refuses tensors that do.
        flat = {f"{name}/{key}": value for name, held in checkpoint.candidates.items() for key, value in held.items()}
        safetensors.torch.save_file(flat, folder / _CANDIDATES)
        names.append(_CANDIDATES)
    files = {name: _seal(folder / name) for name in names}
    contents = _Contents(version=state.version, meta=dict(checkpoint.meta), files=files).sealed()
    (folder / _CONTENTS).write_bytes(contents.to_bytes())
    _seal(folder / _CONTENTS)
    _sync_folder(folder)


def _seal(path: Path) -> _File:
    """Put a file on the disk for good, and return its size and digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return _File(num_bytes=file.tell(), sha256=digest)


def _read(folder: Path) -> Checkpoint:
    try:
        contents = _Contents.model_validate_json((folder / _CONTENTS).read_bytes())
    except pydantic.ValidationError as error:
        raise _Damaged(f"{_CONTENTS} is torn or of another format") from error
    if contents != contents.sealed():
        raise _Damaged(f"{_CONTENTS} does not match its digest")
    for name in dict.fromkeys((_WEIGHTS, _OPTIMIZER, _LEDGER, *contents.files)):
        if name not in _FILES:
            raise _Damaged(f"{_CONTENTS} names {name!r}, which is no file of a checkpoint")
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if (recorded := contents.files.get(name)) is None or recorded.sha256 != found:
                raise _Damaged(f"{name} does not match its digest")
    state = EngineState(
        contents.version,
        safetensors.torch.load_file(folder / _WEIGHTS),
        safetensors.torch.load_file(folder / _OPTIMIZER),
    )
    candidates: dict[str, dict[str, Tensor]] = {}
    if _CANDIDATES in contents.files:
        for path, value in safetensors.torch.load_file(folder / _CANDIDATES).items():
            name, _, key = path.partition("/")
            candidates.setdefault(name, {})[key] = value
    return Checkpoint(state, (folder / _LEDGER).read_bytes(), contents.meta, candidates)


def _meta_of(folder: Path) -> Mapping[str, JsonValue] | None:
    """Return a checkpoint's `meta`, or None where that cannot be read."""
    try:
        return _Contents.model_validate_json((folder / _CONTENTS).read_bytes()).meta
    except (OSError, pydantic.ValidationError):
        return None


def _run_of(meta: Mapping[str, JsonValue]) -> str:
    """Return the id of the run that a checkpoint is of, empty where it does not say."""
    try:
        document = json.loads(str(meta.get("manifest", "")))
    except ValueError:
        return ""
    return str(document.get("run_id", "")) if isinstance(document, dict) else ""


def _whole(meta: Mapping[str, JsonValue], key: str) -> int:
    value = meta.get(key)
    return value if isinstance(value, int) else 0


def _sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk for good: a rename is durable only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _detail(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
