"""Visits over the network: a trained model evaluates and predicts for a site, and no run notices it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from cutlayer.broker.errors import Rejected, RunError
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.messages import (
    Activations,
    Goodbye,
    Hello,
    Mode,
    OutputGradients,
    RunPhase,
    Telemetry,
    TrainingDone,
    parse,
)
from cutlayer.broker.tasks import RegressionSpec, RetrievalSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import SPLITS
from cutlayer.edge_agent.evaluation_text import evaluation_as_json, evaluation_table
from cutlayer.edge_agent.visit_evaluation import EvaluationVisit
from cutlayer.edge_agent.visit_prediction import PredictionVisit
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.export import export_model
from cutlayer.server_worker.exported_model import load
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import CLASSES, small_dataset, small_settings
from support.small_tasks import TASKS, task_dataset, task_settings
from support.virtual_run import Client, Worker, run_until_over
from support.visits import add_visit, predicted_rows, trained_store

VISIT = "visitor/1"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def everything(dataset: ArrayDataset) -> dict[str, torch.Tensor]:
    """Return all samples, those for training first, as the exported model takes them."""
    return {
        name: torch.from_numpy(np.concatenate([dataset.splits[split].inputs[name] for split in SPLITS]))
        for name in dataset.modalities
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
    """Checkpoints of a small run that has ended."""
    return trained_store(tmp_path_factory.mktemp("trained"), small_settings(), [small_dataset(0)])


Predict = Callable[..., PredictionVisit]


@pytest.fixture
def predicting(tmp_path: Path) -> Iterator[Predict]:
    """Make visits that write into a folder of the test's; one that fails there leaves nothing open."""
    visits: list[PredictionVisit] = []

    def make(network: VirtualNetwork, **arguments: Any) -> PredictionVisit:
        visits.append(PredictionVisit(tmp_path / f"out{len(visits)}.csv", clock=network.clock, **arguments))
        return visits[-1]

    yield make
    for visit in visits:
        visit.discard()


def serving(network: VirtualNetwork, store: CheckpointStore, name: str = "w0", **run: Any) -> Worker:
    return Worker(network, small_settings(**run), computes=True, store=store, name=name, only_visits=True)


def weights(worker: Worker) -> dict[str, NDArray[np.float32]]:
    return {name: value.detach().numpy().copy() for name, value in worker.built.encoder.named_parameters()}


