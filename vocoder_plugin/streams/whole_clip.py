"""Streams over codecs that see a whole clip: windows for the decoder, exact chunks for the encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..audio.samples import Resampler
from .pushing import TakesCodes, TakesSamples, advancing

if TYPE_CHECKING:
    from ..clip_codec import ClipCodec

# Chosen by measurement (docs/wavtokenizer.md): what follows a frame and what is decoded again before it, in seconds.
LOOKAHEAD_SECONDS = 0.1
CONTEXT_SECONDS = 2.0
FADE_FRAMES = 1  # over which one window's samples give way to the next one's


class WindowedDecoderStream(TakesCodes):
    """Codes in, samples out, each push decoded with frames before and after it as a clip of its own.

    The decoder's group norms and attention see the whole clip, so the samples differ from offline
    ones, the less the longer the window (docs/wavtokenizer.md has the measurements). A stream whose
    frames all arrive in one ``finish`` gives the offline samples. From one window to the next there is a
    short cross-fade, since they differ where they meet.

    A context manager. One thread at a time may use a stream (StreamError otherwise).

    Attributes
    ----------
    lookahead_frames : int
        Frames by which the samples lag.
    context_frames : int
        Frames before the new ones that are decoded with them.
    exact : bool
        False.
    """

    exact = False
    _codec: ClipCodec

    def __init__(
        self, codec: ClipCodec, *, lookahead_frames: int | None = None, context_frames: int | None = None
    ) -> None:
        self._codec = codec
        self.lookahead_frames = _frames(codec, "lookahead_frames", lookahead_frames, LOOKAHEAD_SECONDS)
        self.context_frames = _frames(codec, "context_frames", context_frames, CONTEXT_SECONDS)
        super().__init__()

    def _clear(self) -> None:
        self._codes = np.empty((self._codec.n_codebooks, 0), np.int32)  # from the context's first frame on
        self._given = 0  # frames of them whose samples are out
        self._fading = np.empty(0, np.float32)  # the last window's samples after those

    def _feed(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        codes = self._codec.check_codes(codes)
        with advancing([self], last=last):
            self._codes = np.concatenate([self._codes, codes], axis=1)
            due = self._codes.shape[1] - (0 if last else self.lookahead_frames)
            if due <= self._given:
                return np.empty(0, np.float32)
            hop = self._codec.hop_length
            window = self._codec.decode_clip(self._codes)
            samples, n = window[self._given * hop : due * hop], self._fading.size
            ramp = (np.arange(n, dtype=np.float32) + 0.5) / max(n, 1)
            samples[:n] += (self._fading - samples[:n]) * (1 - ramp)
            self._fading = window[due * hop : (due + FADE_FRAMES) * hop]
            drop = max(0, due - self.context_frames)
            self._codes, self._given = self._codes[:, drop:], due - drop
            return samples


def _frames(codec: ClipCodec, name: str, value: int | None, seconds: float) -> int:
    if value is None:
        return round(seconds * codec.frame_rate)
    if value < 0:
        raise ValueError(f"{name} is {value}, expected at least 0")
    return value


class _Stage:
    """Rows in, frames out; a frame is computed from its own rows and those of ``reach`` frames on either side.

    At the true ends of the clip there is no more on that side, and the computation sees an end there.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], *, rows: int, reach: int, most: int) -> None:
        self._run, self._rows, self._reach, self._most = run, rows, reach, most
        self._buffer: np.ndarray | None = None  # from the context's first row on
        self._context = 0  # frames in it that are done

    def push(self, x: np.ndarray, *, last: bool) -> list[np.ndarray]:
        """New rows -> frames in pieces of at most ``most``."""
        joined = x if self._buffer is None else np.concatenate([self._buffer, x])
        pieces = []
        while True:
            frames, partial = divmod(len(joined), self._rows)
            end = frames + (partial > 0) if last else frames - self._reach
            count = min(self._most, end - self._context)
            if count <= 0:
                break
            stop = self._context + count
            whole = last and stop == end
            window = joined if whole else joined[: (stop + self._reach) * self._rows]
            pieces.append(self._run(window)[self._context : stop])
            drop = (
                max(0, stop - self._reach) // 2 * 2
            )  # minimal filtering computes frames in pairs: the same ones always
            joined, self._context = joined[drop * self._rows :], stop - drop
            if whole:
                break
        self._buffer = joined
        return pieces


class ClipEncoderStream(TakesSamples):
    """Samples in, codes out, identical to offline encoding however the samples are cut into pushes.

    A context manager. One thread at a time may use a stream (StreamError otherwise).

    Attributes
    ----------
    sample_rate : float
        Hz, of the samples that are pushed.
    """

    exact = True

    def __init__(
        self,
        codec: ClipCodec,
        *,
        reach: int,
        tail_reach: int,
        units: int,
        chunk_frames: int,
        sample_rate: float | None = None,
    ) -> None:
        self._codec, self._units = codec, units
        self.sample_rate = codec.sample_rate if sample_rate is None else sample_rate
        self._resampler = Resampler(self.sample_rate, codec.sample_rate)
        self._reach, self._tail_reach, self._chunk_frames = reach, tail_reach, chunk_frames
        super().__init__()

    def _clear(self) -> None:
        codec, most = self._codec, self._chunk_frames
        self._resampler.reset()
        self._front = _Stage(codec.encode_front, rows=codec.hop_length, reach=self._reach, most=most)
        self._tail = _Stage(codec.encode_tail, rows=1, reach=self._tail_reach, most=most)
        self._state = np.zeros((2, 2, self._units), np.float32)

    def _feed(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        samples = self._codec.check_samples(samples)
        with advancing([self], last=last):
            codes = []
            for piece in self._front.push(self._resampler.push(samples, last=last), last=last):
                x, self._state = self._codec.encode_lstm(piece, self._state)
                codes += self._tail.push(x, last=False)
            if last:
                codes += self._tail.push(np.empty((0, self._units), np.float32), last=True)
            return np.concatenate([np.empty(0, np.int32), *codes]).astype(np.int32)[np.newaxis]
