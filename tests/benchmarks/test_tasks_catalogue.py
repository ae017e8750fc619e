"""Every task has complete run settings, and those whose data pip installs can be opened and fit them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks.tasks.catalogue import TASKS
from benchmarks.tasks.package_files import package_file
from benchmarks.tasks.vocabularies import SIZES, vocabulary_of

from cutlayer.broker.task_metrics import metrics_of
from cutlayer.broker.vocabulary import Vocabulary
from cutlayer.edge_agent.batches import SPLITS, Dataset, Split
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import check_codecs, make_manifest
from cutlayer.server_worker.settings import load_run_settings

FROM_PIP = ("digits", "easy-vqa", "motions", "vitals")
"""The others' data are fetched, and their readers tested on files made there."""


def contents(data: Dataset, split: Split) -> list[bytes]:
    """What identifies each sample: the bytes of all its inputs."""
    batch = data.batch(split, np.arange(data.num_samples(split)))
    inputs = [values for _, values in sorted(batch.inputs.items())]
    return [b"".join(values[row].tobytes() for values in inputs) for row in range(len(batch.targets))]


def test_the_paper_s_families_and_more_are_there() -> None:
    assert set(TASKS) == {"digits", "easy-vqa", "emoji", "prompts", "motions", "vitals"}
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_run_settings_are_complete_and_give_the_headline_metric(name: str) -> None:
    task = TASKS[name]
    settings = load_run_settings(task.run)
    assert settings.run.name == name
    check_codecs(settings)
    [metric] = [metric for metric in metrics_of(settings.task) if metric.name == task.metric]
    assert metric.better == "more"
    assert build(settings, 0).num_trained_parameters < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_PIP)
def test_a_site_s_samples_go_through_the_run_s_tokenizers(name: str) -> None:
    task = TASKS[name]
    settings = load_run_settings(task.run)
    built = build(settings, 0)
    data = task.open(Shard(1, 4), 0, 0.5)
    client = ClientSide(make_manifest(settings, built), built.tokenizer_file, data)
    assert client.modalities == tuple(sorted(settings.modalities))
    for split in SPLITS:
        given = client.tokenize(split, np.arange(8), client.modalities)
        assert all(tokens_BND.shape[0] == 8 and np.isfinite(tokens_BND).all() for _, tokens_BND in given.tokens)
    # A report is of 32 test samples at least, so each of four sites has to have as many.
    assert data.num_samples("test") >= 32


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_PIP)
def test_the_same_seed_gives_the_same_samples_and_another_does_not(name: str) -> None:
    open_task = TASKS[name].open
    first = open_task(Shard(0, 4), 3, 0.5).batch("train", np.arange(16))
    again = open_task(Shard(0, 4), 3, 0.5).batch("train", np.arange(16))
    other = open_task(Shard(0, 4), 4, 0.5).batch("train", np.arange(16))
    for modality, values in first.inputs.items():
        assert np.array_equal(values, again.inputs[modality])
    assert any(not np.array_equal(values, other.inputs[modality]) for modality, values in first.inputs.items())


@pytest.mark.slow
def test_no_picture_of_easy_vqa_is_trained_on_and_tested() -> None:
    data = TASKS["easy-vqa"].open(Shard(), 0, None)
    assert (data.num_samples("train"), data.num_samples("test")) == (4_000, 1_500)
    train, test = (data.batch(split, np.arange(data.num_samples(split))) for split in SPLITS)
    assert len({test.inputs["image"][row].tobytes() for row in range(1_500)}) > 700
    # Neither half tells the answer: yes and no are equally frequent among the questions that ask for them.
    yes, no = (int((train.targets == data.classes.index(answer)).sum()) for answer in ("yes", "no"))
    assert abs(yes - no) < 200


@pytest.mark.parametrize(("name", "total"), [("vitals", 442), ("motions", 3_745)])
def test_who_is_tested_is_not_trained_on_and_all_are_used(name: str, total: int) -> None:
    data = TASKS[name].open(Shard(), 0, None)
    train, test = contents(data, "train"), contents(data, "test")
    assert not set(train) & set(test)
    assert len(train) + len(test) == total


def test_the_vocabulary_of_the_questions_is_what_its_script_makes() -> None:
    document = json.loads(package_file("easy_vqa", "data/train/questions.json").read_text(encoding="utf-8"))
    texts = [question for question, _, _ in document]
    name = "easy_vqa_words.json"
    written = Vocabulary(TASKS["easy-vqa"].run.with_name(name).read_bytes())
    made = Vocabulary(vocabulary_of(texts, SIZES[name]).encode())
    assert {text: written.ids(text, 99) for text in set(texts)} == {text: made.ids(text, 99) for text in set(texts)}
    spec = load_run_settings(TASKS["easy-vqa"].run).modalities["question"]
    assert max(len(made.ids(text, 99)) for text in set(texts)) <= spec.num_tokens
