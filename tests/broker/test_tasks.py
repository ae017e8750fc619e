"""Specifications of tasks: what is taken, what is refused, and manifests of earlier releases."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from pydantic import TypeAdapter

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from support.synthetic_run import synthetic_manifest

ANY: TypeAdapter[TaskSpec] = TypeAdapter(TaskSpec)
AGE = {"name": "age", "mean": 48.5, "std": 13.0, "unit": "years"}
DOSE = {"name": "dose", "mean": 0.0, "std": 1.0}


def with_task(task: dict[str, Any]) -> bytes:
    return json.dumps({**json.loads(synthetic_manifest().to_bytes()), "task": task}).encode()


def test_a_classification_is_written_as_before_there_were_other_tasks() -> None:
    assert ClassificationSpec(classes=("a", "b")).model_dump(mode="json") == {
        "kind": "classification",
        "classes": ["a", "b"],
    }
    assert json.loads(synthetic_manifest().to_bytes())["task"]["kind"] == "classification"


def test_a_task_without_a_kind_is_a_classification() -> None:
    assert ANY.validate_python({"classes": ["a", "b"]}) == ClassificationSpec(classes=("a", "b"))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ({"kind": "classification", "classes": ["a", "b"]}, ("a", "b")),
        ({"kind": "multi-label", "classes": ["a"]}, ("a",)),
        ({"kind": "multi-label", "classes": ["a", "b"], "positive_weights": [1.0, 8.0]}, ("a", "b")),
        ({"kind": "regression", "targets": [AGE, DOSE], "huber_delta": 1.5}, ("age", "dose")),
    ],
)
def test_every_task_comes_back_from_a_manifest_and_names_its_outputs(task: dict[str, Any], names: tuple[str]) -> None:
    manifest = Manifest.from_bytes(with_task(task))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.task.output_names == names
    assert manifest.task.num_outputs == len(names)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ({"kind": "sorting"}, "task"),
        ({"kind": 3}, "task"),
        ({"kind": "classification", "classes": ["a"]}, "task.classes"),
        ({"kind": "multi-label", "classes": []}, "task.classes"),
        ({"kind": "multi-label", "classes": ["a\nb"]}, "task.classes.0"),
        ({"kind": "multi-label", "classes": ["a"], "positive_weights": [-1]}, "task.positive_weights.0"),
        ({"kind": "regression", "targets": [{**AGE, "std": 0}]}, "task.targets.0.std"),
        ({"kind": "regression", "targets": [{**AGE, "unit": "a\x1b[2J"}]}, "task.targets.0.unit"),
        ({"kind": "regression", "targets": [AGE], "huber_delta": 0}, "task.huber_delta"),
        ({"kind": "regression", "targets": [{**DOSE, "name": str(each)} for each in range(33)]}, "task.targets"),
    ],
)
def test_a_wrong_task_is_malformed_and_its_key_is_named(task: dict[str, Any], key: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"run manifest: {key}: "):
        Manifest.from_bytes(with_task(task))


def test_names_are_given_once() -> None:
    with pytest.raises(pydantic.ValidationError, match="'a' twice"):
        MultiLabelSpec(classes=("a", "b", "a"))
    with pytest.raises(pydantic.ValidationError, match="'age' twice"):
        RegressionSpec(targets=(TargetSpec.model_validate(AGE), TargetSpec.model_validate(AGE)))


def test_weights_are_given_for_every_class_or_for_none() -> None:
    with pytest.raises(pydantic.ValidationError, match="3 for 2 classes"):
        MultiLabelSpec(classes=("a", "b"), positive_weights=(1.0, 2.0, 3.0))
