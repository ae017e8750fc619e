from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from cutlayer.server_worker.disclosure import Disclosure, disclose
from cutlayer.server_worker.disclosure_view import disclosure_view
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.tuning import goes_back_through_all
from server_worker.small_model import small_settings

TABLE = {"kind": "table", "columns": ["age", "weight"]}
TEXT = {"kind": "text", "num_tokens": 12}
IMAGE = {"kind": "image", "height": 8, "width": 8, "channels": 1, "patch": 2}
TRAINED = {"tokenizers": {"mode": "trainable", "every_steps": 3, "every_windows": 5}, "activations": {"mode": "delta"}}


def of(**sections: Any) -> Disclosure:
    settings = small_settings(**sections)
    built = build(settings, 0)
    return disclose(
        make_manifest(settings, built),
        built.num_tokenizer_parameters,
        goes_back_through_all=goes_back_through_all(built.encoder),
    )


def printed(disclosure: Disclosure) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(disclosure_view(disclosure))
    return capture.get()


@pytest.mark.parametrize(
    ("tuning", "what", "share"),
    [
        ({"mode": "full"}, "all of the encoder, the head", 1.0),
        (
            {"mode": "last", "blocks": 2},
            "the last 2 blocks, the norm behind, embeddings of modalities that are new, the head",
            1.0,
        ),
        ({"mode": "frozen", "embeddings": "all"}, "embeddings of all modalities, the head", 0.0376),
        ({"mode": "frozen", "embeddings": "none"}, "the head", 0.004),
        (
            {"mode": "lora", "rank": 2, "targets": ["fc1"], "embeddings": "none"},
            "additions of rank 2 (alpha 16) to fc1 of all blocks, the head",
            0.03,
        ),
    ],
    ids=lambda value: value["mode"] if isinstance(value, dict) else "",
)
def test_what_is_tuned_is_told_in_words_and_numbers(tuning: dict[str, object], what: str, share: float) -> None:
    tuned = of(tuning=tuning).tuned
    assert tuned.what == what
    assert tuned.trained_parameters / tuned.all_parameters == pytest.approx(share, rel=0.2)


def test_frozen_tokenizers_send_activations_up_and_outputs_down_and_nothing_else() -> None:
    sent = of().sent
    assert [(entry.what, entry.direction, entry.shape) for entry in sent] == [
        ("activations of audio", "up", (8, 32)),
        ("activations of image", "up", (16, 32)),
        ("outputs", "down", (3,)),
        ("output gradients", "up", (3,)),
        ("outputs of test samples", "down", (3,)),
    ]
    assert sent[0].when == "once a run, then by number"


def test_trained_tokenizers_send_gradients_and_weights_too() -> None:
    sent = {(entry.what, entry.direction): entry for entry in of(**TRAINED).sent}
    assert sent["activations of image", "up"].when == "once, then changes each epoch"
    assert sent["activation gradients of image", "down"].shape == (16, 32)
    assert sent["tokenizers' gradients", "up"].when == "each 3 steps"
    assert sent["tokenizers", "down"].when == "each 5 windows"
    assert sent["tokenizers", "down"].shape == (of(**TRAINED).tuned.tokenizer_parameters,)


def test_fewer_tokens_and_coarser_codecs_are_told() -> None:
    reduced = of(
        activations={"reduction": {"image": {"kind": "content", "keep": 0.5}}},
        budget={"ladder": ["int8", "int4"]},
        codecs={"activations": "fp16"},
    )
    image = next(entry for entry in reduced.sent if entry.what == "activations of image")
    assert image.shape == (8, 32)
    assert image.codec == "fp16, or down to int4"
    assert "pixels of the 8 tokens of 16 that are sent" in reduced.server_can_infer[1]


def test_a_patch_with_more_values_than_the_width_keeps_detail_back() -> None:
    wide = IMAGE | {"channels": 3, "patch": 4}
    (sentence, *_) = of(modalities={"image": wide}).server_can_infer
    assert "the linear tokenizer keeps 32 of the 48 dimensions of a patch" in sentence
    (sentence, *_) = of(modalities={"image": IMAGE}, codecs={"activations": "identity"}).server_can_infer
    assert sentence == "image: pixels, by solving the linear tokenizer patch by patch (4 values, 32 equations)."


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"classes": ["a", "b"]}, "The label of each training sample"),
        ({"kind": "multi-label", "classes": ["a", "b"]}, "The labels of each training sample"),
        ({"kind": "regression", "targets": [{"name": "age", "mean": 50, "std": 20}]}, "Each training sample's target"),
    ],
    ids=["classification", "multi-label", "regression"],
)
def test_what_labels_show_depends_on_the_task(task: dict[str, object], text: str) -> None:
    assert any(sentence.startswith(text) for sentence in of(task=task).server_can_infer)


def test_a_head_at_the_agents_keeps_outputs_back_and_says_what_is_left() -> None:
    own = of(model={"head": "agent"})
    assert [(entry.what, entry.direction, entry.shape) for entry in own.sent[2:]] == [
        ("features", "down", (32,)),
        ("feature gradients", "up", (32,)),
        ("features of test samples", "down", (32,)),
    ]
    assert own.tuned.what == "all of the encoder"
    assert any(
        sentence.startswith("Which training samples of a site have the same") for sentence in own.server_can_infer
    )
    assert any("which the run's seed tells" in sentence for sentence in own.server_can_infer)
    assert not any("computes the outputs" in sentence for sentence in own.server_can_infer)
    assert "The head, and the outputs that it makes of features." in own.stays
    secret = of(model={"head": "agent", "head_start": "secret"})
    assert not any("which the run's seed tells" in sentence for sentence in secret.server_can_infer)


def test_pairs_have_no_labels_and_a_window_tells_losses_alone() -> None:
    pairs = of(task={"kind": "retrieval", "between": ["audio", "image"], "dimensions": 4}, model={"fusion": "late"})
    assert any(sentence.startswith("Which samples belong together") for sentence in pairs.server_can_infer)
    shapes = {entry.what: entry.shape for entry in pairs.sent}
    assert shapes["output gradients"] == (1,)
    assert shapes["outputs of test samples"] == (8,)


def test_words_and_cells_are_named() -> None:
    inferred = of(modalities={"notes": TEXT, "vitals": TABLE}).server_can_infer
    assert inferred[0].startswith("notes: every subword")
    assert inferred[1].startswith("vitals: every cell")


def test_the_block_says_all_of_it() -> None:
    disclosure = of(tuning={"mode": "lora"}, **TRAINED)
    text = printed(disclosure)
    assert "lora: " in text
    assert "parameters of the encoder train" in text
    for words in (*disclosure.server_can_infer, *disclosure.stays, *(entry.what for entry in disclosure.sent)):
        assert words in text
    assert "32" in text


def test_the_block_says_whether_frozen_blocks_have_a_backward_pass() -> None:
    assert "frozen blocks cost a forward pass alone" in printed(of(tuning={"mode": "frozen", "embeddings": "none"}))
    assert "gradients go back through all blocks" in printed(of(tuning={"mode": "frozen"}))


def test_run_json_has_it() -> None:
    content = json.loads(json.dumps(of(tuning={"mode": "last"}).as_json()))
    assert content["tuned"]["mode"] == "last"
    assert content["tuned"]["trained_parameters"] < content["tuned"]["all_parameters"]
    assert content["sent"][0] == {
        "what": "activations of audio",
        "direction": "up",
        "shape": [8, 32],
        "codec": "int8+zstd",
        "when": "once a run, then by number",
    }
    assert content["server_can_infer"]
