"""What plans of trained tokenizers rest on: a rehearsal of the run, a trial of its training, and samples followed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation import plan_rehearsal
from cutlayer.simulation.plan_changes import follow
from cutlayer.simulation.plan_compute import agent_memory_bytes, learning_flops
from cutlayer.simulation.plan_evaluations import Visit
from cutlayer.simulation.plan_exchange import Parties
from cutlayer.simulation.plan_model import PlannedModel, plan_model
from cutlayer.simulation.plan_rehearsal import Cadence, rehearse
from cutlayer.simulation.plan_sites import site_of, trial_windows, try_out
from cutlayer.simulation.plan_tensors import MeasuredTensors, has_fixed_size
from cutlayer.simulation.plan_trial import Trial
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, run_until_over

SIZES = (60, 36)
NUM_TEST = 40


def settings_of(window: str = "asynchronous", **optimizer: object) -> RunSettings:
    return small_settings(
        run={"epochs": 4, "min_agents": len(SIZES)},
        window={"mode": window, "samples": 8},
        tokenizers={"mode": "trainable", "every_steps": 3, "every_windows": 2},
        activations={"mode": "delta"},
        codecs={"activations": "lowrank:error=0.05"},
        optimizer={"name": "adamw", "lr": 0.01, "momentum": 0.0, **optimizer},
    )


def measured(model: PlannedModel, index: int = 0) -> MeasuredTensors:
    parties = Parties(f"site/{index}", "w0", f"site/{index}", 1, "memory")
    tensors = site_of(model, parties, small_dataset(index, SIZES[index], NUM_TEST)).tensors
    assert isinstance(tensors, MeasuredTensors)
    return tensors


def tried_out(settings: RunSettings, num_windows: int) -> tuple[Trial, list[MeasuredTensors]]:
    model = plan_model(settings)
    sites = [
        site_of(model, Parties(f"site/{index}", "w0", "", 1, "memory"), small_dataset(index, size, NUM_TEST))
        for index, size in enumerate(SIZES)
    ]
    cadence = rehearse(settings, model.manifest, [(site.num_train, site.num_test) for site in sites])
    trial = try_out(model, sites, cadence, num_windows)
    assert trial is not None
    return trial, [site.tensors for site in sites if isinstance(site.tensors, MeasuredTensors)]


@pytest.mark.parametrize("window", ["asynchronous", "synchronous"])
def test_a_rehearsal_has_the_windows_of_the_run(window: str) -> None:
    settings = settings_of(window)
    network = VirtualNetwork(LinkFaults(delay_s=0.01))
    worker = Worker(network, settings, computes=True)
    agents = [
        network.add_agent(f"site/{index}", small_dataset(index, size, NUM_TEST)) for index, size in enumerate(SIZES)
    ]
    run_until_over(network, worker, agents)
    cadence = rehearse(settings, worker.manifest, [(size, NUM_TEST) for size in SIZES])
    assert cadence.is_whole
    assert cadence.num_windows == worker.session.window
    for agent in agents:
        assert agent.reporter.last is not None
        counts = {row.kind: row.messages for row in agent.reporter.last.traffic}
        assert cadence.num_weights == pytest.approx(counts["TokenizerWeights"], abs=1)


@pytest.mark.parametrize("window", ["asynchronous", "synchronous"])
@pytest.mark.parametrize("max_steps", [48, 24])
def test_a_long_run_is_rehearsed_in_part_and_scaled_up(
    max_steps: int, window: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(window)
    manifest, sizes = plan_model(settings).manifest, [(size, NUM_TEST) for size in SIZES]
    whole = rehearse(settings, manifest, sizes)
    monkeypatch.setattr(plan_rehearsal, "MAX_STEPS", max_steps)
    part = rehearse(settings, manifest, sizes)
    assert (whole.is_whole, part.is_whole) == (True, False)
    assert part.num_windows == pytest.approx(whole.num_windows, rel=0.1)
    assert part.num_weights == pytest.approx(whole.num_weights, rel=0.1)
    assert part.gradients_share == pytest.approx(whole.gradients_share, rel=0.35)


def test_many_agents_are_rehearsed_by_some(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of()
    manifest, sizes = plan_model(settings).manifest, [(24, 8)] * 12
    whole = rehearse(settings, manifest, sizes)
    monkeypatch.setattr(plan_rehearsal, "MAX_AGENTS", 6)
    part = rehearse(settings, manifest, sizes)
    assert len(part.gradients_share) == 12
    assert part.num_windows == pytest.approx(whole.num_windows, rel=0.15)


def test_a_trial_moves_the_weights_and_gives_them_back() -> None:
    trial, tensors = tried_out(settings_of(), 12)
    assert trial.num_windows == 12 < trial.run_windows
    assert trial.moved > 0.001
    assert [window for window, _ in trial.snapshots] == list(range(13))
    fresh, indices_B = measured(plan_model(settings_of())), np.arange(4)
    before, after = (own.client.tokenize("train", indices_B, ("image",)).tokens[0][1] for own in (fresh, tensors[0]))
    np.testing.assert_array_equal(before, after)


def test_beyond_a_trial_weights_move_on_by_the_ratio_of_learning_rates() -> None:
    """Half a cosine to zero: the last quarter of a run moves them by a tenth of what its second quarter does."""
    trial, _ = tried_out(settings_of(warmup_ratio=0.0, min_lr_ratio=0.0), 12)
    weights = [trial.weights_at(epoch)["audio.weight"] for epoch in (1, 2, 3, 4)]
    second, _, last = (float(np.abs(new - old).mean()) for old, new in itertools.pairwise(weights))
    assert 0 < last < 0.2 * second


def test_a_trial_has_as_many_windows_as_there_is_time_for() -> None:
    model = plan_model(settings_of())
    assert trial_windows(model, 1e9) == 2
    assert trial_windows(model, 0.01) == 20 / (3 * 0.01 * 8) // 1


def test_no_trial_where_all_sizes_are_fixed() -> None:
    settings = small_settings(
        tokenizers={"mode": "trainable"},
        activations={"mode": "delta"},
        codecs={"activation_gradients": "int8", "activations": "int8", "output_gradients": "fp16"},
    )
    model = plan_model(settings)
    site = site_of(model, Parties("site/0", "w0", "", 1, "memory"), small_dataset(0))
    assert try_out(model, [site], Cadence(10, 4, (0.2,), is_whole=True), 8) is None


@pytest.mark.parametrize(
    ("codec", "is_fixed"),
    [
        ("identity", True),
        ("int8", True),
        ("int4:block=64", True),
        ("fp16", True),
        ("int8+zstd", False),
        ("lowrank:error=0.05", False),
    ],
)
def test_codecs_of_fixed_size_are_told_from_others(codec: str, is_fixed: bool) -> None:
    assert has_fixed_size(codec) is is_fixed


def test_changes_of_frozen_tokenizers_are_what_the_codec_leaves() -> None:
    model = plan_model(settings_of())
    own = measured(model)
    changes = follow(model.manifest, own.client, own.plan, None)
    first, second = (
        sum(len(tensor.data) for _, tensor in changes.of("train", Visit(epoch, 4 if epoch else 0), 4)[0])
        for epoch in (0, 1)
    )
    assert second < 0.3 * first


def test_changes_of_trained_tokenizers_grow_with_how_far_weights_move() -> None:
    model = plan_model(settings_of())
    trial, tensors = tried_out(settings_of(), 24)
    start = trial.weights_at(0)

    def second_visit(times: float) -> int:
        def weights_at(epoch: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
            now = trial.weights_at(min(epoch, 1.0))
            return {name: start[name] + np.float32(times) * (now[name] - start[name]) for name in start}

        changes = follow(model.manifest, tensors[0].client, tensors[0].plan, weights_at)
        return sum(len(tensor.data) for _, tensor in changes.of("train", Visit(1, 4), 4)[0])

    assert second_visit(0.0) < second_visit(1.0) < second_visit(10.0)


def test_learning_costs_an_agent_what_the_forward_pass_of_its_sent_tokens_does() -> None:
    assert learning_flops(plan_model(small_settings()).manifest) == 0
    assert learning_flops(plan_model(settings_of()).manifest) == 2 * 4 * 4 * 16 + 2 * 4 * 4 * 16
    reduced = small_settings(
        tokenizers={"mode": "trainable"},
        activations={"mode": "delta", "reduction": {"image": {"kind": "content", "keep": 0.5}}},
    )
    assert learning_flops(plan_model(reduced).manifest) == 2 * 4 * 4 * 16 + 2 * 2 * 4 * 16


def test_memory_holds_what_workers_have_of_samples_and_the_sums_of_gradients() -> None:
    model = plan_model(settings_of())
    found = agent_memory_bytes(model.manifest, model.sizes, 100, 2, 500.0, "delta")
    assert found["what workers have of samples"] == 100 * (8 * 16 * 2 + 300)
    num_parameters = 2 * (4 * 16 + 16)
    assert found["tokenizers' gradients"] == 8 * num_parameters + 4 * 8 * 16 * 4
    most = agent_memory_bytes(model.manifest, model.sizes, 10_000_000, 2, 500.0, "delta")
    assert most["what workers have of samples"] == 256 << 20
