"""What an agent has its workbench do, against a worker that says what a test tells it."""

from __future__ import annotations

import pytest

from cutlayer.broker.errors import RunError
from cutlayer.broker.messages import Activations, EncodedTensor, OutputGradients, TrainingDone
from support.agent_scene import Scene


def test_steps_that_a_worker_has_lost_are_done_again_in_order() -> None:
    scene = Scene()
    scene.enter()
    for step in range(2):
        scene.answer(scene.until(Activations, step + 1))
        scene.until(OutputGradients, step + 1)
        scene.commit(step)
    assert trained(scene) == [0, 1, 2]
    scene.tell_ledger((0, 1))
    assert trained(scene) == [0, 1, 2], "the worker may not have heard of the commit yet"
    scene.ask_again()
    scene.tell_ledger((0, 1))
    assert trained(scene) == [0, 1, 2, 1]
    scene.commit(1)
    assert trained(scene) == [0, 1, 2, 1, 2]


def test_a_worker_that_hears_late_of_a_commit_has_lost_nothing() -> None:
    scene = Scene()
    scene.enter()
    for step in range(2):
        scene.answer(scene.until(Activations, step + 1))
        scene.commit(step)
    scene.tell_ledger((0, 1))
    scene.ask_again()
    scene.tell_ledger((0, 2))
    scene.commit(2)
    assert trained(scene) == [0, 1, 2, 3]


def test_training_is_told_done_anew_when_a_worker_lacked_a_step() -> None:
    scene = Scene()
    scene.enter()
    for step in range(4):
        scene.answer(scene.until(Activations, step + 1))
        scene.commit(step)
    scene.until(TrainingDone)
    scene.tell_ledger((0, 3))
    scene.ask_again()
    scene.tell_ledger((0, 3))
    assert trained(scene) == [0, 1, 2, 3, 3]
    num_told = len(scene.all(TrainingDone))
    scene.commit(3)
    scene.until(TrainingDone, num_told + 1)


def trained(scene: Scene) -> list[int]:
    """Return the steps whose activations have gone up, but copies that were sent by the clock."""
    scene.settle()
    return [message.step for message in scene.all(Activations) if isinstance(message, Activations)]


@pytest.mark.parametrize(
    "outputs",
    [EncodedTensor("identity", (4, 4), bytes(64)), EncodedTensor("identity", (4, 3), bytes(4_800))],
    ids=["another shape", "too many bytes"],
)
def test_outputs_that_cannot_be_used_end_the_agent(outputs: EncodedTensor) -> None:
    scene = Scene()
    scene.enter()
    with pytest.raises(RunError, match="outputs cannot be used") as caught:
        scene.answer(scene.until(Activations), outputs=outputs)
    assert caught.value.exit_code == 4
