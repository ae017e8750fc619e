"""Runs that end with the weights of their best epoch, in virtual time: which ones, when, and whoever dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import Activations, Candidate, Mode, parse
from cutlayer.broker.selection import Decision, Selection
from cutlayer.broker.topics import AgentTopics
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.run_json import selection_json
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import CLASSES, IMAGE, small_dataset, small_settings
from support.virtual_run import Client, Worker, run_until_over

QUICK = Deadlines(hello_s=0.5, step_s=1.0, longest_s=8.0)
LOSSY = LinkFaults(loss=0.1, duplication=0.1, reordering=0.1, delay_s=0.02, jitter_s=0.02)
ASYNCHRONOUS = {"mode": "asynchronous", "samples": 16, "deadline_s": 0.2}
NUM_VAL = 40
TOPICS = ("site/0", "site/1")


def settings(
    epochs: int = 5, *, patience: int = 0, keep: str = "best", **sections: Mapping[str, object]
) -> RunSettings:
    run = {"epochs": epochs, "min_agents": 2, "absence_grace_s": 5.0, **sections.pop("run", {})}
    evaluation = {"keep": keep, "patience_epochs": patience, **sections.pop("evaluation", {})}
    return small_settings(1.0, run=run, evaluation=evaluation, **sections)


class Taken:
    """What an engine has held as candidates, by their names, copied at that moment."""

    def __init__(self, worker: Worker) -> None:
        self.weights: dict[str, dict[str, Tensor]] = {}
        self._hold, self._engine = worker.engine.hold_candidate, worker.engine
        worker.engine.hold_candidate = self._take  # type: ignore[method-assign]

    def _take(self) -> str:
        name = self._hold()
        self.weights[name] = {key: value.clone() for key, value in self._engine.state_dict().weights.items()}
        return name


@dataclass
class Run:
    """A worker or two, and their agents."""

    settings: RunSettings
    faults: LinkFaults = field(default_factory=lambda: LinkFaults(delay_s=0.01))
    computes: bool = False

    def __post_init__(self) -> None:
        self.network = VirtualNetwork(self.faults, deadlines=QUICK)
        self.failing: list[str] = []
        self.lighthouse = MemoryLighthouse(self.network.clock, join_timeout_s=5.0, fails=self._fails)
        self.workers: dict[str, Worker] = {}
        self.agents: dict[str, AgentRuntime] = {}

    def _fails(self, name: str) -> bool:
        if name not in self.failing:
            return False
        self.failing.remove(name)
        return True

    def start(self, name: str = "w0", *, is_pooled: bool = False, **store: object) -> Worker:
        self.workers[name] = Worker(
            self.network,
            self.settings,
            computes=self.computes,
            name=name,
            lighthouse=self.lighthouse if is_pooled else None,
            **store,  # type: ignore[arg-type]
        )
        return self.workers[name]

    def join(self, *topics: str, num_val: int = NUM_VAL) -> None:
        for topic in topics:
            dataset = small_dataset(int(topic[-1]), num_val=num_val)
            self.agents[topic] = self.network.add_agent(topic, dataset)

    def finish(self) -> None:
        self.network.run(
            lambda: (
                all(agent.is_finished for agent in self.agents.values())
                and all(worker.runtime.is_finished for worker in self.workers.values())
            )
        )


def selection_of(worker: Worker) -> Selection:
    selection = worker.session.selection
    assert selection is not None
    return selection


def decision_of(worker: Worker) -> Decision:
    decision = selection_of(worker).decision
    assert decision is not None
    return decision


def kept_epoch(worker: Worker) -> int | None:
    decision = decision_of(worker)
    return decision.epoch if decision.name else None


def judged_epochs(worker: Worker) -> list[int]:
    return [judged.epoch for judged in selection_of(worker).judged]


@pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_the_kept_weights_are_those_that_were_judged_bit_for_bit(window: Mapping[str, object]) -> None:
    run = Run(settings(window=window, optimizer={"lr": 0.3}), computes=True)
    worker = run.start()
    taken = Taken(worker)
    run.join(*TOPICS)
    run.finish()
    selection = worker.session.selection
    assert selection is not None
    assert selection.decision is not None
    best = max(selection.judged, key=lambda judged: (judged.value or 0.0, -(judged.loss or 0.0)))
    assert selection.decision.name == best.name
    final = worker.engine.state_dict().weights
    assert all(torch.equal(final[key], value) for key, value in taken.weights[best.name].items())
    assert best.num_samples == 2 * NUM_VAL
    assert isinstance(worker.engine, Engine)
    assert worker.engine.candidates() == {}, "nothing is held any more"


def test_the_metric_of_a_candidate_is_what_its_weights_give_on_all_validation_samples() -> None:
    """Checked against one process that runs the kept weights over the same samples."""
    run = Run(settings(optimizer={"lr": 0.3}), computes=True)
    worker = run.start()
    stranger = Client(run.network)
    run.join(*TOPICS)
    run.finish()
    best = selection_of(worker).best
    assert best is not None
    sent = [parse(packet.payload) for packet in stranger.seen if packet.topic.endswith("/activations")]
    judging = [message for message in sent if isinstance(message, Activations) and message.candidate == best.name]
    assert sum(message.num_samples for message in judging) == 2 * NUM_VAL
    assert all(message.mode is Mode.EVAL for message in judging)
    metrics = selection_json(selection_of(worker), worker.book)["selection"]
    row = next(row for row in metrics["candidates"] if row["name"] == best.name)
    assert row["metrics"]["accuracy"] == row["value"] == best.value
    final = worker.book.history()
    assert [entry["samples"] for entry in final] == [2 * 40], "the test samples are evaluated once, with kept weights"


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_early_end_is_the_end_for_all_agents(keep: str) -> None:
    """The counting engine's outputs never change, so no epoch is better than the first."""
    run = Run(settings(epochs=12, patience=2, keep=keep))
    worker = run.start()
    run.join(*TOPICS)
    run.finish()
    assert judged_epochs(worker) == [1, 2, 3]
    assert kept_epoch(worker) == (1 if keep == "best" else None)
    assert worker.session.reason == "no better epoch since epoch 1, in 2 epochs"
    epochs = [len(worker.session.ledger.of(topic)) / 4 for topic in TOPICS]
    assert all(3 <= epoch < 12 for epoch in epochs), "what was under way when the third epoch was judged, is in"
    assert len(worker.book.history()) == 1
    assert all(agent.is_finished for agent in run.agents.values())