def test_predictions_are_those_of_the_exported_model(
    tmp_path: Path, store: CheckpointStore, predicting: Predict
) -> None:
    network = VirtualNetwork()
    worker = serving(network, store)
    dataset = small_dataset(1)
    visit = predicting(network)
    agent = add_visit(network, VISIT, visit, dataset)
    network.run(lambda: agent.is_finished)
    rows = table(visit.finish())
    export_model(tmp_path / "model", small_settings(), worker.built, "# A model\n", with_onnx=False)
    with torch.no_grad():
        shares_BC = load(tmp_path / "model")(everything(dataset)).softmax(dim=1).numpy()
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 57)]
    assert [row["sample"] for row in rows[14:18]] == ["train/14", "train/15", "test/0", "test/1"]
    found_BC = np.array([[float(row[f"probability {name}"]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(found_BC, shares_BC, atol=1e-4)
    assert [row["predicted"] for row in rows] == [CLASSES[best] for best in found_BC.argmax(axis=1)]


def test_evaluation_is_that_of_the_exported_model(tmp_path: Path, store: CheckpointStore) -> None:
    network = VirtualNetwork()
    worker = serving(network, store)
    dataset = small_dataset(1)
    visit = EvaluationVisit(clock=network.clock)
    agent = add_visit(network, VISIT, visit, dataset, "test")
    network.run(lambda: agent.is_finished)
    export_model(tmp_path, small_settings(), worker.built, "# A model\n", with_onnx=False)
    model, inputs = load(tmp_path), {name: values[16:] for name, values in everything(dataset).items()}
    told = json.loads(evaluation_as_json(visit, agent.wire, "small", "test"))
    assert list(told["given"]) == ["joint", "audio", "image"]
    assert told["weights_versions"] == [worker.engine.version] * 2
    assert told["bytes"] == {"up": agent.wire.sent_bytes, "down": agent.wire.received_bytes}
    shown = io.StringIO()
    Console(file=shown, width=100).print(evaluation_table(visit, agent.wire))
    assert f"{100 * told['given']['image']['metrics']['accuracy']:.1f} %" in shown.getvalue()
    results = {each.given: each for each in visit.results()}
    assert list(results) == [("audio", "image"), ("audio",), ("image",)]
    for given, each in results.items():
        with torch.no_grad():
            best_B = model({name: inputs[name] for name in given}).argmax(dim=1).numpy()
        accuracy = (best_B == dataset.splits["test"].targets).mean()
        assert (each.sums.num_samples, each.num_lacking) == (40, 0)
        assert each.metrics["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("name", ["multi-label", "regression of two, Huber", "retrieval"])
def test_every_task_is_predicted_and_evaluated(tmp_path: Path, name: str, predicting: Predict) -> None:
    if name == "retrieval":
        task: Any = RetrievalSpec(between=("image", "audio"), dimensions=4)
        made = task_dataset(TASKS["classification"], 0)
        dataset = ArrayDataset("pairs", (), made.modalities, made.splits)
        settings = RunSettings.model_validate(
            {**small_settings(model={"fusion": "late"}).model_dump(), "task": task.model_dump()}
        )
    else:
        task, dataset = TASKS[name], task_dataset(TASKS[name], 0, missing_share=0.2)
        settings = task_settings(task)
    store = trained_store(tmp_path / "store", settings, [dataset])
    network = VirtualNetwork()
    worker = Worker(network, settings, computes=True, store=store, only_visits=True)
    prediction = predicting(network, num_matches=3)
    evaluation = EvaluationVisit(clock=network.clock)
    agents = [add_visit(network, "v/1", prediction, dataset), add_visit(network, "v/2", evaluation, dataset, "test")]
    network.run(lambda: all(agent.is_finished for agent in agents))
    rows = table(prediction.finish())
    assert all(each.metrics for each in evaluation.results())
    if name == "retrieval":
        assert len(rows) == 2 * 3 * 56, "three matches of each row, both ways"
        assert {row["rank"] for row in rows} == {"1", "2", "3"}
        assert all(-1.001 <= float(row["similarity"]) <= 1.001 for row in rows)
        ways = {(row["given"], row["searched"]) for row in rows}
        assert ways == {("image", "audio"), ("audio", "image")}
        return
    export_model(tmp_path / "model", settings, worker.built, "# A model\n", with_onnx=False)
    with torch.no_grad():
        outputs_BC = load(tmp_path / "model").predict(everything(dataset)).numpy()
    what = "predicted" if isinstance(task, RegressionSpec) else "probability"
    found_BC = np.array([[float(row[f"{what} {output}"]) for output in task.output_names] for row in rows])
    np.testing.assert_allclose(found_BC, outputs_BC, rtol=1e-4, atol=1e-4)


def trained_beside_a_visit(predicting: Predict, *, with_visit: bool) -> tuple[Worker, list[Any]]:
    """Train with an agent that is away for a while, in which a visit comes, or none does."""
    network = VirtualNetwork()
    worker = Worker(network, small_settings(run={"absence_grace_s": 5.0}), computes=True)
    network.add_agent("site/0", small_dataset(0))
    network.run(lambda: worker.session.window >= 3)
    network.kill("site/0")
    visits: list[Any] = []
    if with_visit:
        ledger = worker.session.ledger.to_bytes()
        planned = worker.session.planned_samples
        evaluation, prediction = EvaluationVisit(clock=network.clock), predicting(network)
        agents = [
            add_visit(network, "v/1", evaluation, small_dataset(1), "test"),
            add_visit(network, "v/2", prediction, small_dataset(1)),
        ]
        network.run(lambda: all(agent.is_finished for agent in agents))
        assert predicted_rows(prediction.finish()) == list(range(1, 57))
        assert evaluation.versions == (worker.engine.version, worker.engine.version)
        assert worker.session.phase is RunPhase.TRAINING
        assert worker.session.ledger.to_bytes() == ledger
        assert worker.session.planned_samples == planned
        visits += [evaluation, prediction]
    now = network.clock()
    network.run(lambda: not len(worker.session.leases) or network.clock() > now + 60)
    assert worker.session.phase is RunPhase.TRAINING, "a run without agents waits for them, visit or not"
    back = network.add_agent("site/0", small_dataset(0))
    run_until_over(network, worker, [back])
    return worker, visits


def test_a_run_ends_with_the_same_weights_and_record_whether_it_was_visited_or_not(predicting: Predict) -> None:
    plain, _ = trained_beside_a_visit(predicting, with_visit=False)
    visited, visits = trained_beside_a_visit(predicting, with_visit=True)
    assert len(visits) == 2
    before, after = weights(plain), weights(visited)
    assert all((before[name] == after[name]).all() for name in before)
    assert {agent for agent, _ in visited.book.latest()} == {"site/0"}
    assert dict(visited.session.known_samples) == dict(plain.session.known_samples)
    assert visited.session.ledger.to_bytes() == plain.session.ledger.to_bytes()


def test_a_visit_does_not_begin_a_run_and_is_told_that_nothing_is_trained(tmp_path: Path, predicting: Predict) -> None:
    network = VirtualNetwork()
    worker = Worker(network, small_settings(), computes=True)
    visit = predicting(network)
    add_visit(network, VISIT, visit, small_dataset(1))
    with pytest.raises(RunError, match="nothing of run small-0 is trained yet"):
        network.run(lambda: False, max_virtual_s=30.0)
    visit.discard()
    assert worker.session.phase is RunPhase.WAITING
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_serves_visits_while_it_waits_for_its_agents(tmp_path: Path, predicting: Predict) -> None:
    store = trained_store(tmp_path / "store", small_settings(), [small_dataset(0)])
    network = VirtualNetwork()
    settings = small_settings(run={"min_agents": 2, "absence_grace_s": 1_000.0})
    worker = Worker(network, settings, computes=True, store=store, resumes=True)
    visit = predicting(network)
    agent = add_visit(network, VISIT, visit, small_dataset(1))
    network.run(lambda: agent.is_finished)
    assert worker.session.phase is RunPhase.WAITING
    assert predicted_rows(visit.finish()) == list(range(1, 57))


def test_a_run_ends_though_a_visit_is_not_done_and_the_visit_is_told_whom_to_ask(
    tmp_path: Path, predicting: Predict
) -> None:
    network = VirtualNetwork()
    worker = Worker(network, small_settings(run={"epochs": 12}), computes=True)
    agent = network.add_agent("site/0", small_dataset(0))
    network.run(lambda: worker.session.window >= 2)
    network.kill("site/0")
    slow = LinkFaults(delay_s=1.0)
    visit = predicting(network)
    add_visit(network, VISIT, visit, small_dataset(1, 400), faults=slow)
    network.run(lambda: visit.progress.num_done > 0)
    agent = network.add_agent("site/0", small_dataset(0))
    with pytest.raises(RunError, match=r"(?s)the run has ended.*server-worker serve"):
        network.run(lambda: False, max_virtual_s=600.0)
    visit.discard()
    assert worker.session.phase is RunPhase.ENDED
    assert agent.is_finished
    assert not list(tmp_path.iterdir()), "a file of some of the rows would pass for all of them"


def test_a_visit_while_the_others_evaluate_is_answered(predicting: Predict) -> None:
    network = VirtualNetwork()
    worker = Worker(network, small_settings(run={"absence_grace_s": 1_000.0}), computes=True)
    network.add_agent("site/0", small_dataset(0))
    network.run(lambda: worker.session.phase is RunPhase.EVALUATING)
    network.kill("site/0")
    visit = predicting(network)
    agent = add_visit(network, VISIT, visit, small_dataset(1))
    network.run(lambda: agent.is_finished)
    assert worker.session.phase is RunPhase.EVALUATING
    assert predicted_rows(visit.finish()) == list(range(1, 57))


@pytest.mark.parametrize("after", [1, 40, 90])
def test_each_row_is_there_once_when_a_worker_dies(store: CheckpointStore, after: int, predicting: Predict) -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.05, jitter_s=0.15))
    workers = [serving(network, store, name) for name in ("w0", "w1")]
    stranger = Client(network)
    visit = predicting(network)
    agent = add_visit(network, VISIT, visit, small_dataset(1, 100))
    network.run(lambda: visit.progress.num_done >= after)
    workers[1].kill()
    network.run(lambda: agent.is_finished)
    topics = Counter(packet.topic for packet in stranger.seen)
    sent = [topics[f"{VISIT}/up/{worker.name}/activations"] for worker in workers]
    assert min(sent) > 0, "both had some"
    assert sum(sent) > 140 / 4, "what the dead one had went up again"
    assert predicted_rows(visit.finish()) == list(range(1, 141))


def test_each_row_is_there_once_when_the_only_worker_is_started_anew(
    store: CheckpointStore, predicting: Predict
) -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.05, jitter_s=0.15))
    worker = serving(network, store)
    visit = predicting(network)
    agent = add_visit(network, VISIT, visit, small_dataset(1, 100))
    network.run(lambda: visit.progress.num_done >= 20)
    worker.kill()
    serving(network, store)
    network.run(lambda: agent.is_finished)
    assert predicted_rows(visit.finish()) == list(range(1, 141))


def test_each_row_is_there_once_over_a_link_that_loses_doubles_and_reorders(
    store: CheckpointStore, predicting: Predict
) -> None:
    faults = LinkFaults(seed=4, loss=0.1, duplication=0.1, reordering=0.1, jitter_s=0.5)
    network = VirtualNetwork(faults)
    serving(network, store)
    visit = predicting(network)
    agent = add_visit(network, VISIT, visit, small_dataset(1, 100))
    network.run(lambda: agent.is_finished)
    assert predicted_rows(visit.finish()) == list(range(1, 141))


def test_a_pool_that_trains_answers_a_visit_and_ends_as_if_there_were_none(predicting: Predict) -> None:
    finals = []
    for is_visited in (False, True):
        network = VirtualNetwork(LinkFaults(delay_s=0.02))
        lighthouse = MemoryLighthouse(network.clock, join_timeout_s=5.0)
        settings = small_settings(run={"min_agents": 2, "epochs": 4})
        workers = [Worker(network, settings, computes=True, name=name, lighthouse=lighthouse) for name in ("w0", "w1")]
        agents = [network.add_agent(f"site/{index}", small_dataset(index)) for index in range(2)]
        network.run(lambda: workers[0].session.window >= 2)  # noqa: B023 - it is over before the next
        if is_visited:
            visit = predicting(network)
            agents.append(add_visit(network, VISIT, visit, small_dataset(5, 8, 8)))
        network.run(lambda: all(member.is_finished for member in agents))  # noqa: B023
        network.run(lambda: all(worker.runtime.is_finished for worker in workers))  # noqa: B023
        assert workers[0].session.ledger.to_bytes() == workers[1].session.ledger.to_bytes()
        finals.append((workers[0].session.ledger.to_bytes(), dict(workers[0].session.known_samples)))
    assert predicted_rows(visit.finish()) == list(range(1, 17))
    assert finals[0] == finals[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_that_chooses_its_weights_answers_a_visit_meanwhile_and_chooses_the_same(
    num_workers: int, predicting: Predict
) -> None:
    found = []
    for is_visited in (False, True):
        network = VirtualNetwork(LinkFaults(delay_s=0.02))
        lighthouse = MemoryLighthouse(network.clock, join_timeout_s=5.0) if num_workers > 1 else None
        settings = small_settings(
            1.0, run={"min_agents": 2, "epochs": 8}, window={"mode": "synchronous"}, evaluation={"keep": "best"}
        )
        workers = [
            Worker(network, settings, computes=True, name=f"w{number}", lighthouse=lighthouse)
            for number in range(num_workers)
        ]
        agents = [network.add_agent(f"site/{index}", small_dataset(index, num_val=64)) for index in range(2)]
        network.run(lambda: workers[0].session.window >= 2)  # noqa: B023 - it is over before the next
        if is_visited:
            visit = predicting(network)
            visitor = add_visit(network, VISIT, visit, small_dataset(5, 8, 8))
            network.run(lambda: visitor.is_finished)  # noqa: B023
            assert workers[0].session.phase is RunPhase.TRAINING
        network.run(lambda: all(member.is_finished for member in agents))  # noqa: B023
        network.run(lambda: all(worker.runtime.is_finished for worker in workers))  # noqa: B023
        selection = workers[0].session.selection
        assert selection is not None
        assert selection.is_restored
        found.append((selection.as_json(), workers[0].engine.fingerprint()))
    assert predicted_rows(visit.finish()) == list(range(1, 17))
    assert found[0] == found[1]


def test_a_worker_that_serves_keeps_its_weights_and_refuses_to_train(store: CheckpointStore) -> None:
    network = VirtualNetwork()
    worker = serving(network, store)
    before = weights(worker)
    visit = EvaluationVisit(clock=network.clock)
    agent = add_visit(network, VISIT, visit, small_dataset(1))
    network.run(lambda: agent.is_finished)
    network.add_agent("site/9", small_dataset(9))
    with pytest.raises(Rejected, match=r"its training is over.*\n  fix: start another run .* edge-agent evaluate"):
        network.run(lambda: False, max_virtual_s=60.0)
    assert all((before[name] == weight).all() for name, weight in weights(worker).items())
    assert worker.session.phase is RunPhase.EVALUATING
    assert not worker.book.latest()


@pytest.mark.parametrize(("epochs", "said"), [(2, "is training this run"), (3, "already serves another run")])
def test_a_worker_does_not_serve_beside_one_that_trains(store: CheckpointStore, epochs: int, said: str) -> None:
    network = VirtualNetwork()
    worker = Worker(network, small_settings(run={"epochs": epochs}), name="trains")
    network.run(lambda: worker.transport.wire.sent_packets > 0 and "cutlayer/run" in network.broker.retained)
    serving(network, store)
    with pytest.raises(RunError, match=said):
        network.run(lambda: False, max_virtual_s=30.0)


def test_trained_tokenizers_come_with_the_lease(tmp_path: Path, predicting: Predict) -> None:
    settings = small_settings(tokenizers={"mode": "trainable"}, activations={"mode": "every-step"})
    store = trained_store(tmp_path / "store", settings, [small_dataset(0)])
    network = VirtualNetwork()
    worker = Worker(network, settings, computes=True, store=store, only_visits=True)
    visit = predicting(network)
    dataset = small_dataset(1)
    agent = add_visit(network, VISIT, visit, dataset)
    network.run(lambda: agent.is_finished)
    rows = table(visit.finish())
    export_model(tmp_path / "model", settings, worker.built, "# A model\n", with_onnx=False)
    with torch.no_grad():
        shares_BC = load(tmp_path / "model").predict(everything(dataset)).numpy()
    found_BC = np.array([[float(row[f"probability {name}"]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(found_BC, shares_BC, atol=1e-4)


def test_nobody_there_is_said_with_what_to_start(predicting: Predict) -> None:
    network = VirtualNetwork()
    visit = predicting(network, patience_s=20.0)
    add_visit(network, VISIT, visit, small_dataset(1))
    with pytest.raises(RunError, match=r"(?s)no run is announced on this broker, after 20 s.*server-worker serve"):
        network.run(lambda: False, max_virtual_s=60.0)


def test_a_run_without_a_worker_is_said_with_what_to_start(store: CheckpointStore, predicting: Predict) -> None:
    network = VirtualNetwork()
    worker = serving(network, store)
    network.run(lambda: network.clock() > 1.0 or worker.runtime.is_connected)
    network.run(lambda: "cutlayer/run" in network.broker.retained)
    worker.kill()
    visit = predicting(network, patience_s=20.0)
    add_visit(network, VISIT, visit, small_dataset(1))
    with pytest.raises(RunError, match=r"(?s)run small-0 is announced, and no worker serves it.*server-worker serve"):
        network.run(lambda: False, max_virtual_s=60.0)


def test_data_that_take_long_to_open_use_up_no_patience(store: CheckpointStore, predicting: Predict) -> None:
    network = VirtualNetwork()
    serving(network, store)
    visit = predicting(network, patience_s=20.0)
    agent = add_visit(network, VISIT, visit, small_dataset(1), opens_in_s=100.0)
    network.run(lambda: agent.is_finished)
    assert predicted_rows(visit.finish()) == list(range(1, 57))


def test_only_activations_and_counts_of_bytes_leave_the_site(store: CheckpointStore) -> None:
    network = VirtualNetwork()
    serving(network, store)
    stranger = Client(network)
    visit = EvaluationVisit(clock=network.clock)
    agent = add_visit(network, VISIT, visit, small_dataset(1))
    network.run(lambda: agent.is_finished)
    sent = [
        parse(packet.payload) for packet in stranger.seen if packet.topic.startswith(VISIT) or VISIT in packet.topic
    ]
    told = [message for message in sent if isinstance(message, Goodbye)]
    assert not [message for message in sent if isinstance(message, Telemetry | TrainingDone | OutputGradients)]
    assert told
    for goodbye in told:
        counters = goodbye.telemetry
        assert (counters.evaluations, counters.samples, counters.train.num_samples) == ((), 0, 0)
        assert counters.wire_sent_bytes > 0
    up = [message for message in sent if isinstance(message, Activations)]
    assert {message.mode for message in up} == {Mode.EVAL}
    assert all(message.samples == b"" for message in up), "nothing of a visit is kept"
    assert {message.num_samples for message in sent if isinstance(message, Hello)} == {0}
