"""When a worker saves what, and that a disk that is full does not end it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointNotSaved, CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import CheckpointSaved, EventHandler

__all__ = ["Saver"]

log = logging.getLogger(__name__)


class Saver:
    """Saves one worker's state.

    Args:
        store: Where to save; None for nowhere.
        session: The conversation: counters and ledger.
        engine: The arithmetic: weights and optimizer.
        every_windows: Windows from one checkpoint to the next.
        emit: Takes events.
    """

    def __init__(
        self,
        store: CheckpointStore | None,
        session: WorkerSession,
        engine: Engine | CountingEngine,
        every_windows: int,
        emit: EventHandler,
    ) -> None:
        self._store = store
        self._session = session
        self._engine = engine
        self._every_windows = every_windows
        self._emit = emit

    def save_if_due(self) -> None:
        """Save when so many windows are committed."""
        if self._session.window % self._every_windows == 0:
            self.save()

    def save(self) -> Path | None:
        """Save weights, optimizer, counters and ledger; a full disk is reported and the run goes on.

        Nothing is saved before the first window: that would be the newest checkpoint of the folder, with nothing in it.

        Returns:
            The checkpoint's folder; None where nothing was saved.
        """
        if self._store is None or not self._session.window:
            return None
        start = time.perf_counter()
        try:
            path = self._store.save(self.snapshot())
        except CheckpointNotSaved as error:
            log.warning("%s", error)
            return None
        self._emit(CheckpointSaved(self._session.window, time.perf_counter() - start))
        return path

    def save_at_stop(self) -> None:
        """Save what is committed when the worker is stopped before the run has ended, and say what came of it."""
        path = self.save()
        if path is not None:
            log.info("stopped; %s saved, window %d", path.name, self._session.window)
        elif self._store is None:
            log.info("stopped")
        elif self._session.window:
            log.warning("stopped; no checkpoint of window %d could be saved", self._session.window)
        else:
            log.info("stopped; no window was committed, so there is nothing to save")

    def snapshot(self) -> Checkpoint:
        """Return the state as it is now."""
        session = self._session
        meta: dict[str, JsonValue] = {
            "manifest": session.manifest.to_bytes().decode(),
            "window": session.window,
            "committed_samples": session.committed_samples,
            "known_samples": dict(session.known_samples),
        }
        candidates: Mapping[str, Mapping[str, Tensor]] = {}
        if session.selection is not None:
            meta["selection"] = session.selection.as_json()
            held = session.selection.held
            candidates = {name: values for name, values in self._engine.candidates().items() if name in held}
        return Checkpoint(self._engine.state_dict(), session.ledger.to_bytes(), meta, candidates)
