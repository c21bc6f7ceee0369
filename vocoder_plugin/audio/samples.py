"""Audio files and arrays: reading, mixing down, resampling, writing."""

from __future__ import annotations

import contextlib
import io
import numbers
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soxr

from ..errors import AudioError, AudioKindError, refusal
from ..files import complete_file, regular_file

if TYPE_CHECKING:
    from soundfile import SoundFile

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
RATES = (1000, 1_000_000)  # Hz that are resampled
QUALITY = "HQ"  # of soxr
MOST_CHANNELS = 64  # beyond that, channels and samples were most likely exchanged
# what libsndfile does not read: place and bytes that tell it, its name
FOREIGN = (
    (4, b"ftyp", "MPEG-4 (m4a, mp4)"), (0, b"\x30\x26\xb2\x75", "Windows Media (wma)"), (0, b"#!AMR", "AMR"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
)  # fmt: skip
BLOCK = 1 << 16  # samples written at a time: libvorbis keeps what one call brings on the stack, and overflows it


def as_mono(audio: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Float32 [n] of float or integer audio [n] or [n, channels]; integers are scaled to [-1, 1].

    Raises AudioError for other types or shapes and for values that are not finite; it counts samples
    from ``first``, of a piece that begins there.
    """
    try:
        audio = np.asarray(audio)
    except ValueError:
        raise AudioKindError("audio is a list of parts of different sizes, expected an array") from None
    if audio.dtype.kind == "i":
        audio = audio.astype(np.float32) / -float(np.iinfo(audio.dtype).min)
    elif audio.dtype.kind != "f":
        raise AudioKindError(f"audio is of type {audio.dtype}, expected float or signed integer samples")
    shape = f"audio has shape {audio.shape}, expected (n_samples,) or (n_samples, channels)"
    if audio.ndim == 2 and max(audio.shape[0], MOST_CHANNELS) < audio.shape[1]:
        raise AudioError(f"{shape}; if channels come first here, transpose it (audio.T)")
    if audio.ndim == 2 and audio.shape[1]:
        audio = audio.mean(axis=1)
    if audio.ndim != 1:
        raise AudioError(shape)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such
        audio = np.ascontiguousarray(audio, np.float32)
    if not np.isfinite(audio).all():
        raise AudioError(f"sample {first + np.flatnonzero(~np.isfinite(audio))[0]} of the audio is not a finite number")
    return audio


def _check_rate(rate: float) -> None:
    if not isinstance(rate, numbers.Real):
        raise AudioKindError(refusal("the sample rate", repr(rate), "a number of Hz"))
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
    with open_audio(path) as sound:
        blocks = list(audio_blocks(sound, 10, path=path))  # what is there: a header may promise any number
        shape = (0,) if sound.channels == 1 else (0, sound.channels)
        return np.concatenate([np.empty(shape, np.float32), *blocks]), sound.samplerate


@contextlib.contextmanager
def open_audio(path: str | os.PathLike[str]) -> Iterator[SoundFile]:
    """Any file soundfile reads (``-`` for standard input), as an open ``SoundFile``."""
    import soundfile

    source: BinaryIO | str | bytes
    if path == "-":
        source = io.BytesIO(standard_input())
        head = source.getvalue()[:16]
    else:
        source = str(path) if os.name == "nt" else os.fsencode(path)  # names need not be text
        head = _head(path)
    if not head:
        raise AudioError("it is empty (0 bytes), expected a sound file", path=path)
    with _told(path, head):
        sound = soundfile.SoundFile(source)
    with sound:
        yield sound


def _head(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a regular file."""
    try:
        regular_file(path)
        with open(path, "rb") as file:
            return file.read(16)
    except FileNotFoundError:
        raise AudioError("there is no such file", path=path) from None
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}", path=path) from None


def standard_input() -> bytes:
    """All of it; AudioError where it is closed."""
    if sys.stdin is None:
        raise AudioError("standard input is closed")
    return sys.stdin.buffer.read()


def audio_blocks(sound: SoundFile, seconds: float, *, path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """An open ``SoundFile``'s samples in blocks, float32 [n] or [n, channels]; errors name ``path``."""
    while True:
        with _told(path):
            block = sound.read(max(1, round(seconds * sound.samplerate)), dtype="float32")
        if not len(block):
            return
        yield block


@contextlib.contextmanager
def _told(path: str | os.PathLike[str], head: bytes = b"") -> Iterator[None]:
    """soundfile's errors become AudioError; ``head`` is the beginning of a file that is being opened."""
    import soundfile

    try:
        yield
    except TypeError:  # soundfile takes the suffix .raw for samples without a header
        raise AudioError("raw samples do not say their rate and kind; convert them to WAV", path=path) from None
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        if head and reason == "Format not recognised":
            foreign = (name for place, magic, name in FOREIGN if head.startswith(magic, place))
            reason = f"{next(foreign, 'its format')} is not among those that are read, such as WAV, FLAC, OGG and MP3"
            reason += f"; convert it: ffmpeg -i {Path(path).name} {Path(path).stem or 'sound'}.wav"
        raise AudioError(reason, path=path) from None


def audio_format(path: str | os.PathLike[str]) -> str:
    """soundfile's name for the format that the path's suffix asks for; WAV for ``-``."""
    suffix = ".wav" if str(path) == "-" else Path(path).suffix.lower()
    if suffix not in FORMATS:
        what = suffix or "a file without suffix"
        raise AudioError(f"cannot write {what}; use one of {', '.join(FORMATS)}", path=path)
    return FORMATS[suffix]


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Float samples [n] -> little-endian int16 [n], full scale at ±1; what is beyond is clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")


def write_audio(
    target: str | os.PathLike[str] | BinaryIO, samples: np.ndarray, sample_rate: int, *, format: str
) -> None:
    """Write float32 mono samples: 16-bit PCM in WAV and FLAC, Vorbis in OGG. Samples beyond ±1 are clipped.

    A file by name appears when it is complete. Raises AudioError where the samples cannot be written.
    """
    path = target if isinstance(target, (str, os.PathLike)) else None
    opened = contextlib.nullcontext(target) if not isinstance(target, (str, os.PathLike)) else complete_file(target)
    try:
        with opened as file, SoundSink(file, sample_rate, format=format) as sound:
            sound.write(samples)
    except OSError as error:
        raise AudioError(f"cannot be written: {error.strerror or error}", path=path) from None


class SoundSink:
    """Encodes float32 mono samples into an open binary file, which it leaves open. A context manager.

    Raises the OSError of a file that cannot be written to.
    """

    def __init__(self, file: BinaryIO, sample_rate: int, *, format: str) -> None:
        import soundfile

        self._target = _Target(file)
        try:
            self._sound = soundfile.SoundFile(self._target, "w", sample_rate, channels=1, format=format)
        except RuntimeError as error:
            raise self._target.reason(error) from None

    def write(self, samples: np.ndarray) -> None:
        """Append samples [n]."""
        with self._target.told():
            for start in range(0, len(samples), BLOCK):
                block = samples[start : start + BLOCK]
                self._sound.write(pcm16(block) if self._sound.subtype == "PCM_16" else np.clip(block, -1.0, 1.0))

    def close(self) -> None:
        """Complete what is in the file."""
        with self._target.told():
            self._sound.close()

    def __enter__(self) -> SoundSink:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Target:
    """The file as libsndfile sees it: it forgets why a write failed, or does not even say that one did."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        start = self.tell()
        try:
            write_all(self._file, data)
        except OSError as error:  # raised in a callback of C, it would be printed and lost
            self._error = error
            self._file.truncate(start)  # half a frame would make FLAC unreadable
            self.seek(start)
            return 0
        return len(data)

    def reason(self, error: Exception) -> Exception:
        """The file's own error, where it had one, for soundfile's."""
        return self._error or AudioError(f"libsndfile cannot write this: {error}")

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Raises what writing within the block, or before it, brought."""
        try:
            yield
        except (AssertionError, RuntimeError) as error:  # AssertionError where fewer samples were written
            raise self.reason(error) from None
        if self._error is not None:
            raise self._error


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of it: a file without a buffer may take a part only."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
