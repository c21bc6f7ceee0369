"""Where samples go while more are being made: growing files, pipes, loudspeakers.

Each has ``write(samples)`` for float32 mono samples [n].
"""

from __future__ import annotations

import os
import struct
import threading
from collections import deque
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import AudioError
from .samples import SoundSink, pcm16, write_all

WAV_HEADER = 44  # bytes


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

    Raises
    ------
    AudioError
        Where the file cannot be written to, such as on a full disk; what was written stays.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, *, format: str) -> None:
        self._path, self._sample_rate, self._format = Path(path), sample_rate, format
        self._file: BinaryIO | None = None
        self._sound: SoundSink | None = None  # of a format with an encoder
        self._failure: AudioError | None = None  # after which nothing more is written
        self.n_samples = 0

    def write(self, samples: np.ndarray) -> None:
        """Append float32 mono samples [n]."""
        if self._failure:
            raise self._failure
        try:
            file = self._file = self._file or open(self._path, "wb", buffering=0)  # noqa: SIM115
            if self._format == "WAV":
                self._append(file, pcm16(samples).tobytes())
            else:
                self._sound = self._sound or SoundSink(file, self._sample_rate, format=self._format)
                self._sound.write(samples)
                self.n_samples += samples.size
        except OSError as error:
            raise self._failed(error) from None

    def _append(self, file: BinaryIO, data: bytes) -> None:
        """Samples at the end, then a header that counts them: those that are there, if the disk is full."""
        try:
            if not file.tell():
                write_all(file, bytes(WAV_HEADER))
            write_all(file, data)
        finally:
            self.n_samples = max(0, file.tell() - WAV_HEADER) // 2
            if self.n_samples or not data:
                file.truncate(WAV_HEADER + 2 * self.n_samples)
                file.seek(0)
                write_all(file, _wav_header(2 * self.n_samples, self._sample_rate))
                file.seek(0, os.SEEK_END)

    def _failed(self, error: OSError) -> AudioError:
        self._failure = AudioError(f"cannot be written: {error.strerror}", path=self._path)
        self.close()
        if not self.n_samples and self._path.is_file():
            self._path.unlink()  # nothing can be heard of it
        return self._failure

    def close(self) -> None:
        """Complete the file. May be called more than once."""
        sound, file, self._sound, self._file = self._sound, self._file, None, None
        try:
            if sound is not None:
                sound.close()
        except OSError as error:
            if not self._failure:
                raise self._failed(error) from None
        finally:
            if file is not None:
                file.close()

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _wav_header(size: int, sample_rate: int) -> bytes:
    """Of 16-bit mono samples of so many bytes; players read on where the number is as large as it gets."""
    size = min(size, 0xFFFFFFFF - WAV_HEADER)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + WAV_HEADER - 8, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate,
        2, 16, b"data", size,
    )  # fmt: skip


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

    Raises BrokenPipeError when the reader has gone, and AudioError where the file cannot be written to otherwise.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, samples: np.ndarray) -> None:
        """Write float32 mono samples [n]."""
        try:
            self._file.write(pcm16(samples).tobytes())
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AudioError(f"the samples cannot be written: {error.strerror}") from None
