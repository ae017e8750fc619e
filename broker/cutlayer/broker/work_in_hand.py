"""What a worker has in hand: the exchanges, the groups that are live graphs, and the open window.

Here is what comes of each arrival and each result. What to compute next is the scheduler's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import WindowSpec
from cutlayer.broker.messages import EncodedTensor, Mode
from cutlayer.broker.pace import Pace
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.work import Exchange, Group, Key, NamedTensors

__all__ = ["WorkInHand"]

PATIENCE_RATIO = 0.05
"""Share of a window's deadline that every agent may take for its gradients before it counts as slow."""


class WorkInHand:
    """The exchanges, groups and the open window of one worker.

    Args:
        spec: When windows close.
        window: Windows already committed.
        version: Version of the weights.
        committed_samples: Samples already committed.

    Attributes:
        exchanges: What is here, in the order in which it came.
        groups: The live graphs of training, by number.
        pace: How long agents take for their gradients.
        opened_at: When the first gradients of the open window were there; None while it is empty.
        window: Windows committed.
        version: Version of the weights.
        committed_samples: Samples committed.
    """

    def __init__(self, spec: WindowSpec, window: int, version: int, committed_samples: int) -> None:
        self.exchanges: dict[Key, Exchange] = {}
        self.groups: dict[int, Group] = {}
        self.pace = Pace(PATIENCE_RATIO * spec.deadline_s)
        self.opened_at: float | None = None
        self.window = window
        self.version = version
        self.committed_samples = committed_samples
        self._max_staleness = spec.max_staleness
        self._next_group = 0
        self._to_release: list[int] = []
        self._in_window: list[Key] = []
        self._window_samples = 0

    @property
    def in_window(self) -> tuple[Key, ...]:
        """Microbatches whose gradients are in the open window."""
        return tuple(self._in_window)

    @property
    def window_samples(self) -> int:
        """Samples of those."""
        return self._window_samples

    # What comes and goes --------------------------------------------------------------------------------------

    def add(self, exchange: Exchange) -> None:
        """Queue a microbatch for its forward pass."""
        self.exchanges[exchange.key] = exchange

    def num_of(self, agent: str) -> int:
        """Return how many microbatches of an agent are here."""
        return sum(key.agent == agent for key in self.exchanges)

    def take_gradients(
        self, exchange: Exchange, gradients: EncodedTensor, now: float, of_tokenizers: NamedTensors = ()
    ) -> None:
        """Take a microbatch's output gradients; its group may now be ready for its backward pass."""
        assert exchange.group is not None
        group = self.groups[exchange.group]
        exchange.state = ExchangeState.GRADIENTS
        exchange.gradients, exchange.tokenizer_gradients = gradients, of_tokenizers
        if exchange.outputs_at is not None:
            self.pace.took(exchange.key.agent, now - exchange.outputs_at)
        group.waiting.discard(exchange.key)
        group.ready.append(exchange.key)
        group.first_ready_at = now if group.first_ready_at is None else group.first_ready_at

    def abandon(self, agent: str) -> None:
        """Forget what an agent has not sent the gradients of. What it has, is committed: nothing is lost or doubled."""
        self.pace.forget(agent)
        for key, exchange in list(self.exchanges.items()):
            if key.agent == agent and exchange.state in (ExchangeState.ACTIVATIONS, ExchangeState.OUTPUTS):
                self._forget(exchange)

    def discard(self, key: Key) -> None:
        """Forget one microbatch that is of no use, whatever of it is here."""
        exchange = self.exchanges.get(key)
        if exchange is not None and key not in self._in_window:
            self._forget(exchange)

    def _forget(self, exchange: Exchange) -> None:
        del self.exchanges[exchange.key]
        group = self.groups.get(exchange.group) if exchange.group is not None else None
        if group is not None:
            group.waiting.discard(exchange.key)
            group.ready = [key for key in group.ready if key != exchange.key]
            group.first_ready_at = group.first_ready_at if group.ready else None
            self._release_if_empty(group)

    def _release_if_empty(self, group: Group) -> None:
        if not group.waiting and not group.ready:
            del self.groups[group.number]
            self._to_release.append(group.number)

    def take_released(self) -> int | None:
        """Return the number of a group whose graph nobody needs any more, each once; None when there is none."""
        return self._to_release.pop() if self._to_release else None

    # Groups and the window -----------------------------------------------------------------------------------

    def start_group(self, keys: Sequence[Key]) -> int:
        """Put microbatches of one mode, which go forward together now, into a group; return its number."""
        number = self._next_group
        self._next_group += 1
        for key in keys:
            self.exchanges[key].group = number
        if keys[0].mode is Mode.TRAIN:
            self.groups[number] = Group(number, self.version, set(keys))
        return number

    def forwarded(self, number: int, keys: Sequence[Key], version: int, now: float) -> list[Exchange]:
        """Take notice of a forward pass; return the exchanges that are still wanted, whose outputs go now."""
        wanted = []
        for key in keys:
            exchange = self.exchanges.get(key)
            if exchange is None or exchange.group != number:
                continue
            exchange.state = ExchangeState.OUTPUTS
            exchange.outputs_at = now
            wanted.append(exchange)
            if key.mode is not Mode.TRAIN:
                del self.exchanges[key]
        if number in self.groups:
            self.groups[number].version = version
        return wanted

    def backward_done(self, number: int, now: float) -> None:
        """Take notice that the ready gradients of a group are part of the open window."""
        group = self.groups[number]
        for key in group.ready:
            self.exchanges[key].gradients, self.exchanges[key].tokenizer_gradients = None, ()
            self.exchanges[key].in_window_at = now
            self._in_window.append(key)
            self._window_samples += self.exchanges[key].num_samples
        group.ready, group.first_ready_at = [], None
        self.opened_at = now if self.opened_at is None else self.opened_at
        if not group.waiting:
            del self.groups[number]

    def committed(self, version: int, num_samples: int | None = None) -> list[Exchange]:
        """Take notice of an optimizer step; return the exchanges of it that are here.

        Args:
            version: Version of the weights now.
            num_samples: Samples of all workers in it; this one's when left out.
        """
        num_samples = self._window_samples if num_samples is None else num_samples
        done = self.empty_window()
        self.committed_samples += num_samples
        self.window += 1
        self.version = version
        return done

    def empty_window(self) -> list[Exchange]:
        """Take everything out of the open window, and return it."""
        taken = [self.exchanges.pop(key) for key in self._in_window]
        self._in_window, self._window_samples, self.opened_at = [], 0, None
        return taken

    def start_over(self, window: int, version: int, committed_samples: int) -> list[Exchange]:
        """Continue from other weights: drop all graphs and the window; return the exchanges that have lost theirs."""
        lost = [exchange for exchange in self.exchanges.values() if exchange.group is not None]
        for exchange in lost:
            del self.exchanges[exchange.key]
        self.groups.clear()
        self._to_release.clear()
        self._in_window, self._window_samples, self.opened_at = [], 0, None
        self.window, self.version, self.committed_samples = window, version, committed_samples
        return lost

    def stop_training(self, version: int) -> list[Exchange]:
        """Go on with other weights, and with evaluations alone; return the exchanges of training that are dropped."""
        dropped = self.start_over(self.window, version, self.committed_samples)
        dropped += [exchange for exchange in self.exchanges.values() if exchange.key.mode is Mode.TRAIN]
        for exchange in dropped:
            self.exchanges.pop(exchange.key, None)
        return dropped

    def take_committed(self, ledger: Ledger) -> list[Exchange]:
        """Forget what the ledger has and the window has not: another worker has committed it. Return it."""
        done = [
            exchange
            for key, exchange in self.exchanges.items()
            if key.mode is Mode.TRAIN and key.step in ledger.of(key.agent) and key not in self._in_window
        ]
        for exchange in done:
            self._forget(exchange)
        return done

    def give_up_stale(self, now: float) -> None:
        """Free the graphs of the groups whose weights are too old by now.

        Their activations are still here. Those whose gradients wait for others' go forward again at once, the others
        when their gradients come (`forward_again`): until then nobody knows how many versions more will have gone by.
        """
        for group in list(self.groups.values()):
            if self.version - group.version <= self._max_staleness:
                continue
            for exchange in (self.exchanges[key] for key in group.waiting):
                assert exchange.outputs_at is not None, "a group has versions once it went forward"
                self.pace.takes_at_least(exchange.key.agent, now - exchange.outputs_at)
                exchange.group = None
            for key in group.ready:
                self._queue_again(self.exchanges[key])
            del self.groups[group.number]
            self._to_release.append(group.number)

    def forward_again(self, exchange: Exchange, now: float) -> None:
        """Queue a microbatch again whose gradients have come after its graph was given up.

        Its agent answers the new outputs, and has meanwhile sent what kept it: on a slow link gradients wait behind
        activations that were handed over before them.
        """
        if exchange.outputs_at is not None:
            self.pace.took(exchange.key.agent, now - exchange.outputs_at)
        self._queue_again(exchange)

    def _queue_again(self, exchange: Exchange) -> None:
        exchange.state, exchange.group = ExchangeState.ACTIVATIONS, None
        exchange.outputs = exchange.gradients = None
        exchange.tokenizer_gradients = ()
