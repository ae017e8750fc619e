"""The ladder: down where the uplink or the limit of bytes asks for it, as far as the guard allows, and up again."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from cutlayer.broker.manifest import BudgetSpec
from cutlayer.edge_agent.byte_plan import BytePlan
from cutlayer.edge_agent.codec_ladder import UP_SHARE, WINDOW, CodecLadder, UplinkState
from cutlayer.edge_agent.epochs import EpochPlan
from support.small_side import small_manifest

TOKENS = np.random.default_rng(0).normal(size=(8, 4, 16)).astype(np.float32)
LADDER = ("int8", "int4", "int2")
OTHER_BYTES = 400


class Uplink:
    """A link or a limit of some bytes a second, and an agent that takes some time for a microbatch beside it."""

    def __init__(self, *, else_s: float = 1.0, is_paced: bool = True, **budget: object) -> None:
        self.bytes_per_s, self.else_s, self.is_paced = float("inf"), else_s, is_paced
        self.now = self.paced_s = self.busy_s = 0.0
        self.sent_bytes = 0
        self.plan: BytePlan | None = None
        self.spec = BudgetSpec.model_validate({"ladder": LADDER, "max_relative_error": 0.9, **budget})
        self.ladder = CodecLadder(self.spec, self.look)

    def look(self) -> UplinkState:
        return UplinkState(self.now, self.sent_bytes, 0, self.paced_s, self.busy_s)

    def plan_for(self, limit: float, epochs: int = 10) -> None:
        steps = EpochPlan(0, "clinic/07", epochs, 800, 0, 8)
        self.plan = BytePlan(limit, steps, small_manifest(epochs=epochs))
        self.ladder = CodecLadder(self.spec, self.look, plan=self.plan)
        self.ladder.begin(0)

    def limit(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.ladder._max_bytes_per_s = bytes_per_s if self.is_paced and np.isfinite(bytes_per_s) else None

    def send(self, num: int = 1, *, is_kept: bool = False, scale: float = 1.0) -> list[str]:
        codecs = []
        for _ in range(num):
            codec = self.ladder.choose("identity", [TOKENS * np.float32(scale)], is_whole=True, is_kept=is_kept)
            codecs.append(codec)
            tensor_bytes = round(self.ladder._trials.sample_bytes(self.ladder._index) * len(TOKENS))
            self.ladder.add(num_passes=len(TOKENS), num_fresh=len(TOKENS), tensor_bytes=tensor_bytes)
            self.sent_bytes += tensor_bytes + OTHER_BYTES
            takes_s = (tensor_bytes + OTHER_BYTES) / self.bytes_per_s
            if self.is_paced:  # the bucket fills while the agent does something else
                self.paced_s += max(takes_s - self.else_s, 0.0)
                self.now += max(takes_s, self.else_s)
            else:
                self.busy_s += takes_s
                self.now += takes_s + self.else_s
        return codecs


def test_with_room_the_leases_codec_stays() -> None:
    uplink = Uplink()
    assert set(uplink.send(5 * WINDOW)) == {"identity"}
    assert uplink.ladder.num_changes == 0


@pytest.mark.parametrize("is_paced", [True, False], ids=["a limit", "a slow link"])
def test_an_uplink_that_is_waited_for_leads_down_a_rung_at_a_time_and_up_again(is_paced: bool) -> None:
    uplink = Uplink(is_paced=is_paced)
    uplink.limit(300.0)
    codecs = uplink.send(5 * WINDOW)
    assert list(dict.fromkeys(codecs)) == ["identity", *LADDER]
    assert codecs.count("int8") == WINDOW, "a window between two steps"
    uplink.limit(1e6)
    codecs = uplink.send(5 * WINDOW)
    assert list(dict.fromkeys(codecs)) == ["int2", "int4", "int8", "identity"]
    assert uplink.ladder.num_changes == 6


@pytest.mark.parametrize("is_paced", [True, False], ids=["a limit", "a slow link"])
def test_a_rung_is_not_left_for_one_that_would_not_fit(is_paced: bool) -> None:
    uplink = Uplink(is_paced=is_paced)
    uplink.limit(1_500.0)  # the agent takes a second else: 2.4 kB as float32 do not fit, 1.2 kB as int8 do
    uplink.send(40 * WINDOW)
    assert uplink.ladder.num_changes <= 3
    assert set(uplink.send(40 * WINDOW)) == {uplink.ladder.codec}
    assert uplink.ladder.codec != "identity"


def test_an_uplink_that_comes_and_goes_is_followed_ever_more_slowly() -> None:
    uplink = Uplink()
    changes = []
    for _ in range(12):
        before = uplink.ladder.num_changes
        for bytes_per_s in (300.0, 1e6):
            uplink.limit(bytes_per_s)
            uplink.send(2 * WINDOW)
        changes.append(uplink.ladder.num_changes - before)
    assert changes[0] > 0
    assert sum(changes[6:]) < sum(changes[:6]) / 2, changes


def test_the_guard_keeps_a_coarse_rung_out_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    uplink = Uplink(max_relative_error=0.02)
    uplink.limit(100.0)
    with caplog.at_level(logging.INFO):
        codecs = uplink.send(10 * WINDOW)
    assert list(dict.fromkeys(codecs)) == ["identity", "int8"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "int8 is the smallest codec of the ladder that max_relative_error = 0.02 allows" in warnings[0]


def test_a_rung_that_becomes_too_coarse_is_left_at_once() -> None:
    uplink = Uplink(max_relative_error=0.08)
    uplink.limit(100.0)
    assert uplink.send(3 * WINDOW)[-1] == "int4"
    hard = np.full_like(TOKENS, 1 / 30)  # half of one of int4's 15 steps
    hard[:, :, 0], hard[:, :, 1] = 0.0, 1.0
    while uplink.ladder._trials.error(2) < 0.08:
        codec = uplink.ladder.choose("identity", [hard], is_whole=True, is_kept=False)
        uplink.ladder.add(num_passes=8, num_fresh=8, tensor_bytes=1)
        uplink.now += 1.0
        uplink.paced_s += 1.0
    assert codec == "int8"


def test_every_change_is_one_line_with_figures(caplog: pytest.LogCaptureFixture) -> None:
    uplink = Uplink()
    told: list[None] = []
    uplink.ladder.on_change = lambda: told.append(None)
    uplink.limit(300.0)
    with caplog.at_level(logging.INFO):
        uplink.send(WINDOW + 1)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("activations go as int8 instead of identity: the uplink was waited for ")
    assert "96 B a sample instead of 256 B, relative error 0.00" in line
    assert len(told) == 1


def test_a_limit_of_bytes_is_met_from_the_first_microbatch_on() -> None:
    uplink = Uplink()
    uplink.plan_for(160.0)  # 256, 96, 48 or 32 B a sample, and 50 of other messages
    codecs = uplink.send(1_000)
    assert codecs[0] == "int8"
    average = uplink.sent_bytes / 8_000
    assert average == pytest.approx(160.0, rel=0.05)
    assert average <= 160.0


def test_room_that_a_limit_of_bytes_leaves_is_used_without_flapping() -> None:
    uplink = Uplink()
    uplink.plan_for(200.0)
    codecs = uplink.send(1_000)
    assert set(codecs) == {"int8", "identity"}
    assert uplink.ladder.num_changes <= 3
    assert uplink.sent_bytes / 8_000 == pytest.approx(200.0, rel=0.05)


def test_what_goes_once_may_be_fine_though_its_first_epoch_is_above_the_limit() -> None:
    uplink = Uplink()
    uplink.plan_for(100.0)
    assert set(uplink.send(100, is_kept=True)) == {"identity"}
    assert uplink.sent_bytes / 800 > 300.0


def test_a_limit_that_the_guard_keeps_from_being_met_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    uplink = Uplink(max_relative_error=0.02)
    uplink.plan_for(100.0)
    with caplog.at_level(logging.WARNING):
        assert set(uplink.send(100)) == {"int8"}
    (record,) = caplog.records
    assert "bytes_per_sample = 100 cannot be met: int8 is the smallest codec" in record.getMessage()


def test_codecs_that_do_not_exist_here_are_left_out_and_those_of_the_lease_stand_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ladder = CodecLadder(BudgetSpec(ladder=("int8+zstd:3", "int3", "int4")), lambda: UplinkState(0.0, 0))
    assert ladder.choose("int8+zstd", [TOKENS], is_whole=True, is_kept=False) == "int8+zstd"
    assert ladder._trials.codecs == ("int8+zstd", "int4")
    assert "int3 is unknown here" in caplog.text


def test_microbatches_with_one_modality_are_neither_measured_nor_decided_on() -> None:
    uplink = Uplink()
    assert uplink.ladder.choose("identity", [TOKENS], is_whole=False, is_kept=False) == "identity"
    assert not uplink.ladder._trials.has_any


def test_the_shares_are_far_enough_apart_for_a_link_to_change_by_less() -> None:
    uplink = Uplink()
    uplink.limit(300.0)
    uplink.send(6 * WINDOW)
    low = uplink.ladder.num_changes
    uplink.limit(300.0 * (1 + UP_SHARE))
    uplink.send(20 * WINDOW)
    assert uplink.ladder.num_changes == low
