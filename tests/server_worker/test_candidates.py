"""Weights that are judged: held by the engine, in checkpoints, and put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import EvaluationSpec
from cutlayer.broker.messages import Evaluation, MetricSums
from cutlayer.broker.selection import Judgement, Selection
from cutlayer.dashboards.report import render_report
from cutlayer.dashboards.run_record import parse_run
from cutlayer.dashboards.summary import summary
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_card import model_card
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_json import selection_json
from cutlayer.server_worker.settings import load_run_settings
from server_worker.small_model import output_gradient, small_engine, train_item
from support.html_page import Page
from support.synthetic_run import synthetic_manifest, synthetic_run, synthetic_telemetry


def step(engine: Engine, number: int) -> None:
    """Train one microbatch and commit it."""
    item = train_item(number)
    forwarded = engine.forward([item])
    assert forwarded.group_id is not None
    labels_b = np.zeros(item.num_samples, np.int64)
    engine.backward(forwarded.group_id, {item.key: output_gradient(forwarded.outputs[item.key], labels_b)}, last=True)
    engine.commit(item.num_samples, None)


def outputs(engine: Engine, candidate: str = "") -> np.ndarray[Any, Any]:
    item = train_item("judged", mode="eval")
    return engine.forward([item], candidate).outputs[item.key]


def test_a_candidate_gives_what_its_weights_gave_whatever_is_committed_since() -> None:
    engine = small_engine()
    step(engine, 0)
    before, name = outputs(engine), engine.hold_candidate()
    step(engine, 1)
    assert not np.array_equal(outputs(engine), before)
    assert np.array_equal(outputs(engine, name), before)


def test_a_candidate_costs_no_copy() -> None:
    engine = small_engine()
    name = engine.hold_candidate()
    newest = engine._parameters.newest
    assert all(value.data_ptr() == newest[key].data_ptr() for key, value in engine.candidates()[name].items())


def test_bit_identical_weights_have_one_name_and_others_another() -> None:
    one, other = small_engine(), small_engine()
    assert one.hold_candidate() == other.hold_candidate()
    step(one, 0)
    assert one.hold_candidate() != other.hold_candidate()


def test_the_kept_weights_are_the_newest_under_a_number_of_their_own() -> None:
    engine = small_engine()
    step(engine, 0)
    digest, kept, name = engine.parameters_digest(), outputs(engine), engine.hold_candidate()
    step(engine, 1)
    engine.forward([train_item(2)])
    assert engine.keep_candidate(name) == 3
    assert engine.parameters_digest() == digest
    assert np.array_equal(outputs(engine), kept)
    assert engine.num_live_graphs == 0, "nothing of training is left"
    engine.hold_only(())
    assert engine.candidates() == {}


def test_the_last_weights_may_be_kept_without_a_name() -> None:
    engine = small_engine()
    step(engine, 0)
    digest = engine.parameters_digest()
    assert engine.keep_candidate("") == 2
    assert engine.parameters_digest() == digest


def test_a_checkpoint_has_the_candidates_and_another_process_puts_the_same_weights_back(tmp_path: Path) -> None:
    engine = small_engine()
    step(engine, 0)
    digest, name = engine.parameters_digest(), engine.hold_candidate()
    step(engine, 1)
    store = CheckpointStore(tmp_path)
    path = store.save(Checkpoint(engine.state_dict(), candidates=engine.candidates()))
    restored = store.load_latest().checkpoint
    anew = small_engine(seed=1)
    anew.load_state_dict(restored.state)
    anew.load_candidates(restored.candidates)
    anew.keep_candidate(name)
    assert anew.parameters_digest() == digest
    (path / "candidates.safetensors").write_bytes(b"torn")
    store.save(Checkpoint(engine.state_dict()))
    assert store.load_latest().checkpoint.candidates == {}


def test_candidates_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates are of another model"):
        small_engine().load_candidates({"c0ffee": {"weight": torch.zeros(1)}})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("keep = 'best'\nevery_epochs = 0", "evaluation.every_epochs = 0 evaluates"),
        ("patience_epochs = 3\nevery_epochs = 0", "evaluation.patience_epochs judges epochs"),
        ("metric = 'acuracy'", "choose one of accuracy, loss"),
        ("keep = 'first'", "keep"),
        ("val_ratio = 0.6", "val_ratio"),
        ("keep = 'best'\n[run]\nservice = true", "run.service = true has none"),
        ("patience_epochs = 2\n[model]\nhead = 'agent'", "would not be of the same epoch"),
    ],
)
def test_settings_that_choose_by_nothing_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "run.toml"
    image = '[modalities.image]\nkind = "image"\nheight = 8\nwidth = 8\nchannels = 1\npatch = 2\n'
    path.write_text(f'{image}[task]\nclasses = ["cat", "dog"]\n[evaluation]\n{lines}\n')
    with pytest.raises(SettingsError) as error:
        load_run_settings(path)
    assert said in str(error.value)


def chosen_run() -> dict[str, Any]:
    """Return a `run.json` whose second of three epochs was kept."""
    manifest = synthetic_manifest()
    selection = Selection(EvaluationSpec(keep="best", patience_epochs=1), manifest.task, 12)
    book = RunBook(manifest, 0)
    for epoch, num_correct in enumerate((40, 60, 50), start=1):
        selection.committed(100 * epoch, 1_200)
        selection.taken(f"weights {epoch}")
        loss = 1.0 / num_correct
        selection.conclude([Judgement(f"weights {epoch}", num_correct / 64, loss, 64)], is_over=False)
    evaluations = tuple(
        Evaluation(epoch, "audio+image", False, MetricSums(1.0, num_correct, 64), 0, f"weights {epoch}")
        for epoch, num_correct in enumerate((40, 60, 50), start=1)
    )
    assert book.take("site/0", replace(synthetic_telemetry(0), evaluations=evaluations))
    assert book.history() == [], "validation samples are no test samples"
    return {**synthetic_run(), **selection_json(selection, book), "reason": selection.reason()}


def test_run_json_has_every_candidate_with_its_metrics_and_the_kept_epoch() -> None:
    selection = chosen_run()["selection"]
    assert (selection["kept_epoch"], selection["is_early"], selection["metric"]) == (2, True, "accuracy")
    assert [(row["epoch"], row["metrics"]["accuracy"]) for row in selection["candidates"]] == [
        (1, 0.625),
        (2, 0.9375),
        (3, 0.78125),
    ]
    assert "state" not in selection


def test_report_summary_and_model_card_say_which_epoch_was_kept() -> None:
    run = chosen_run()
    words = Page(render_report(run)).words
    assert "2 (kept) 0.9375" in words
    assert "the test samples were evaluated once, at the end" in words
    card = model_card(synthetic_manifest(), {"site/0": 100}, {}, run)
    assert "Those of epoch 2, the best on the sites' validation samples, pooled, by accuracy." in card
    assert "Training ended early: no better epoch since epoch 2, in 1 epochs." in card
    assert "| 2 (kept) | 0.9375 |" in card
    assert "## Weights" not in model_card(synthetic_manifest(), {"site/0": 100}, {}, synthetic_run())
    record = parse_run(run)
    assert record.selection is not None
    assert record.selection.kept_epoch == 2
    assert summary(record) is not None
