"""What a worker computes next: which microbatches go forward together, when a backward pass runs, when a window closes.

Order of work: a window that closes is committed, then backward passes, then forward passes. So the number of live
graphs falls before it grows. In a pool a commit takes a round with the other workers; while that is under way the
window's gradient sums stay as they are, and only forward passes run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection

from cutlayer.broker.leases import Lease
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import WindowSpec
from cutlayer.broker.messages import Activations, Mode
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.work import Backward, Commit, Forward, Group, Key, Release, Work
from cutlayer.broker.work_in_hand import WorkInHand

__all__ = ["Scheduler"]


class Scheduler:
    """Says what one worker computes next.

    Args:
        in_hand: What there is to do it with.
        spec: When windows close.
        max_batch_samples: Samples that go forward together at the most.
        is_pooled: Whether windows are shared with other workers.
        is_contrasted: Whether the samples of a window are compared with each other. Other weights put them elsewhere,
            so what does not fit into the open window then waits for its forward pass until that window is committed.

    Attributes:
        is_in_round: Whether a round of the pool is under way.
    """

    def __init__(
        self,
        in_hand: WorkInHand,
        spec: WindowSpec,
        max_batch_samples: int,
        *,
        is_pooled: bool = False,
        is_contrasted: bool = False,
    ) -> None:
        self._in_hand = in_hand
        self._spec = spec
        self._is_synchronous = spec.mode == "synchronous"
        self._is_pooled = is_pooled
        self._is_contrasted = is_contrasted
        self._max_batch_samples = max_batch_samples
        self._room_at: float | None = None
        self.is_in_round = False

    def deadlines(self) -> list[float]:
        """Return the times at which work appears by the clock alone."""
        opened_at = None if self._is_synchronous else self._in_hand.opened_at
        times = [time for time in (self._room_at,) if time is not None]
        times += [] if opened_at is None else [opened_at + self._spec.deadline_s]
        times += [due_at for group in self._in_hand.groups.values() if (due_at := self._late_at(group)) is not None]
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
        slow_after_s = self._in_hand.pace.slow_after_s
        times = [self._in_hand.exchanges[key].outputs_at for key in group.waiting]
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
        released = self._in_hand.take_released()
        if released is not None:
            return Release(released)
        held = others or OthersInWindow()
        if self.is_in_round:
            return self._next_forward(ledger, held, may_evaluate, now, is_training=is_training)
        backward = self._next_backward(now)
        is_due = may_commit and self._is_due(training, ledger, credits, backward, now, held)
        if is_due or (others is not None and others.ask_to_close):
            return Commit(
                self._in_hand.window,
                self._in_hand.window_samples,
                len(self._in_hand.in_window),
                self.progress(self._in_hand.window_samples, planned_samples),
                is_due,
            )
        return backward or self._next_forward(ledger, held, may_evaluate, now, is_training=is_training)

    def progress(self, window_samples: int, planned_samples: int | None) -> float | None:
        """Return the share of the planned samples that is committed with a window of so many samples."""
        if planned_samples is None:
            return None
        return min((self._in_hand.committed_samples + window_samples) / max(planned_samples, 1), 1.0)

    def _is_due(
        self,
        training: Collection[Lease],
        ledger: Ledger,
        num_credits: int,
        backward: Backward | None,
        now: float,
        others: OthersInWindow,
    ) -> bool:
        num_samples = self._in_hand.window_samples + others.num_samples
        if not num_samples:
            return False
        if self._is_synchronous:
            held = others.agents.union(key.agent for key in self._in_hand.in_window)
            return all(lease.agent in held for lease in training)
        if num_samples >= self._spec.samples or self._would_overshoot(backward, num_samples):
            return True
        return bool(self._in_hand.in_window) and self._is_overdue_or_full(training, ledger, num_credits, now)

    def _is_overdue_or_full(self, training: Collection[Lease], ledger: Ledger, num_credits: int, now: float) -> bool:
        assert self._in_hand.opened_at is not None
        if now >= self._in_hand.opened_at + self._spec.deadline_s:
            return True
        held = Counter(key.agent for key in self._in_hand.in_window)
        # Nothing can join the window before it is committed: every agent waits for it with all its credits. What a
        # slow one has joins another, unless only slow ones are left.
        present = [lease for lease in training if lease.absent_since is None]
        quick = [lease for lease in present if not self._in_hand.pace.is_slow(lease.agent)]
        return all(
            held[lease.agent] >= num_credits or held[lease.agent] + len(ledger.of(lease.agent)) >= lease.total_steps
            for lease in quick or present
        )

    def _would_overshoot(self, backward: Backward | None, num_samples: int) -> bool:
        """Whether the window is nearer to its size without what comes next: so sizes are met on average."""
        if backward is None:
            return False
        shortfall = self._spec.samples - num_samples
        coming = sum(self._in_hand.exchanges[key].num_samples for key, _ in backward.gradients)
        return coming - shortfall > shortfall

    def _next_backward(self, now: float) -> Backward | None:
        for group in self._in_hand.groups.values():
            late_at = self._late_at(group)
            is_late = late_at is not None and now >= late_at
            if group.ready and (not group.waiting or is_late):
                gradients = []
                for key in group.ready:
                    tensor = self._in_hand.exchanges[key].gradients
                    assert tensor is not None
                    gradients.append((key, tensor))
                of_tokenizers = tuple((key, self._in_hand.exchanges[key].tokenizer_gradients) for key in group.ready)
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
        for key, exchange in self._in_hand.exchanges.items():
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
        number = self._in_hand.start_group([key for key, _ in chosen])
        return Forward(number, chosen[0][0].mode, tuple(chosen), chosen[0][1].candidate)

    def _room(self, others: OthersInWindow, now: float) -> float:
        """Return how many samples of training may go forward now, the last microbatch's surplus apart.

        Where windows are contrasted that is what the open one lacks. Who takes longer than a window's deadline to
        answer is not counted: nobody should wait for what may never come.
        """
        self._room_at = None
        if not self._is_contrasted or self._is_synchronous:
            return math.inf
        times: list[float] = []
        room = float(max(self._spec.samples // (1 + others.num_workers), 1) - self._in_hand.window_samples)
        for key in (key for group in self._in_hand.groups.values() for key in (*group.waiting, *group.ready)):
            exchange = self._in_hand.exchanges[key]
            given_up_at = math.inf if exchange.outputs_at is None else exchange.outputs_at + self._spec.deadline_s
            if exchange.state is ExchangeState.GRADIENTS or now < given_up_at:
                room -= exchange.num_samples
                times += [given_up_at] if exchange.state is ExchangeState.OUTPUTS else []
        self._room_at = min(times) if times and room <= 0 else None
        return room

    def _keeps_apart(self, key: Key) -> str | None:
        """Return the agent whose microbatches go forward without those of others, since they would wait for it."""
        is_apart = key.mode is Mode.TRAIN and not self._is_synchronous and self._in_hand.pace.is_slow(key.agent)
        return key.agent if is_apart else None

    def _in_turn(self, ledger: Ledger, others: OthersInWindow) -> set[Key]:
        """Return the training microbatches whose turn it is: all, or in synchronous mode the next of each agent.

        A microbatch then waits for the window of the one before it, wherever in the pool that is. Where the ledger
        has fewer steps than an agent thought, after a resume, the agent takes back what it has sent and starts again
        from the first that is missing. A step that another worker's window has already, and that the agent has sent
        again here, waits for that window's commit.
        """
        training = (key for key in self._in_hand.exchanges if key.mode is Mode.TRAIN)
        if not self._is_synchronous:
            return set(training)
        return {
            key
            for key in training
            if key.agent not in others.agents and key.step == ledger.of(key.agent).first_missing()
        }
