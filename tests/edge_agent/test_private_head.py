"""A head that stays at its agent: each step counts once, whatever comes again, and a file brings it through a crash."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest, SiteOptimizer
from cutlayer.broker.site_optimizer import HeadStart
from cutlayer.edge_agent.cross_entropy import CrossEntropy
from cutlayer.edge_agent.loss_result import LossResult
from cutlayer.edge_agent.private_head import PrivateHead, first_head
from support.small_side import small_manifest

OPTIMIZER = SiteOptimizer(lr=0.05)
RNG = np.random.default_rng(3)
WIDTH = small_manifest().width
FEATURES = {step: RNG.normal(size=(4, WIDTH)).astype(np.float32) for step in range(6)}
LABELS = {step: RNG.integers(0, 3, 4) for step in range(6)}


def manifest(start: HeadStart = "alike", run_id: str = "small-0") -> Manifest:
    return small_manifest().model_copy(update={"head": start, "site_optimizer": OPTIMIZER, "run_id": run_id})


def head_at(
    path: Path | None = None, start: HeadStart = "alike", agent: str = "site/0", run_id: str = "small-0"
) -> PrivateHead:
    return PrivateHead(manifest(start, run_id), agent, 24, path)


def learn(head: PrivateHead, step: int) -> LossResult:
    def loss_of(outputs_BC: NDArray[np.float32]) -> LossResult:
        return CrossEntropy().loss_and_gradient(outputs_BC, LABELS[step])

    return head.loss(FEATURES[step], loss_of, step)


def trained(*steps: int, path: Path | None = None) -> PrivateHead:
    head = head_at(path)
    for step in steps:
        learn(head, step)
        head.committed(step)
    return head


def assert_same(head: PrivateHead, other: PrivateHead) -> None:
    for part, value in other.parts.items():
        np.testing.assert_array_equal(head.parts[part], value)


def test_heads_begin_alike_and_secret_ones_do_not() -> None:
    assert_same(head_at(), head_at())
    assert not np.array_equal(head_at(start="secret").parts["weight"], head_at(start="secret").parts["weight"])
    assert not np.array_equal(first_head("alike", 0, 3, 16)["weight"], first_head("alike", 1, 3, 16)["weight"])


def test_the_gradient_at_the_features_is_that_of_the_loss() -> None:
    head = trained(0)
    before = learn(head, 1)
    head.resume((), lacks_steps=True)  # the head is as before the step
    shifted, feature = 1e-3, (2, 5)
    FEATURES[5] = FEATURES[1].copy()
    FEATURES[5][feature] += shifted
    LABELS[5] = LABELS[1]
    after = head.loss(FEATURES[5], lambda o: CrossEntropy().loss_and_gradient(o, LABELS[5]), None)
    assert (after.loss_sum - before.loss_sum) / shifted == pytest.approx(before.gradient_BC[feature], abs=1e-3)


def test_outputs_of_a_step_that_come_again_count_once() -> None:
    head = trained(0)
    first = learn(head, 1)
    again = learn(head, 1)
    np.testing.assert_array_equal(first.gradient_BC, again.gradient_BC)
    head.committed(1)
    head.committed(1)
    assert_same(head, trained(0, 1))


def test_a_step_that_is_out_is_part_of_the_head_before_its_commit() -> None:
    head = trained(0)
    learn(head, 1)
    assert_same(head, trained(0, 1))


def test_what_is_evaluated_teaches_nothing() -> None:
    head = trained(0)
    head.loss(FEATURES[1], lambda o: CrossEntropy().loss_and_gradient(o, LABELS[1]), None)
    assert_same(head, trained(0))


def test_steps_that_the_run_has_lost_are_forgotten() -> None:
    head = trained(0, 1)
    learn(head, 2)
    head.resume(((0, 2),), lacks_steps=True)
    assert_same(head, trained(0, 1))


@pytest.mark.parametrize("is_committed", [False, True], ids=["lost", "committed"])
def test_a_process_that_is_killed_after_its_gradient_went_up_is_no_loss(tmp_path: Path, *, is_committed: bool) -> None:
    path = tmp_path / "head.safetensors"
    learn(trained(0, 1, path=path), 2)
    head = head_at(path)
    head.resume(((0, 3),) if is_committed else ((0, 2),), lacks_steps=False)
    if not is_committed:
        learn(head, 2)
        head.committed(2)
    assert_same(head, trained(0, 1, 2))
    learn(head, 3)
    head.committed(3)
    assert_same(head, trained(0, 1, 2, 3))


def test_what_was_being_written_when_a_process_was_killed_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    trained(0, 1, path=path).save()
    (tmp_path / "head.safetensors.partial").write_bytes(b"half")
    assert_same(head_at(path), trained(0, 1))


def test_a_head_that_begins_anew_in_a_run_that_goes_on_is_told(caplog: pytest.LogCaptureFixture) -> None:
    head = head_at()
    with caplog.at_level(logging.WARNING):
        head.resume(((0, 7),), lacks_steps=False)
        head.resume(((0, 9),), lacks_steps=False)
    told = [record.getMessage() for record in caplog.records if "begins anew" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("7 of this agent's steps are committed")
    assert "--head FILE" in told[0]


def test_a_head_without_a_file_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        head_at()
    assert "memory alone; give --head FILE" in caplog.text


@pytest.mark.parametrize(("agent", "run_id"), [("site/1", "small-0"), ("site/0", "small-1")])
def test_the_file_of_another_run_or_agent_is_not_written_over(tmp_path: Path, agent: str, run_id: str) -> None:
    path = tmp_path / "head.safetensors"
    trained(0, path=path).save()
    content = path.read_bytes()
    with pytest.raises(SettingsError, match="name another file"):
        head_at(path, agent=agent, run_id=run_id)
    assert path.read_bytes() == content


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    trained(0, path=path).save()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SettingsError, match="cannot be read"):
        head_at(path)


def test_a_file_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    trained(0, path=path).save()
    other = manifest().model_copy(update={"width": WIDTH + 1})
    with pytest.raises(SettingsError, match="damaged: weight is"):
        PrivateHead(other, "site/0", 24, path)


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be written"):
        head_at(tmp_path / "none" / "head.safetensors")
