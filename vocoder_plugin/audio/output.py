"""Where samples go while more are being made: growing files, pipes, loudspeakers.

Each has ``write(samples)`` for float32 mono samples [n].
"""

from __future__ import annotations

import os
import threading
import wave
from collections import deque
from typing import Any, BinaryIO

import numpy as np

from ..errors import AudioError
from .samples import pcm16, write_blocks


class GrowingFile:
    """A sound file that can be played while it grows, and after a writer that was interrupted.

    The file begins with the first samples. A WAV file's header is right after every ``write``; FLAC
    and OGG files are complete when closed. A context manager.

    Parameters
    ----------
    format : str
        As ``audio_format`` names it.

    Attributes
    ----------
    n_samples : int
        Written so far.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, *, format: str) -> None:
        self._path, self._sample_rate, self._format = str(path), sample_rate, format
        self._sound: Any = None
        self._raw: BinaryIO | None = None
        self.n_samples = 0

    def write(self, samples: np.ndarray) -> None:
        """Append float32 mono samples [n]."""
        if self._sound is None:
            self._open()
        if self._raw:
            self._sound.writeframes(pcm16(samples).tobytes())  # brings the header up to date
            self._raw.flush()
        else:
            write_blocks(self._sound, samples)
        self.n_samples += samples.size

    def _open(self) -> None:
        if self._format == "WAV":
            self._raw = open(self._path, "wb")  # noqa: SIM115
            self._sound = wave.open(self._raw, "wb")  # noqa: SIM115
            self._sound.setparams((1, 2, self._sample_rate, 0, "NONE", "not compressed"))
        else:
            import soundfile

            self._sound = soundfile.SoundFile(self._path, "w", self._sample_rate, channels=1, format=self._format)

    def close(self) -> None:
        """Complete the file. May be called more than once."""
        try:
            if self._sound is not None:
                self._sound.close()
        finally:
            if self._raw is not None:
                self._raw.close()

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Player:
    """Plays samples on the default output device, through sounddevice. A context manager.

    ``write`` never waits: the device takes what is there, and silence where generation is late.
    Leaving the block normally waits until everything has been heard; an exception stops at once.

    Raises
    ------
    AudioError
        Without sounddevice, PortAudio or an output device.
    """

    def __init__(self, sample_rate: int) -> None:
        try:
            import sounddevice
        except ImportError:
            raise AudioError("playing needs sounddevice; pip install 'vocoder-plugin[play]'") from None
        except OSError as error:
            raise AudioError(f"sounddevice cannot be used: {error}") from None
        self._waiting: deque[np.ndarray] = deque()
        self._lock = threading.Lock()
        self._heard = threading.Event()
        self._ending = False
        self._stop = sounddevice.CallbackStop
        try:
            self._stream = sounddevice.OutputStream(
                sample_rate, channels=1, dtype="float32", callback=self._fill, finished_callback=self._heard.set
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise AudioError(f"there is no device to play on: {error}") from None

    def write(self, samples: np.ndarray) -> None:
        """Queue float32 mono samples [n]."""
        with self._lock:
            self._waiting.append(np.clip(samples, -1.0, 1.0))

    def _fill(self, out: np.ndarray, frames: int, _time: object, _status: object) -> None:
        """Called by PortAudio, on its own thread, for the next ``frames`` samples [frames, 1]."""
        filled = 0
        with self._lock:
            while filled < frames and self._waiting:
                samples = self._waiting.popleft()
                taken, left = samples[: frames - filled], samples[frames - filled :]
                out[filled : filled + taken.size, 0] = taken
                filled += taken.size
                if left.size:
                    self._waiting.appendleft(left)
        out[filled:] = 0
        if self._ending and filled == 0:
            raise self._stop

    def drain(self) -> None:
        """Wait until everything has been heard."""
        self._ending = True
        while not self._heard.wait(1) and self._stream.active:  # a device that went away calls nobody
            pass

    def close(self) -> None:
        """Stop at once and give the device back."""
        self._stream.close()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()


class RawPipe:
    """Headerless little-endian 16-bit mono samples into a binary file, each ``write`` flushed.

    Raises BrokenPipeError when the reader has gone.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, samples: np.ndarray) -> None:
        """Write float32 mono samples [n]."""
        self._file.write(pcm16(samples).tobytes())
        self._file.flush()
