"""Vocabularies in run settings and at the command line, and their way to the agents."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import TextSpec
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.cli import app
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.server_worker.vocabulary_files import make_vocabulary
from support.vocabularies import CORPUS, edited, vocabulary

RUN = """
[modalities.note]
kind = "text"
num_tokens = 16
vocabulary = "words.json"
[model]
options = { img_size = 4, patch_size = 2, embed_dim = 16, depth = 1, num_heads = 2 }
[task]
classes = ["a", "b"]
"""


def run_file(folder: Path, text: str = RUN, document: bytes | None = None) -> Path:
    (folder / "words.json").write_bytes(vocabulary() if document is None else document)
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path) -> RunSettings:
    return load_run_settings(run_file(folder))


def test_the_file_becomes_digest_and_size(tmp_path: Path) -> None:
    spec = loaded(tmp_path).modalities["note"]
    assert isinstance(spec, TextSpec)
    assert spec.vocabulary == hashlib.sha256(vocabulary()).hexdigest()
    assert 256 < spec.vocabulary_size <= 300


def test_the_vocabulary_travels_with_the_weights_and_is_no_parameter(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    built = build(settings, 0)
    tokenizer = load_tokenizers(settings.modalities, built.tokenizer_file)["note"]
    features = tokenizer.features(np.array(["the patient has a cough"], object))
    assert (features >= 0).sum() == 5
    spec = settings.modalities["note"]
    assert isinstance(spec, TextSpec)
    assert built.num_tokenizer_parameters == spec.vocabulary_size * 16


def test_trained_embeddings_are_parameters_and_the_vocabulary_is_none(tmp_path: Path) -> None:
    path = run_file(tmp_path, RUN + '[tokenizers]\nmode = "trainable"\n[activations]\nmode = "every-step"\n')
    encoder = build(load_run_settings(path), 0).encoder
    assert encoder.tokenizers is not None
    assert [name for name, _ in encoder.tokenizers.named_parameters()] == ["note_tokens.embedding"]


def test_bytes_need_no_file(tmp_path: Path) -> None:
    path = run_file(tmp_path, RUN.replace("words.json", "bytes"))
    assert load_run_settings(path).modalities["note"] == TextSpec(num_tokens=16)


@pytest.mark.parametrize(
    ("text", "document", "problem"),
    [
        (RUN.replace("words.json", "none.json"), None, "none.json' cannot be read: No such file"),
        (RUN, b"{}", "words.json' cannot be used: its model is none of"),
        (RUN, edited(lambda content: content["model"].update(dropout=0.5)), "drops merges at random"),
        (RUN.replace('"words.json"', '"words.json"\nvocabulary_size = 9'), None, "vocabulary_size beside a file"),
        ("vocabularies = {}\n" + RUN, None, "unknown key vocabularies"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_named_with_the_fix(
    tmp_path: Path, text: str, document: bytes | None, problem: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_run_settings(run_file(tmp_path, text, document))
    assert problem in caught.value.problem
    assert caught.value.fix


def test_a_worker_without_the_package_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run_file(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SettingsError, match="is not installed") as caught:
        load_run_settings(path)
    assert caught.value.fix == 'pip install "cutlayer[text]"'
    with pytest.raises(SettingsError, match="is not installed"):
        make_vocabulary([tmp_path / "texts.txt"], 300)


def test_merging_tokens_of_texts_is_refused(tmp_path: Path) -> None:
    path = run_file(tmp_path, RUN + '[activations]\nreduction = { note = { kind = "merge" } }\n')
    with pytest.raises(SettingsError, match="takes samples that have all their tokens") as caught:
        load_run_settings(path)
    assert "content" in caught.value.fix


def test_a_file_that_changes_after_it_was_read_is_refused(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    (tmp_path / "words.json").write_bytes(vocabulary(280))
    with pytest.raises(SettingsError, match="has changed since the settings were read"):
        build(settings, 0)


def test_a_digest_alone_is_no_vocabulary(tmp_path: Path) -> None:
    settings = loaded(tmp_path).model_copy(update={"vocabularies": {}})
    with pytest.raises(SettingsError, match="digest of an unknown file"):
        build(settings, 0)


# Making one -------------------------------------------------------------------------------------------------------


def test_the_command_makes_a_vocabulary_that_a_run_can_name(tmp_path: Path) -> None:
    texts, output = tmp_path / "texts.txt", tmp_path / "words.json"
    texts.write_text(CORPUS, encoding="utf-8")
    done = CliRunner().invoke(app, ["vocabulary", str(texts), "--size", "300", "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == vocabulary(), "the same texts, the same vocabulary"


def test_a_vocabulary_has_no_more_tokens_than_wanted(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(CORPUS, encoding="utf-8")
    assert vocabulary(260) == make_vocabulary([texts], 260)
    assert vocabulary(260) != vocabulary()


@pytest.mark.parametrize(
    ("content", "size", "problem"),
    [
        (b"a text", 256, "--size 256 is out of range"),
        (b"a text", 1 << 20, "--size 1048576 is out of range"),
        (b"\n \n", 300, "no text in"),
        (b"\xff", 300, "is not UTF-8 at byte 0"),
        (None, 300, "cannot be read"),
    ],
)
def test_texts_that_make_no_vocabulary_are_refused(
    tmp_path: Path, content: bytes | None, size: int, problem: str
) -> None:
    texts = tmp_path / "texts.txt"
    if content is not None:
        texts.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        make_vocabulary([texts], size)
    assert problem in caught.value.problem
    assert caught.value.fix