def test_each_candidate_runs_with_its_own_weights_whatever_is_committed_meanwhile() -> None:
    run = Run(settings(epochs=6, window=ASYNCHRONOUS), LinkFaults(delay_s=0.05))
    worker = run.start()
    taken = Taken(worker)
    run.join(*TOPICS)
    run.finish()
    weights = {int(held["weight"]) for held in taken.weights.values()}
    judged = {int(taken.weights[judged.name]["weight"]) for judged in selection_of(worker).judged}
    assert judged <= weights
    assert {weight: worker.counter.num_judged[weight] for weight in judged} == dict.fromkeys(judged, 2 * NUM_VAL)
    assert worker.counter.weight == int(taken.weights[selection_of(worker).judged[0].name]["weight"]), (
        "the first of equals"
    )


def test_lost_and_doubled_messages_change_no_judgement() -> None:
    run = Run(settings(epochs=4), LOSSY)
    worker = run.start()
    run.join(*TOPICS)
    run.finish()
    assert judged_epochs(worker)[-1] == 4
    assert kept_epoch(worker) == 1
    assert {judged.num_samples for judged in selection_of(worker).judged} == {2 * NUM_VAL}


def test_an_agent_that_vanishes_holds_up_no_judgement() -> None:
    run = Run(settings(epochs=4, worker={"lease_s": 3.0}))
    worker = run.start()
    run.join(*TOPICS)
    run.network.run(lambda: worker.session.window >= 3)
    run.network.kill("site/1")
    del run.agents["site/1"]
    run.finish()
    assert kept_epoch(worker) is not None
    assert selection_of(worker).judged[-1].num_samples == NUM_VAL, "the other's, at the end"


def test_an_agent_without_validation_samples_trains_and_the_others_judge() -> None:
    run = Run(settings(epochs=3))
    worker = run.start()
    run.join("site/0")
    run.join("site/1", num_val=0)
    run.finish()
    assert {judged.num_samples for judged in selection_of(worker).judged} == {NUM_VAL}
    assert len(worker.session.ledger.of("site/1")) == 12


def test_where_nobody_can_judge_the_worker_says_so_and_keeps_the_last_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run(settings(epochs=3))
    worker = run.start()
    run.join(*TOPICS, num_val=0)
    with caplog.at_level("WARNING"):
        run.finish()
    assert caplog.text.count("no agent has validation samples") == 1
    assert kept_epoch(worker) is None
    assert worker.counter.committed.total() == 2 * 3 * 4


