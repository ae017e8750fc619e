"""Regression and multi-label on tables that ship with scikit-learn: three sites together learn what is in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes  # type: ignore[import-untyped]
from sklearn.linear_model import LinearRegression, LogisticRegression  # type: ignore[import-untyped]
from sklearn.metrics import f1_score, r2_score  # type: ignore[import-untyped]

from cutlayer.broker.modalities import TableSpec
from cutlayer.broker.tasks import MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_settings
from support.virtual_run import Worker, run_until_over

pytestmark = pytest.mark.slow

NUM_SITES = 3


def settings_of(spec: TableSpec, task: TaskSpec, epochs: int) -> RunSettings:
    settings = small_settings(
        run={"epochs": epochs, "microbatch_samples": 16, "min_agents": NUM_SITES},
        model={"options": {"img_size": 4, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 4}},
        optimizer={"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
        evaluation={"every_epochs": 0},
    )
    return RunSettings.model_validate({**settings.model_dump(), "modalities": {"table": spec}, "task": task})


def trained(
    spec: TableSpec, task: TaskSpec, cells_SF: NDArray[np.float32], targets: NDArray[np.float32], epochs: int
) -> dict[str, float]:
    """Divide rows among sites, every fourth for testing; return what the run reaches on all test rows."""
    torch.set_num_threads(1)
    network = VirtualNetwork()
    worker = Worker(network, settings_of(spec, task, epochs), computes=True)
    agents = []
    for number in range(NUM_SITES):
        own_S = np.arange(number, len(cells_SF), NUM_SITES)
        is_test_S = np.arange(len(own_S)) % 4 == 0
        train, test = (
            Batch({"table": cells_SF[rows]}, targets[rows]) for rows in (own_S[~is_test_S], own_S[is_test_S])
        )
        data = ArrayDataset("rows", task.output_names, {"table": spec}, {"train": train, "test": test})
        agents.append(network.add_agent(f"site/{number}", data))
    run_until_over(network, worker, agents)
    return worker.book.metrics()["joint"]


def shuffled(size: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(size)


def rows_for_testing(size: int) -> NDArray[np.bool_]:
    """Return which rows are some site's test rows."""
    rows: NDArray[np.bool_] = np.arange(size) // NUM_SITES % 4 == 0
    return rows


def test_the_progression_of_diabetes_is_predicted_about_as_well_as_by_linear_regression() -> None:
    table = load_diabetes(scaled=False)
    order_S = shuffled(len(table.data))
    cells_SF = table.data[order_S].astype(np.float32)
    progression_SC = table.target[order_S, None].astype(np.float32)
    spec = TableSpec(
        columns=tuple(table.feature_names),
        mean=tuple(float(mean) for mean in cells_SF.mean(axis=0)),
        std=tuple(float(std) for std in cells_SF.std(axis=0)),
    )
    task = RegressionSpec(targets=(TargetSpec(name="progression", mean=150.0, std=77.0, unit="points"),))
    final = trained(spec, task, cells_SF, progression_SC, epochs=15)
    # Whoever says the mean errs by 65 points on average.
    assert final["mae"] < 52.0
    is_test_S = rows_for_testing(len(cells_SF))
    linear = LinearRegression().fit(cells_SF[~is_test_S], progression_SC[~is_test_S])
    assert final["r2"] > r2_score(progression_SC[is_test_S], linear.predict(cells_SF[is_test_S])) - 0.1


def test_several_findings_of_breast_tumours_are_told_at_once() -> None:
    table = load_breast_cancer()
    order_S = shuffled(len(table.data))
    cells_SF = table.data[order_S].astype(np.float32)
    names = [str(name) for name in table.feature_names]
    is_large_S, is_rough_S = (
        cells_SF[:, names.index(name)] > np.median(cells_SF[:, names.index(name)])
        for name in ("worst area", "worst smoothness")
    )
    findings_SC = np.stack([table.target[order_S] == 0, is_large_S, is_rough_S], axis=1).astype(np.float32)
    # What is asked for is not among the columns; of a tenth of the rows a finding is not known.
    kept = [place for place, name in enumerate(names) if not name.startswith("worst")]
    findings_SC[np.random.default_rng(1).random(findings_SC.shape) < 0.1] = -1.0
    cells_SF = cells_SF[:, kept]
    spec = TableSpec(
        columns=tuple(names[place] for place in kept),
        mean=tuple(float(mean) for mean in cells_SF.mean(axis=0)),
        std=tuple(float(std) for std in cells_SF.std(axis=0)),
    )
    task = MultiLabelSpec(classes=("malignant", "large", "rough"))
    final = trained(spec, task, cells_SF, findings_SC, epochs=25)
    # Whoever says yes to all has a micro-F1 of 0.63.
    assert final["micro_f1"] > f1_of_logistic_regressions((cells_SF - spec.mean) / spec.std, findings_SC) - 0.05


def f1_of_logistic_regressions(cells_SF: NDArray[np.float64], findings_SC: NDArray[np.float32]) -> float:
    """Return the micro-F1 of a logistic regression for each finding, each of the rows that it is known of."""
    true, found = [], []
    for known_S in findings_SC.T:
        is_test_S, is_known_S = rows_for_testing(len(cells_SF)), known_S >= 0
        train, test = ~is_test_S & is_known_S, is_test_S & is_known_S
        model = LogisticRegression(max_iter=1_000).fit(cells_SF[train], known_S[train])
        true.append(known_S[test])
        found.append(model.predict(cells_SF[test]))
    return float(f1_score(np.concatenate(true), np.concatenate(found)))
