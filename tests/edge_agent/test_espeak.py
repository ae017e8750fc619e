"""The speech synthesizer: it speaks, says the same in every process, and fails with a remedy."""

from __future__ import annotations

import ctypes.util
import gc
import subprocess
import sys
import threading
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.espeak import NATIVE_RATE_HZ, Espeak


def test_a_word_is_audible_and_lasts_a_fraction_of_a_second() -> None:
    waveform_T = Espeak.shared().say("en-us+f2", 175, "seven")
    assert waveform_T.dtype == np.int16
    assert 0.2 < waveform_T.size / NATIVE_RATE_HZ < 1.0
    assert np.abs(waveform_T.astype(int)).max() > 3_000


def test_faster_speech_is_shorter() -> None:
    slow, fast = (Espeak.shared().say("en-us+f2", rate, "seven").size for rate in (120, 240))
    assert fast < slow


def test_a_process_has_one_synthesizer() -> None:
    assert Espeak.shared() is Espeak.shared()


def test_it_survives_garbage_collection_between_words() -> None:
    for _ in range(3):
        gc.collect()
        assert Espeak.shared().say("en-us+m1", 175, "one").size


def test_threads_take_turns() -> None:
    sizes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: sizes.extend(Espeak.shared().say("en-us+m1", 175, "two").size for _ in range(20))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Flutter moves the end of a word by some samples; two words run into one another would double it.
    assert len(sizes) == 80
    assert max(sizes) < 1.05 * min(sizes)


def test_an_unknown_voice_is_refused() -> None:
    with pytest.raises(SettingsError, match="no voice 'elvish'"):
        Espeak.shared().say("elvish", 175, "one")


def test_a_missing_package_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(SettingsError, match="espeakng-loader, which is not installed") as caught:
        Espeak()
    assert caught.value.fix == 'pip install "cutlayer[digits]"'


def test_a_library_that_cannot_be_loaded_is_an_error_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: str(broken))
    with pytest.raises(SettingsError, match="its library cannot be loaded"):
        Espeak()


def test_missing_voices_are_an_error_and_do_not_end_the_process(tmp_path: Path) -> None:
    # In a process of its own, since a failed initialization stays in the library's globals.
    program = f"""
import espeakng_loader
from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.espeak import Espeak
espeakng_loader.get_data_path = lambda: {str(tmp_path)!r}
try:
    Espeak()
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "espeak_Initialize gives" in done.stdout
    assert "fix: pip install" in done.stdout


def test_a_library_without_its_functions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = ctypes.util.find_library("c")
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: libc)
    with pytest.raises(SettingsError, match="its library cannot be loaded"):
        Espeak()
