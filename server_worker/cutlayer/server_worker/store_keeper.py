"""Opens a worker's store of activations for the run that it serves, and lets go of it.

A worker of a pool learns which run it serves when it joins, and may then share its store with others on its machine: so
the store is opened by the run's name when the worker begins to serve, and not before.
"""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.server_worker.activation_store import ActivationStore

__all__ = ["StoreKeeper"]


class StoreKeeper:
    """Holds one worker's store.

    Args:
        open_store: Opens the store of a run, by its id; None for a worker that keeps nothing.
    """

    def __init__(self, open_store: Callable[[str], ActivationStore] | None = None) -> None:
        self._open_store = open_store
        self._store: ActivationStore | None = None
        self._run_id = ""

    @property
    def store(self) -> ActivationStore | None:
        """The store, once it is open."""
        return self._store

    def open(self, run_id: str) -> str:
        """Open the store of a run, unless it is open already; return its name, empty for none.

        Raises:
            SettingsError: When there is no room for one where the settings say.
        """
        if self._open_store is None:
            return ""
        if self._store is None or run_id != self._run_id:
            self.close()
            self._store, self._run_id = self._open_store(run_id), run_id
        return self._store.id

    def delete(self) -> None:
        """Drop everything: the run has ended."""
        if self._store is not None:
            self._store.delete()

    def close(self) -> None:
        """Let go of the store, which stays for others and for later."""
        if self._store is not None:
            self._store.close()
            self._store = None