@pytest.mark.parametrize("at_window", [3, 9])
def test_a_worker_that_is_killed_goes_on_from_its_best_weights(tmp_path: Path, at_window: int) -> None:
    """Windows of one microbatch each, four an epoch; a checkpoint each second one."""
    run = Run(settings(epochs=5), computes=True)
    store = CheckpointStore(tmp_path)
    run.start(store=store, every_windows=2)
    run.join(*TOPICS)
    run.network.run(lambda: run.workers["w0"].session.window >= at_window)
    run.workers["w0"].kill()
    worker = run.start(store=store, every_windows=2, resumes=True)
    taken = Taken(worker)
    before = {judged.name for judged in selection_of(worker).judged}
    held = worker.engine.candidates()
    best = selection_of(worker).best
    assert best is None or best.name in held, "the best weights are in the checkpoint"
    run.finish()
    assert judged_epochs(worker) == [1, 2, 3, 4, 5]
    name = decision_of(worker).name
    final = worker.engine.state_dict().weights
    wanted = held[name] if name in before else taken.weights[name] if name in taken.weights else held[name]
    assert all(torch.equal(final[key], value) for key, value in wanted.items())


def test_a_worker_that_is_killed_after_the_choice_does_not_train_again(tmp_path: Path) -> None:
    run = Run(settings(epochs=12, patience=2))
    store = CheckpointStore(tmp_path)
    run.start(store=store)
    run.join(*TOPICS)
    run.network.run(lambda: run.workers["w0"].session.phase == "evaluating")
    steps = run.workers["w0"].session.ledger.to_bytes()
    weight = run.workers["w0"].counter.weight
    run.workers["w0"].kill()
    worker = run.start(store=store, resumes=True)
    run.finish()
    assert worker.session.ledger.to_bytes() == steps
    assert worker.counter.weight == weight
    assert worker.session.reason == "no better epoch since epoch 1, in 2 epochs"
    assert len(worker.book.history()) == 1


def test_an_agent_that_comes_back_judges_what_is_judged_now() -> None:
    run = Run(settings(epochs=5))
    worker = run.start()
    run.join(*TOPICS)
    run.network.run(lambda: worker.session.window >= 9)
    run.network.kill("site/1")
    run.join("site/1")
    run.finish()
    assert selection_of(worker).judged[-1].num_samples == 2 * NUM_VAL


class TestPool:
    """Two workers: each decision is the pool's, and all end with the same weights."""

    @pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
    @pytest.mark.parametrize("faults", [LinkFaults(delay_s=0.01), LOSSY], ids=["good", "lossy"])
    def test_both_end_with_the_same_best_weights(self, window: Mapping[str, object], faults: LinkFaults) -> None:
        run = Run(settings(epochs=4, window=window), faults)
        workers = [run.start(name, is_pooled=True) for name in ("w0", "w1")]
        taken = Taken(workers[0])
        run.join(*TOPICS)
        run.finish()
        self.assert_alike(workers)
        first = selection_of(workers[0]).judged[0]
        assert workers[0].counter.weight == int(taken.weights[first.name]["weight"])

    def test_both_stop_early(self) -> None:
        run = Run(settings(epochs=12, patience=2))
        workers = [run.start(name, is_pooled=True) for name in ("w0", "w1")]
        run.join(*TOPICS)
        run.finish()
        self.assert_alike(workers)
        assert judged_epochs(workers[0])[-1] < 12
        assert decision_of(workers[0]).is_early

    def test_one_that_misses_rounds_takes_over_what_was_chosen(self) -> None:
        run = Run(settings(epochs=4))
        workers = [run.start(name, is_pooled=True) for name in ("w0", "w1")]
        run.join(*TOPICS)
        for window in (4, 8, 12):
            run.network.run(lambda window=window: workers[0].session.window >= window)  # type: ignore[misc]
            run.failing.append("w1")
        run.network.run(lambda: selection_of(workers[0]).current is not None)
        run.failing.append("w1")
        run.finish()
        self.assert_alike(workers)

    def test_one_that_misses_the_round_of_an_early_end_takes_it_over(self) -> None:
        run = Run(settings(epochs=12, patience=2))
        workers = [run.start(name, is_pooled=True) for name in ("w0", "w1")]
        missed: list[int] = []

        def fails(name: str) -> bool:
            """Whether it is the other worker, in the first round that may decide."""
            is_the_one = name == "w1" and len(judged_epochs(workers[0])) == 2
            if not is_the_one or missed or not any(one.session.candidates.proposals() for one in workers):
                return False
            missed.append(workers[0].session.window)
            return True

        run.lighthouse._fails = fails
        run.join(*TOPICS)
        run.finish()
        assert missed
        self.assert_alike(workers)
        assert decision_of(workers[0]).is_early
        for topic in TOPICS:
            telemetry = workers[0].book.latest()
            assert [entry.evaluations[-1].final for agent, entry in telemetry if agent == topic] == [True]

    @pytest.mark.parametrize("at_window", [3, 9])
    def test_one_is_killed_and_another_joins(self, at_window: int) -> None:
        run = Run(settings(epochs=4), computes=True)
        for name in ("w0", "w1"):
            run.start(name, is_pooled=True)
        run.join(*TOPICS)
        run.network.run(lambda: run.workers["w0"].session.window >= at_window)
        run.workers.pop("w1").kill()
        run.start("w2", is_pooled=True)
        run.finish()
        self.assert_alike(list(run.workers.values()))
        assert judged_epochs(run.workers["w0"])[-1] == 4

    def assert_alike(self, workers: list[Worker]) -> None:
        assert len({worker.engine.fingerprint() for worker in workers}) == 1
        selections = [worker.session.selection for worker in workers]
        assert all(selection is not None and selection.is_restored for selection in selections)
        assert len({str(selection.as_json()) for selection in selections if selection is not None}) == 1


