"""Readers of each task's files, on files as the packages have them, made here."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
from benchmarks.tasks.division import draws
from benchmarks.tasks.easy_vqa import read_split
from benchmarks.tasks.emoji import caption, read_pairs, unseen_drawings
from benchmarks.tasks.fetch import extract
from benchmarks.tasks.motions import NUM_STEPS, windows
from benchmarks.tasks.prompts import kind_and_text, read_clip, sound_folder
from benchmarks.tasks.vitals import fourths
from benchmarks.tasks.vocabularies import vocabulary_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.vocabulary import Vocabulary


def questions(folder: Path) -> Path:
    """Three questions about two pictures, white and black."""
    (folder / "images").mkdir()
    for number, grey in ((4, 255), (7, 0)):
        Image.new("RGB", (64, 64), (grey, grey, grey)).save(folder / "images" / f"{number}.png")
    rows = [["what shape?", "circle", 4], ["is it red?", "yes", 7], ["is it blue?", "no", 4]]
    (folder / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_a_question_goes_with_its_picture_and_its_answer(tmp_path: Path) -> None:
    classes = ("circle", "no", "yes")
    batch = read_split(questions(tmp_path), classes, 3, draws(0, "train"))
    found = {
        str(question): (int(image_HWC.max()), classes[label])
        for question, image_HWC, label in zip(
            batch.inputs["question"], batch.inputs["image"], batch.targets, strict=True
        )
    }
    assert found == {"what shape?": (255, "circle"), "is it red?": (0, "yes"), "is it blue?": (255, "no")}
    assert batch.inputs["image"].shape == (3, 32, 32, 3)


def test_an_answer_that_the_run_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'circle'"):
        read_split(questions(tmp_path), ("no", "yes"), 3, draws(0, "train"))


def fetched(folder: Path) -> Path:
    """Two emoji that both vendors have drawn, one that one has, and a skin tone."""
    entries = [
        {"hexcode": "2764", "label": "red heart", "tags": ["love", "heart"], "group": 0},
        {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit"], "group": 4},
        {"hexcode": "1F34F", "label": "green apple", "group": 4},
        {"hexcode": "1F3FB", "label": "light skin tone", "group": 2},
    ]
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    drawn = {"google": ("2764-fe0f", "1f34e", "1f34f", "1f3fb"), "twitter": ("2764", "1f34e", "1f3fb")}
    for vendor, codes in drawn.items():
        (folder / vendor).mkdir()
        for code in codes:
            Image.new("RGB", (64, 64), (255 * (vendor == "google"), 0, 0)).save(folder / vendor / f"{code}.png")
    return folder


def test_pairs_are_what_both_vendors_have_drawn_with_its_caption(tmp_path: Path) -> None:
    batch, names, groups_B = read_pairs(fetched(tmp_path))
    assert list(batch.inputs["caption"]) == ["red apple fruit"] * 2 + ["red heart love"] * 2
    assert names == ["1f34e"] * 2 + ["2764"] * 2
    assert groups_B.tolist() == [4, 4, 0, 0]
    assert [int(image_HWC[0, 0, 0]) for image_HWC in batch.inputs["image"]] == [255, 0, 255, 0]


def test_of_a_tested_emoji_the_other_vendor_s_drawing_is_trained_on() -> None:
    names = [f"{number:05}" for number in range(500) for _ in range(2)]
    is_test_B = unseen_drawings(names, 7)
    tested = [name for name, is_test in zip(names, is_test_B, strict=True) if is_test]
    assert len(tested) == len(set(tested)) == 150
    assert 50 < int(is_test_B[::2].sum()) < 100  # of either vendor about as many
    assert not np.array_equal(is_test_B, unseen_drawings(names, 8))


def test_emoji_that_were_not_fetched_say_what_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="make bench-data"):
        read_pairs(tmp_path)


def test_a_caption_has_each_word_once() -> None:
    assert caption({"label": "keycap: 1", "tags": ["Keycap", "one"]}) == "keycap 1 one"
    assert caption({"label": "regional indicator A"}) == "regional indicator a"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("digits/3", ("number", "3")),
        ("digits/h-3", ("ordinal", "3")),
        ("digits/day-3", ("weekday", "3")),
        ("digits/mon-11", ("month", "11")),
        ("letters/q", ("letter", "q")),
        ("phonetic/q_p", ("spelling word", "q")),
        ("vm-INBOX", ("voice mail", "inbox")),
        ("conf-invalid", ("conference", "invalid")),
        ("confbridge-inc-talk-vol-in", ("conference", "inc talk vol in")),
        ("dictate/play_help", ("other service", "play help")),
        ("privacy-thankyou", ("other service", "thankyou")),
        ("letters/ascii36", None),
        ("silence/1", None),
        ("beep", None),
    ],
)
def test_the_kind_is_taken_out_of_a_clip_s_key(key: str, expected: tuple[str, str] | None) -> None:
    assert kind_and_text(key) == expected


def write_clip(path: Path, values_T: list[int], *, rate_hz: int = 8_000) -> Path:
    """A WAV file of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.array(values_T, "<i2").tobytes())
    return path


