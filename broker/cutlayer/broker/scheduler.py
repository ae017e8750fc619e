"""What a worker computes next: which microbatches go forward together, when a backward pass runs, when a window closes.

Order of work: a window that closes is committed, then backward passes, then forward passes. So the number of live
graphs falls before it grows. In a pool a commit takes a round with the other workers; while that is under way the
window's gradient sums stay as they are, and only forward passes run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from cutlayer.broker.leases import Lease
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import WindowSpec
from cutlayer.broker.messages import Activations, EncodedTensor, Mode
from cutlayer.broker.pace import Pace
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.work import Backward, Commit, Exchange, Forward, Group, Key, NamedTensors, Release, Work

__all__ = ["Scheduler"]

PATIENCE_RATIO = 0.05
"""Share of a window's deadline that every agent may take for its gradients before it counts as slow."""


class Scheduler:
    """The exchanges, groups and the open window of one worker.

    Args:
        spec: When windows close.
        max_batch_samples: Samples that go forward together at the most.
        window: Windows already committed.
        version: Version of the weights.
        committed_samples: Samples already committed.
        is_pooled: Whether windows are shared with other workers.
        is_contrasted: Whether the samples of a window are compared with each other. Other weights put them elsewhere,
            so what does not fit into the open window then waits for its forward pass until that window is committed.
    """

    def __init__(
        self,
        spec: WindowSpec,
        max_batch_samples: int,
        window: int,
        version: int,
        committed_samples: int,
        *,
        is_pooled: bool = False,
        is_contrasted: bool = False,
    ) -> None:
        self.exchanges: dict[Key, Exchange] = {}
        self.window = window
        self.version = version
        self.committed_samples = committed_samples
        self._spec = spec
        self._is_synchronous = spec.mode == "synchronous"
        self._is_pooled = is_pooled
        self._is_contrasted = is_contrasted
        self._max_batch_samples = max_batch_samples
        self._pace = Pace(PATIENCE_RATIO * spec.deadline_s)
        self._groups: dict[int, Group] = {}
        self._next_group = 0
        self._to_release: list[int] = []
        self._in_window: list[Key] = []
        self._window_samples = 0
        self._opened_at: float | None = None
        self._room_at: float | None = None
        self.is_in_round = False

    @property
    def in_window(self) -> tuple[Key, ...]:
        """Microbatches whose gradients are in the open window."""
        return tuple(self._in_window)

    @property
    def window_samples(self) -> int:
        """Samples of those."""
        return self._window_samples

    # Exchanges ------------------------------------------------------------------------------------------------

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
        group = self._groups[exchange.group]
        exchange.state = ExchangeState.GRADIENTS
        exchange.gradients, exchange.tokenizer_gradients = gradients, of_tokenizers
        if exchange.outputs_at is not None:
            self._pace.took(exchange.key.agent, now - exchange.outputs_at)
        group.waiting.discard(exchange.key)
        group.ready.append(exchange.key)
        group.first_ready_at = now if group.first_ready_at is None else group.first_ready_at

    def abandon(self, agent: str) -> None:
        """Forget what an agent has not sent the gradients of. What it has, is committed: nothing is lost or doubled."""
        self._pace.forget(agent)
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
        group = self._groups.get(exchange.group) if exchange.group is not None else None
        if group is not None:
            group.waiting.discard(exchange.key)
            group.ready = [key for key in group.ready if key != exchange.key]
            group.first_ready_at = group.first_ready_at if group.ready else None
            self._release_if_empty(group)

    def _release_if_empty(self, group: Group) -> None:
        if not group.waiting and not group.ready:
            del self._groups[group.number]
            self._to_release.append(group.number)

    # Work -----------------------------------------------------------------------------------------------------

    def deadlines(self) -> list[float]:
        """Return the times at which work appears by the clock alone."""
        opened_at = None if self._is_synchronous else self._opened_at
        times = [time for time in (self._room_at,) if time is not None]
        times += [] if opened_at is None else [opened_at + self._spec.deadline_s]
        times += [due_at for group in self._groups.values() if (due_at := self._late_at(group)) is not None]
        return times

    def _late_at(self, group: Group) -> float | None:
        """Return when the gradients of a group that are there wait no longer for the others; None while there are none.

        That is at the deadline, or as soon as all the others are slow: they would hold back everybody's credits. In
        synchronous mode one worker alone waits for all of them; in a pool an agent may have moved to another worker,
        and the two would wait for each other's groups.
        """
        if group.first_ready_at is None or (self._is_synchronous and not self._is_pooled):
            return None
        if self._is_synchronous:
            return group.first_ready_at + self._spec.deadline_s
        slow_after_s = self._pace.slow_after_s
        times = [self.exchanges[key].outputs_at for key in group.waiting]
        slow_at = max((time + slow_after_s for time in times if time is not None), default=group.first_ready_at)
        return min(max(slow_at, group.first_ready_at), group.first_ready_at + self._spec.deadline_s)

    def next_work(
        self,
        training: Collection[Lease],
        ledger: Ledger,
        *,
        is_training: bool,
        credits: int,  # noqa: A002 - the protocol's own word
        planned_samples: int | None,
        now: float,
        others: OthersInWindow | None = None,
        may_commit: bool = True,
        may_evaluate: Callable[[str, str], bool] = lambda *_: True,
    ) -> Work | None:
        """Return what to compute next, or None.

        Args:
            training: Leases that have steps left.
            ledger: Committed steps.
            is_training: Whether training microbatches may go forward.
            credits: Microbatches that an agent may have outstanding.
            planned_samples: Samples that all agents will have trained on at the end; None when there is none.
            now: Seconds.
            others: What the other workers of the pool hold; None without a pool.
            may_commit: Whether the window may close.
            may_evaluate: Says of an agent and the weights that it names whether what it evaluates may run now.
        """
        if self._to_release:
            return Release(self._to_release.pop())
        held = others or OthersInWindow()
        if self.is_in_round:
            return self._next_forward(ledger, held, may_evaluate, now, is_training=is_training)
        backward = self._next_backward(now)
        is_due = may_commit and self._is_due(training, ledger, credits, backward, now, held)
        if is_due or (others is not None and others.ask_to_close):
            return Commit(
                self.window,
                self._window_samples,
                len(self._in_window),
                self.progress(self._window_samples, planned_samples),
                is_due,
            )
        return backward or self._next_forward(ledger, held, may_evaluate, now, is_training=is_training)

    def progress(self, window_samples: int, planned_samples: int | None) -> float | None:
        """Return the share of the planned samples that is committed with a window of so many samples."""
        if planned_samples is None:
            return None
        return min((self.committed_samples + window_samples) / max(planned_samples, 1), 1.0)

    def _is_due(
        self,
        training: Collection[Lease],
        ledger: Ledger,
        num_credits: int,
        backward: Backward | None,
        now: float,
        others: OthersInWindow,
    ) -> bool:
        num_samples = self._window_samples + others.num_samples
        if not num_samples:
            return False
        if self._is_synchronous:
            held = others.agents.union(key.agent for key in self._in_window)
            return all(lease.agent in held for lease in training)
        if num_samples >= self._spec.samples or self._would_overshoot(backward, num_samples):
            return True
        return bool(self._in_window) and self._is_overdue_or_full(training, ledger, num_credits, now)

    def _is_overdue_or_full(self, training: Collection[Lease], ledger: Ledger, num_credits: int, now: float) -> bool:
        assert self._opened_at is not None
        if now >= self._opened_at + self._spec.deadline_s:
            return True
        held = Counter(key.agent for key in self._in_window)
        # Nothing can join the window before it is committed: every agent waits for it with all its credits. What a
        # slow one has joins another, unless only slow ones are left.
        present = [lease for lease in training if lease.absent_since is None]
        quick = [lease for lease in present if not self._pace.is_slow(lease.agent)]
        return all(
            held[lease.agent] >= num_credits or held[lease.agent] + len(ledger.of(lease.agent)) >= lease.total_steps
            for lease in quick or present
        )

    def _would_overshoot(self, backward: Backward | None, num_samples: int) -> bool:
        """Whether the window is nearer to its size without what comes next: so sizes are met on average."""
        if backward is None:
            return False
        shortfall = self._spec.samples - num_samples
        coming = sum(self.exchanges[key].num_samples for key, _ in backward.gradients)
        return coming - shortfall > shortfall

    def _next_backward(self, now: float) -> Backward | None:
        for group in self._groups.values():
            late_at = self._late_at(group)
            is_late = late_at is not None and now >= late_at
            if group.ready and (not group.waiting or is_late):
                gradients = []
                for key in group.ready:
                    tensor = self.exchanges[key].gradients
                    assert tensor is not None
                    gradients.append((key, tensor))
                of_tokenizers = tuple((key, self.exchanges[key].tokenizer_gradients) for key in group.ready)
                return Backward(
                    group.number,
                    tuple(gradients),
                    last=not group.waiting,
                    tokenizer_gradients=tuple(pair for pair in of_tokenizers if pair[1]),
                )
        return None

    def _next_forward(
        self,
        ledger: Ledger,
        others: OthersInWindow,
        may_evaluate: Callable[[str, str], bool],
        now: float,
        *,
        is_training: bool,
    ) -> Forward | None:
        room = self._room(others, now)
        ready = self._in_turn(ledger, others) if is_training and room > 0 else set()
        chosen: list[tuple[Key, Activations]] = []
        form: object = None
        num_samples = 0
        for key, exchange in self.exchanges.items():
            message = exchange.activations
            if exchange.state is not ExchangeState.ACTIVATIONS or exchange.group is not None:
                continue
            if key.mode is Mode.TRAIN and key not in ready:
                continue
            if key.mode is not Mode.TRAIN and not may_evaluate(key.agent, message.candidate):
                continue
            signature = (key.mode, sorted(message.modalities), self._keeps_apart(key), message.candidate)
            if form is None:
                form = signature
            # A group is committed whole, so one of training is not larger than this worker's share of an asynchronous
            # window: two workers with a window each would commit both at once, and take half of the steps.
            most = self._max_batch_samples
            if key.mode is Mode.TRAIN and not self._is_synchronous:
                most = min(most, self._spec.samples // (1 + others.num_workers))
            if signature != form or (chosen and num_samples + exchange.num_samples > most):
                continue
            if key.mode is Mode.TRAIN and num_samples >= room:
                break
            chosen.append((key, message))
            num_samples += exchange.num_samples
        if not chosen:
            return None
        number = self._next_group
        self._next_group += 1
        for key, _ in chosen:
            self.exchanges[key].group = number
        mode = chosen[0][0].mode
        if mode is Mode.TRAIN:
            self._groups[number] = Group(number, self.version, {key for key, _ in chosen})
        return Forward(number, mode, tuple(chosen), chosen[0][1].candidate)

    def _room(self, others: OthersInWindow, now: float) -> float:
        """Return how many samples of training may go forward now, the last microbatch's surplus apart.

        Where windows are contrasted that is what the open one lacks. Who takes longer than a window's deadline to
        answer is not counted: nobody should wait for what may never come.
        """
        self._room_at = None
        if not self._is_contrasted or self._is_synchronous:
            return math.inf
        times: list[float] = []
        room = float(max(self._spec.samples // (1 + others.num_workers), 1) - self._window_samples)
        for key in (key for group in self._groups.values() for key in (*group.waiting, *group.ready)):
            exchange = self.exchanges[key]
            given_up_at = math.inf if exchange.outputs_at is None else exchange.outputs_at + self._spec.deadline_s
            if exchange.state is ExchangeState.GRADIENTS or now < given_up_at:
                room -= exchange.num_samples
                times += [given_up_at] if exchange.state is ExchangeState.OUTPUTS else []
        self._room_at = min(times) if times and room <= 0 else None
        return room

    def _keeps_apart(self, key: Key) -> str | None:
        """Return the agent whose microbatches go forward without those of others, since they would wait for it."""
        is_apart = key.mode is Mode.TRAIN and not self._is_synchronous and self._pace.is_slow(key.agent)
        return key.agent if is_apart else None

    def _in_turn(self, ledger: Ledger, others: OthersInWindow) -> set[Key]:
        """Return the training microbatches whose turn it is: all, or in synchronous mode the next of each agent.

        A microbatch then waits for the window of the one before it, wherever in the pool that is. Where the ledger
        has fewer steps than an agent thought, after a resume, the agent takes back what it has sent and starts again
        from the first that is missing. A step that another worker's window has already, and that the agent has sent
        again here, waits for that window's commit.
        """
        training = (key for key in self.exchanges if key.mode is Mode.TRAIN)
        if not self._is_synchronous:
            return set(training)
        return {
            key
            for key in training
            if key.agent not in others.agents and key.step == ledger.of(key.agent).first_missing()
        }

    # Results --------------------------------------------------------------------------------------------------

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
        if number in self._groups:
            self._groups[number].version = version
        return wanted

    def backward_done(self, number: int, now: float) -> None:
        """Take notice that the ready gradients of a group are part of the open window."""
        group = self._groups[number]
        for key in group.ready:
            self.exchanges[key].gradients, self.exchanges[key].tokenizer_gradients = None, ()
            self.exchanges[key].in_window_at = now
            self._in_window.append(key)
            self._window_samples += self.exchanges[key].num_samples
        group.ready, group.first_ready_at = [], None
        self._opened_at = now if self._opened_at is None else self._opened_at
        if not group.waiting:
            del self._groups[number]

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
        self._in_window, self._window_samples, self._opened_at = [], 0, None
        return taken

    def start_over(self, window: int, version: int, committed_samples: int) -> list[Exchange]:
        """Continue from other weights: drop all graphs and the window; return the exchanges that have lost theirs."""
        lost = [exchange for exchange in self.exchanges.values() if exchange.group is not None]
        for exchange in lost:
            del self.exchanges[exchange.key]
        self._groups.clear()
        self._to_release.clear()
        self._in_window, self._window_samples, self._opened_at = [], 0, None
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
        for group in list(self._groups.values()):
            if self.version - group.version <= self._spec.max_staleness:
                continue
            for exchange in (self.exchanges[key] for key in group.waiting):
                assert exchange.outputs_at is not None, "a group has versions once it went forward"
                self._pace.takes_at_least(exchange.key.agent, now - exchange.outputs_at)
                exchange.group = None
            for key in group.ready:
                self._queue_again(self.exchanges[key])
            del self._groups[group.number]
            self._to_release.append(group.number)

    def forward_again(self, exchange: Exchange, now: float) -> None:
        """Queue a microbatch again whose gradients have come after its graph was given up.

        Its agent answers the new outputs, and has meanwhile sent what kept it: on a slow link gradients wait behind
        activations that were handed over before them.
        """
        if exchange.outputs_at is not None:
            self._pace.took(exchange.key.agent, now - exchange.outputs_at)
        self._queue_again(exchange)

    def _queue_again(self, exchange: Exchange) -> None:
        exchange.state, exchange.group = ExchangeState.ACTIVATIONS, None
        exchange.outputs = exchange.gradients = None
        exchange.tokenizer_gradients = ()
