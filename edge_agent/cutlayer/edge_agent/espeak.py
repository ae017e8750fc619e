"""eSpeak NG through ctypes: text to a waveform (PyPI `espeakng-loader`, GPL-3; loaded, not bundled).

The calls are those of `espeak-ng/speak_lib.h`. The library keeps its state in globals, so a process has one
`Espeak` and one lock. One thing in that state cannot be set: the phase of the pitch flutter runs on from word to
word (wavegen.c, `Flutter_ix`), hence a word depends on those before it. The same words in the same order give
the same samples in every process.

Axes: T waveform samples.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError

__all__ = ["NATIVE_RATE_HZ", "Espeak"]

NATIVE_RATE_HZ = 22_050

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000  # without it the library ends the process when it misses a file
_RATE, _PITCH = 1, 3
_CHARS_UTF8 = 1
_NORMAL_PITCH = 50

_CREATION = threading.Lock()

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The process's synthesizer. Use `Espeak.shared()`: a second one would share the first one's globals.

    Raises:
        SettingsError: When the package is missing or does not work here.
    """

    def __init__(self) -> None:
        library_path, data_path = _locate()
        try:
            self._library = _declared(ctypes.CDLL(library_path))
        except (OSError, AttributeError) as error:
            raise _broken(f"its library cannot be loaded ({error})") from error
        rate_hz = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), _INITIALIZE_DONT_EXIT
        )
        if rate_hz != NATIVE_RATE_HZ:
            raise _broken(f"espeak_Initialize gives {rate_hz} with the voices in {data_path}")
        self._lock = threading.Lock()
        self._heard: list[bytes] = []
        # The library keeps the bare pointer: this attribute keeps the function behind it alive.
        self._callback = _SynthCallback(self._hear)
        self._library.espeak_SetSynthCallback(self._callback)

    @staticmethod
    def shared() -> Espeak:
        """Return the process's synthesizer; it is never closed, since the library's globals live as long.

        Raises:
            SettingsError: When the package is missing or does not work here.
        """
        with _CREATION:
            return _shared()

    def say(self, voice: str, rate: int, text: str) -> NDArray[np.int16]:
        """Synthesize speech.

        Args:
            voice: Language and variant, as `en-us+f2`.
            rate: Words a minute, 80 to 450.
            text: What to say.

        Returns:
            Mono int16 (T) at `NATIVE_RATE_HZ`, with short silences around it.

        Raises:
            SettingsError: When there is no such voice, or the library fails or says nothing.
        """
        encoded = text.encode()
        library = self._library
        with self._lock:
            self._heard.clear()
            if status := library.espeak_SetVoiceByName(voice.encode()):
                raise _broken(f"it has no voice {voice!r} (status {status})")
            library.espeak_SetParameter(_RATE, rate, 0)
            library.espeak_SetParameter(_PITCH, _NORMAL_PITCH, 0)
            library.espeak_ng_SetRandSeed(0)  # breath is noise
            status = library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
            status = status or library.espeak_Synchronize()
            if status or not self._heard:
                raise _broken(f"it does not say {text!r} as {voice!r} (status {status})")
            return np.frombuffer(b"".join(self._heard), dtype=np.int16)

    def _hear(self, samples: int | None, num_samples: int, _events: int | None) -> int:
        if samples and num_samples > 0:
            self._heard.append(ctypes.string_at(samples, 2 * num_samples))
        return 0  # go on


@functools.cache
def _shared() -> Espeak:
    return Espeak()


def _locate() -> tuple[str, str]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise SettingsError(
            "speech needs the package espeakng-loader, which is not installed",
            'pip install "cutlayer[digits]"',
        ) from error
    try:
        return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    except RuntimeError as error:
        raise _broken(str(error)) from error


def _declared(library: ctypes.CDLL) -> Any:
    """Declare the functions used, so that ctypes checks and converts their arguments."""
    text, whole, unsigned = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint
    library.espeak_Initialize.argtypes = [whole, whole, text, whole]
    library.espeak_SetSynthCallback.argtypes = [_SynthCallback]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = [text]
    library.espeak_SetParameter.argtypes = [whole, whole, whole]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_Synth.argtypes = [
        *(text, ctypes.c_size_t, unsigned, whole, unsigned, unsigned),
        *(ctypes.POINTER(unsigned), ctypes.c_void_p),
    ]
    library.espeak_Synchronize.argtypes = []
    return library


def _broken(what: str) -> SettingsError:
    return SettingsError(
        f"the speech synthesizer eSpeak NG does not work here: {what}",
        'pip install --force-reinstall "cutlayer[digits]", on a system that espeakng-loader has a wheel for',
    )
