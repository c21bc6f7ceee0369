"""Audio files and arrays: reading, mixing down, resampling, writing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soxr

from ..errors import AudioError

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
RATES = (1000, 1_000_000)  # Hz that are resampled
QUALITY = "HQ"  # of soxr
BLOCK = 1 << 16  # samples written at a time: libvorbis keeps what one call brings on the stack, and overflows it


def as_mono(audio: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Float32 [n] of float or integer audio [n] or [n, channels]; integers are scaled to [-1, 1].

    Raises AudioError for other types or shapes and for values that are not finite; it counts samples
    from ``first``, of a piece that begins there.
    """
    audio = np.asarray(audio)
    if audio.dtype.kind == "i":
        audio = audio.astype(np.float32) / -float(np.iinfo(audio.dtype).min)
    elif audio.dtype.kind != "f":
        raise AudioError(f"audio is of type {audio.dtype}, expected float or signed integer samples")
    if audio.ndim == 2 and audio.shape[1]:
        audio = audio.mean(axis=1)
    if audio.ndim != 1:
        raise AudioError(f"audio has shape {audio.shape}, expected (n_samples,) or (n_samples, channels)")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such
        audio = np.ascontiguousarray(audio, np.float32)
    if not np.isfinite(audio).all():
        raise AudioError(f"sample {first + np.flatnonzero(~np.isfinite(audio))[0]} of the audio is not a finite number")
    return audio


def _check_rate(rate: float) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"the sample rate is {rate!r}, expected {RATES[0]} to {RATES[1]} Hz")


def resample(samples: np.ndarray, source_rate: float, target_rate: float) -> np.ndarray:
    """Mono float32 samples from one rate in Hz to another (soxr, high quality).

    n samples become n * target_rate / source_rate, rounded, halves up.
    """
    _check_rate(source_rate)
    if source_rate == target_rate or samples.size == 0:
        return samples
    return soxr.resample(samples, source_rate, target_rate, quality=QUALITY)


class Resampler:
    """``resample`` of samples that come piece by piece: all parts together are bit for bit the same.

    Samples lag by the filter's reach and by blocks that soxr fills: at most 40 ms from 16 kHz to 24,
    75 ms from 8 kHz.
    """

    def __init__(self, source_rate: float, target_rate: float) -> None:
        _check_rate(source_rate)
        self._stream = (
            soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality=QUALITY)
            if source_rate != target_rate
            else None
        )

    def push(self, samples: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Mono float32 samples -> those that are ready; with ``last`` the rest, and only ``reset`` may follow."""
        return samples if self._stream is None else self._stream.resample_chunk(samples, last=last)

    def reset(self) -> None:
        """Forget everything pushed so far."""
        if self._stream is not None:
            self._stream.clear()


def read_audio(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Any file soundfile reads (``-`` for standard input) -> float32 [n] or [n, channels], rate in Hz."""
    with open_audio(path) as sound, _told(path):
        return sound.read(dtype="float32"), sound.samplerate


@contextlib.contextmanager
def open_audio(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Any file soundfile reads (``-`` for standard input), as an open ``SoundFile``."""
    import soundfile

    source: str | BinaryIO = str(path)
    if source == "-":
        import io

        source = io.BytesIO(standard_input())
    elif not Path(path).exists():
        raise AudioError(f"{path}: there is no such file")
    with _told(path):
        sound = soundfile.SoundFile(source)
    with sound:
        yield sound


def standard_input() -> bytes:
    """All of it; AudioError where it is closed."""
    if sys.stdin is None:
        raise AudioError("standard input is closed")
    return sys.stdin.buffer.read()


def audio_blocks(sound: Any, seconds: float, *, path: str) -> Iterator[np.ndarray]:
    """An open ``SoundFile``'s samples in blocks, float32 [n] or [n, channels]; errors name ``path``."""
    while True:
        with _told(path):
            block = sound.read(max(1, round(seconds * sound.samplerate)), dtype="float32")
        if not len(block):
            return
        yield block


@contextlib.contextmanager
def _told(path: object) -> Iterator[None]:
    """soundfile's errors become AudioError."""
    import soundfile

    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: {getattr(error, 'error_string', error)}") from None


def audio_format(path: str | os.PathLike[str]) -> str:
    """soundfile's name for the format that the path's suffix asks for; WAV for ``-``."""
    suffix = ".wav" if str(path) == "-" else Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise AudioError(f"{path}: cannot write {suffix or 'a file without suffix'}; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Float samples [n] -> little-endian int16 [n], full scale at ±1; what is beyond is clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")


def write_audio(
    target: str | os.PathLike[str] | BinaryIO, samples: np.ndarray, sample_rate: int, *, format: str
) -> None:
    """Write float32 mono samples: 16-bit PCM in WAV and FLAC, Vorbis in OGG. Samples beyond ±1 are clipped."""
    import soundfile

    file = target if hasattr(target, "write") else str(target)
    with soundfile.SoundFile(file, "w", sample_rate, channels=1, format=format) as sound:
        write_blocks(sound, samples)


def write_blocks(sound: Any, samples: np.ndarray) -> None:
    """Append float32 mono samples to an open ``SoundFile``, block by block."""
    for start in range(0, len(samples), BLOCK):
        block = samples[start : start + BLOCK]
        sound.write(pcm16(block) if sound.subtype == "PCM_16" else np.clip(block, -1.0, 1.0))
