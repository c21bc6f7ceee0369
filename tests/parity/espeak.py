"""Speech with known word times, by libespeak-ng, which reports where in its output each word begins."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

SYNCHRONOUS = 2
WORD_EVENT = 1
UTF8 = 1


class Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


class Espeak:
    """``say`` gives samples, their rate, and the start of each white-space separated word in seconds."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise OSError("libespeak-ng is not installed; on Debian: apt-get install libespeak-ng1")
        self._library = ctypes.CDLL(name)
        self.rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, None, 0)
        self._samples: list[np.ndarray] = []
        self._events: list[tuple[int, int]] = []
        self._callback = CALLBACK(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples, count, events) -> int:
        if samples and count:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == WORD_EVENT:
                self._events.append((events[i].text_position, events[i].audio_position))
            i += 1
        return 0

    def say(self, text: str, voice: str = "en-us") -> tuple[np.ndarray, int, list[float]]:
        self._samples, self._events = [], []
        self._library.espeak_SetVoiceByName(voice.encode())
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, UTF8, None, None)
        starts: dict[int, float] = {}
        for position, milliseconds in self._events:
            starts.setdefault(len(text[:position].split()) - 1, milliseconds / 1000)
        words = text.split()
        if not set(range(len(words))) <= set(starts):
            raise ValueError(f"espeak-ng reports {self._events} for {text!r}")
        samples = np.concatenate(self._samples).astype(np.float32) / 32768
        return samples, self.rate, [starts[i] for i in range(len(words))]
