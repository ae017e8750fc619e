"""What a worker keeps to tell agents of trained tokenizers: the last commits' gradients, and the newest weights."""

from __future__ import annotations

from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.work import NamedTensors
from cutlayer.broker.worker_weights import CommitMemory, WeightsDesk


def tensors(value: int) -> NamedTensors:
    return (("image", EncodedTensor("identity", (1,), bytes([value] * 4))),)


def test_the_last_commits_of_each_agent_are_kept_and_no_more() -> None:
    memory = CommitMemory(per_agent=2)
    for step in range(3):
        memory.keep("a", step, tensors(step))
    memory.keep("b", 0, tensors(9))
    assert [memory.of("a", step) for step in range(3)] == [(), tensors(1), tensors(2)]
    assert memory.of("b", 0) == tensors(9)
    memory.forget("a")
    assert memory.of("a", 2) == ()
    assert memory.of("b", 0) == tensors(9)


def test_commits_without_gradients_take_no_room() -> None:
    memory = CommitMemory(per_agent=1)
    memory.keep("a", 0, tensors(1))
    memory.keep("a", 1, ())
    assert memory.of("a", 0) == tensors(1)


def test_frozen_tokenizers_are_told_to_nobody() -> None:
    desk = WeightsDesk()
    desk.take(3, ())
    assert desk.tell([]) == []
    assert desk.version == 3