def test_trained_tokenizers_are_part_of_a_candidate() -> None:
    """Each offer has the candidate's tokenizers, and the kept ones go to the agents before the last evaluation."""
    run = Run(
        settings(
            tokenizers={"mode": "trainable", "every_steps": 1, "every_windows": 1},
            activations={"mode": "every-step"},
            optimizer={"lr": 0.3},
        ),
        computes=True,
    )
    worker = run.start()
    taken = Taken(worker)
    stranger = Client(run.network)
    run.join(*TOPICS)
    run.finish()
    control = {AgentTopics(topic).down_control for topic in TOPICS}
    offers = [parse(packet.payload) for packet in stranger.seen if packet.topic in control]
    by_name = {offer.name: dict(offer.tensors) for offer in offers if isinstance(offer, Candidate)}
    assert set(by_name) == set(taken.weights)
    for name, tensors in by_name.items():
        bias = taken.weights[name]["tokenizers.image_tokens.bias"]
        assert tensors["image.bias"].data == bias.numpy().tobytes()
    assert len({tensors["image.bias"].data for tensors in by_name.values()}) == len(by_name), "they do train"
    kept = taken.weights[decision_of(worker).name]
    assert all(torch.equal(worker.engine.state_dict().weights[key], value) for key, value in kept.items())


def test_lora_is_part_of_a_candidate() -> None:
    run = Run(settings(tuning={"mode": "lora"}, optimizer={"lr": 0.3}), computes=True)
    worker = run.start()
    taken = Taken(worker)
    run.join(*TOPICS)
    run.finish()
    kept = taken.weights[decision_of(worker).name]
    assert any("lora" in key for key in kept)
    assert all(torch.equal(worker.engine.state_dict().weights[key], value) for key, value in kept.items())


def noisy_dataset(seed: int) -> ArrayDataset:
    """Return a few training samples, every third with a wrong label: what is learned by heart is wrong."""
    clean = small_dataset(seed, num_train=24, num_test=96, num_val=96)
    train = clean.splits["train"]
    labels_B = np.asarray(train.targets).copy()
    labels_B[::3] = (labels_B[::3] + 1) % len(CLASSES)
    splits = {**clean.splits, "train": Batch(train.inputs, labels_B.astype(np.int64))}
    return ArrayDataset("noisy", CLASSES, {"audio": clean.modalities["audio"], "image": IMAGE}, splits)


def test_what_is_learned_by_heart_is_not_kept() -> None:
    network = VirtualNetwork()
    wanted = settings(
        epochs=30,
        run={"min_agents": 1, "microbatch_samples": 12},
        evaluation={"metric": "loss", "samples": 96},
        optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.0},
    )
    worker = Worker(network, wanted, computes=True)
    run_until_over(network, worker, [network.add_agent("site/0", noisy_dataset(1))])
    epoch, selection = kept_epoch(worker), worker.session.selection
    assert selection is not None
    assert selection.best is not None
    assert selection.best.loss is not None
    last = selection.judged[-1]
    assert last.loss is not None
    assert (epoch, last.epoch) == (selection.best.epoch, 30)
    assert selection.best.epoch < 30, "validation has found that it gets worse"
    (final,) = worker.book.history()
    assert final["loss"] < last.loss - 0.05, "on test samples, which have chosen nothing"


def test_counting_engines_hold_and_put_back_their_weight() -> None:
    engine = CountingEngine(3)
    engine.weight = 7
    name = engine.hold_candidate()
    engine.weight = 9
    engine.hold_only([name])
    assert engine.keep_candidate(name) == 1
    assert engine.weight == 7
