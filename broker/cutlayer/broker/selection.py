"""Which weights a run ends with, and when it ends early: candidates, what validation says of them, the choice. No I/O.

The weights at each epoch of the whole run are a *candidate*, named by their fingerprint. Agents report sums over their
validation samples for one candidate at a time, and a candidate is *judged* by the sums of all agents together:

                 committed            taken                   judged
    (weights) ------------> due ------------> current ------------------> best, or nothing
                                                 ^
                                   waiting ------'   a newer one takes the place of one that waits

So what is being evaluated is never taken away by a newer candidate, however slow an agent is, and at most three
candidates are held at any time: the best, the current one, and one that waits.

In a pool every replica has the same selection: it changes with windows and by what a round concludes, and by nothing
else. What a replica has heard from agents is its own, and only proposes (`proposals`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cutlayer.broker.manifest import EvaluationSpec
from cutlayer.broker.reports import MetricSums
from cutlayer.broker.task_metrics import Metric, is_plausible, mean_loss, metric_values, metrics_of, pooled
from cutlayer.broker.tasks import TaskSpec

__all__ = ["LOSS", "Candidate", "Decision", "Judged", "Judgement", "Selection", "judging_metric"]

LOSS: Final = Metric("loss", "loss", "less")


def judging_metric(task: TaskSpec, name: str) -> Metric:
    """Return the metric that judges candidates.

    Args:
        task: What is learned.
        name: `loss`, or a metric of the task; empty for its first.

    Raises:
        ValueError: When the task has no such metric; the text lists those that it has.
    """
    metrics = {metric.name: metric for metric in (*metrics_of(task), LOSS)}
    if name and name not in metrics:
        raise ValueError(f"the task has no metric {name!r}: choose one of {', '.join(metrics)}")
    return metrics[name] if name else metrics_of(task)[0]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that are to be judged.

    Attributes:
        epoch: Epochs of the whole run that they are of.
        name: Their fingerprint.
    """

    epoch: int
    name: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the agents that one worker has heard say of a candidate.

    Attributes:
        name: The candidate's.
        value: The metric; None where nobody could tell.
        loss: Mean loss; None as well.
        num_samples: Validation samples of all agents.
    """

    name: str
    value: float | None = None
    loss: float | None = None
    num_samples: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate and its judgement; fields as of these two."""

    epoch: int
    name: str
    value: float | None
    loss: float | None
    num_samples: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What the run ends with.

    Attributes:
        epoch: Of the weights.
        name: The candidate that takes the place of the newest weights; empty where these are kept.
        is_early: Whether training has ended before its last epoch for want of a better candidate.
    """

    epoch: int
    name: str
    is_early: bool


class Selection:
    """The candidates of one run.

    Args:
        spec: How they are judged, and what for.
        task: What is learned.
        epochs: Epochs of the run.

    Attributes:
        metric: What judges.
        due: Epoch of the candidate that the newest weights are, until they are `taken`; else None.
        current: The candidate that agents evaluate now.
        waiting: The one that comes next.
        best: The best one so far.
        judged: All that were judged, in order.
        decision: The end of it.
        is_restored: Whether the newest weights are the ones decided on.
    """

    def __init__(self, spec: EvaluationSpec, task: TaskSpec, epochs: int) -> None:
        self.metric = judging_metric(task, spec.metric)
        self.due: int | None = None
        self.current: Candidate | None = None
        self.waiting: Candidate | None = None
        self.best: Judged | None = None
        self.judged: list[Judged] = []
        self.decision: Decision | None = None
        self.is_restored = False
        self._spec = spec
        self._task = task
        self._epochs = epochs
        self._last_epoch = 0
        self._is_newer = False  # than the last candidate, the weights are
        self._reports: dict[str, dict[str, MetricSums]] = {}

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the candidates whose weights are still needed, three at most."""
        if self.is_restored:
            return ()
        best = self.best if self._spec.keep == "best" else None
        return tuple(dict.fromkeys(each.name for each in (best, self.current, self.waiting) if each is not None))

    # Weights --------------------------------------------------------------------------------------------------

    def committed(self, committed_samples: int, planned_samples: int | None) -> None:
        """Take notice of a window: where an epoch of the whole run has ended with it, a candidate is due."""
        if self.decision is not None:
            return
        self._is_newer = True
        if planned_samples is None:
            return
        epoch = min(committed_samples * self._epochs // max(planned_samples, 1), self._epochs)
        every = max(self._spec.every_epochs, 1)
        is_last = epoch == self._epochs > self._last_epoch
        if is_last or epoch // every > self._last_epoch // every:
            self.due = epoch

    def taken(self, name: str) -> None:
        """Take notice that the newest weights are held under a name."""
        assert self.due is not None, "a candidate is taken when it is due"
        candidate = Candidate(self.due, name)
        self._last_epoch, self.due, self._is_newer = self.due, None, False
        if self.current is None:
            self.current = candidate
        else:
            self.waiting = candidate

    # Judgement ------------------------------------------------------------------------------------------------

    def report(self, agent: str, name: str, sums: MetricSums) -> None:
        """Take what an agent's validation samples say of a candidate; one that cannot be is passed over."""
        known = {each.name for each in (self.current, self.waiting) if each is not None}
        if name in known and is_plausible(self._task, sums):
            self._reports.setdefault(name, {})[agent] = sums

    def reported(self) -> Collection[str]:
        """Return the agents that have reported of the current candidate."""
        return () if self.current is None else self._reports.get(self.current.name, {}).keys()

    def proposals(self, awaited: Collection[str], *, is_over: bool) -> tuple[Judgement, ...]:
        """Return the judgement of the current candidate once all agents that are awaited have reported.

        Args:
            awaited: Agents with validation samples that are here. With none of them nobody may come any more: the
                candidate goes when another waits, and at the end.
            is_over: Whether training has come to its end.
        """
        if self.current is None:
            return ()
        reports = self._reports.get(self.current.name, {})
        if any(agent not in reports for agent in awaited):
            return ()
        if not awaited and not reports and self.waiting is None and not is_over:
            return ()
        sums = pooled(reports.values())
        loss = mean_loss(sums)
        value = loss if self.metric == LOSS else metric_values(self._task, sums).get(self.metric.name)
        return (Judgement(self.current.name, value, loss, sums.num_samples),)

    def conclude(self, judgements: Iterable[Judgement], *, is_over: bool) -> list[Judged]:
        """Judge, and decide where there is nothing more to come.

        Args:
            judgements: Those of one worker or, from a round, of several: of a candidate the first one counts.
            is_over: Whether training has come to its end: then the newest weights are a candidate, too.

        Returns:
            What was judged.
        """
        if self.decision is not None:
            return []
        by_name: dict[str, Judgement] = {}
        for judgement in judgements:
            by_name.setdefault(judgement.name, judgement)
        news: list[Judged] = []
        while self.current is not None and self.current.name in by_name:
            found = by_name.pop(self.current.name)
            news.append(Judged(self.current.epoch, found.name, found.value, found.loss, found.num_samples))
            if self._is_better(news[-1]):
                self.best = news[-1]
            self._reports.pop(found.name, None)
            self.current, self.waiting = self.waiting, None
        self.judged += news
        if self.left_epochs is not None and self.left_epochs <= 0:
            self._decide(is_early=not is_over)
        elif is_over and self._is_newer and self.due is None:
            self.due = self._epochs
        elif is_over and self.due is None and self.current is None:
            self._decide(is_early=False)
        return news

    @property
    def left_epochs(self) -> int | None:
        """Epochs without a better candidate that end the run; None where none do, or there is no best one yet."""
        if not self._spec.patience_epochs or self.best is None:
            return None
        return self._spec.patience_epochs - (self.judged[-1].epoch - self.best.epoch if self.judged else 0)

    def _is_better(self, judged: Judged) -> bool:
        """Return whether a candidate is better than the best so far; of equal ones the one of lower loss is."""
        if judged.value is None:
            return False
        return self.best is None or self._rank(judged) > self._rank(self.best)

    def _rank(self, judged: Judged) -> tuple[float, float]:
        assert judged.value is not None, "what nobody could tell of is never the best"
        sign = 1.0 if self.metric.better == "more" else -1.0
        return sign * judged.value, -judged.loss if judged.loss is not None else float("-inf")

    def _decide(self, *, is_early: bool) -> None:
        keeps_best = self._spec.keep == "best" and self.best is not None
        if keeps_best and self.best is not None:
            self.decision = Decision(self.best.epoch, self.best.name, is_early)
        else:
            self.decision = Decision(self._last_epoch, "", is_early)
        self.due = self.current = self.waiting = None
        self._reports.clear()

    def restored(self) -> None:
        """Take notice that the newest weights are the ones decided on."""
        self.is_restored = True

    # For people, checkpoints and other replicas ---------------------------------------------------------------

    def text(self, judged: Judged) -> str:
        """Return what to tell people of a candidate that was judged."""
        value = "nobody could tell" if judged.value is None else f"{self._shown(judged.value)}"
        text = f"epoch {judged.epoch}: validation {self.metric.title} {value}"
        if judged.num_samples:
            text += f" on {judged.num_samples} samples"
        if self.best is None:
            return text
        if self.best == judged:
            notes = ["the best so far"]
        else:
            assert self.best.value is not None, "what nobody could tell of is never the best"
            notes = [f"best so far: {self._shown(self.best.value)} of epoch {self.best.epoch}"]
        if self.left_epochs is not None:
            left = self.left_epochs
            notes.append("stops now" if left <= 0 else f"stops after {left} more without a better one")
        return f"{text} ({'; '.join(notes)})"

    def _shown(self, value: float) -> str:
        return f"{value:.4g} {self.metric.unit}".rstrip()

    def reason(self) -> str:
        """Return why training has ended."""
        assert self.decision is not None
        if self.decision.is_early and self.best is not None:
            return f"no better epoch since epoch {self.best.epoch}, in {self._spec.patience_epochs} epochs"
        return "all agents have done their epochs"

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint and the other replicas need, and `run.json` shows."""
        return {
            "keep": self._spec.keep,
            "patience_epochs": self._spec.patience_epochs,
            "metric": self.metric.name,
            "better": self.metric.better,
            "kept_epoch": self.decision.epoch if self.decision is not None and self.decision.name else None,
            "is_early": self.decision is not None and self.decision.is_early,
            "candidates": [asdict(judged) for judged in self.judged],
            "state": {
                "due": self.due,
                "last_epoch": self._last_epoch,
                "is_newer": self._is_newer,
                "current": None if self.current is None else asdict(self.current),
                "waiting": None if self.waiting is None else asdict(self.waiting),
                "best": None if self.best is None else asdict(self.best),
                "decision": None if self.decision is None else asdict(self.decision),
                "is_restored": self.is_restored,
            },
        }

    def load(self, document: Mapping[str, Any]) -> None:
        """Go on from what `as_json` gave; what agents have reported since is asked for again."""
        state = document["state"]
        self.judged = [Judged(**entry) for entry in document["candidates"]]
        self.due, self._last_epoch, self._is_newer = state["due"], state["last_epoch"], state["is_newer"]
        self.current = None if state["current"] is None else Candidate(**state["current"])
        self.waiting = None if state["waiting"] is None else Candidate(**state["waiting"])
        self.best = None if state["best"] is None else Judged(**state["best"])
        self.decision = None if state["decision"] is None else Decision(**state["decision"])
        self.is_restored = state["is_restored"]
        self._reports.clear()