def test_a_clip_is_cut_or_ends_in_silence(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", [16_384, -32_768, 8_192])
    assert read_clip(path, 5).tolist() == [0.5, -1.0, 0.25, 0.0, 0.0]
    assert read_clip(path, 2).tolist() == [0.5, -1.0]


def test_a_clip_at_another_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="8 kHz"):
        read_clip(write_clip(tmp_path / "clip.wav", [0], rate_hz=16_000), 5)


def test_a_language_s_sounds_are_found_under_its_speaker_s_name_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/asterisk/sounds/it_IT_m_Carlo"
    folder.mkdir(parents=True)
    assert sound_folder("it", (tmp_path,)) == folder
    with pytest.raises(SettingsError, match=r"asterisk-core-sounds-ru-wav.*\n?.*make bench-data"):
        sound_folder("ru", (tmp_path,))


@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=5))
def test_windows_are_consecutive_parts_of_their_own_recording(lengths: list[int]) -> None:
    recordings_TC = [1_000 * number + np.arange(length)[:, None] + np.zeros(6) for number, length in enumerate(lengths)]
    batch = windows(recordings_TC, np.arange(len(lengths)))
    assert len(batch.targets) == sum(length // NUM_STEPS for length in lengths)
    for acceleration_TC, gyroscope_TC, label in zip(
        batch.inputs["acceleration"], batch.inputs["gyroscope"], batch.targets, strict=True
    ):
        first = acceleration_TC[0, 0]
        assert first // 1_000 == label
        assert (first - 1_000 * label) % NUM_STEPS == 0
        assert np.array_equal(acceleration_TC[:, 0], first + np.arange(NUM_STEPS))
        assert np.array_equal(acceleration_TC, gyroscope_TC)


def test_fourths_are_equally_large_and_ordered() -> None:
    values_B = np.random.default_rng(0).permutation(400).astype(np.float32)
    kinds_B = fourths(values_B)
    assert np.bincount(kinds_B).tolist() == [100] * 4
    assert values_B[kinds_B == 0].max() < values_B[kinds_B == 3].min()


def test_a_vocabulary_does_not_depend_on_the_order_of_its_texts_and_cuts_any() -> None:
    texts = ["is there a circle?", "is there a triangle?", "what is there?"]
    made = vocabulary_of(texts, 280)
    assert made == vocabulary_of(texts[::-1], 280)
    vocabulary = Vocabulary(made.encode())
    assert len(vocabulary.ids("is there a circle?", 99)) < len("is there a circle?") / 2
    assert vocabulary.ids("Ünknown", 99)


def test_files_are_taken_out_of_an_archive_by_their_paths(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name in ("package/img/google/64/1f34e.png", "package/img/google/64/read.me", "package/img/other/64/x.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    assert extract(tmp_path / "package.tgz", "package/img/google/64/", ".png", tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1f34e.png"]
