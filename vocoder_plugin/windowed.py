"""Streams over codecs that see a whole clip: windows for the decoder, exact chunks for the encoder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from .audio import Resampler
from .errors import StreamError

if TYPE_CHECKING:
    from .clip_codec import ClipCodec

# Chosen by measurement (docs/wavtokenizer.md): what follows a frame and what is decoded again before it, in seconds.
LOOKAHEAD_SECONDS = 0.1
CONTEXT_SECONDS = 2.0
FADE_FRAMES = 1  # over which one window's samples give way to the next one's


class _OneThread:
    """A stream's life: one thread at a time, and nothing after its end."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Forget everything pushed so far; the next push starts a new stream."""
        with self._claimed():
            if self._closed:
                raise StreamError("this stream is closed")
            self._finished = False
            self._clear()

    def close(self) -> None:
        """Let go of what is buffered. The stream cannot be used afterwards."""
        with self._claimed():
            self._finished = self._closed = True
            self._clear()

    def _clear(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise StreamError("this stream is in use by another thread; give each thread a stream of its own")
        try:
            yield
        finally:
            self._busy.release()

    def _begin(self, last: bool) -> None:
        if self._finished:
            raise StreamError("this stream has ended; call reset() to start a new one")
        self._finished = last


class WindowedDecoderStream(_OneThread):
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

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [1, n] -> the samples that became available, float32 [m]; m may be 0.

        Raises
        ------
        CodesError
            For codes of a wrong type, shape or range; the stream goes on as if they had not come.
        StreamError
            After ``flush``, or while another thread uses the stream.
        """
        return self._advance(self._codec.check_codes(codes), last=False)

    def flush(self) -> np.ndarray:
        """End the stream: the remaining samples, float32 [m]."""
        return self.finish(np.empty((self._codec.n_codebooks, 0), np.int32))

    def finish(self, codes: np.ndarray) -> np.ndarray:
        """``push`` and ``flush`` in one, with a window less work."""
        return self._advance(self._codec.check_codes(codes), last=True)

    def _advance(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        with self._claimed():
            self._begin(last)
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

    def __enter__(self) -> WindowedDecoderStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


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


class ClipEncoderStream(_OneThread):
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

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples at ``sample_rate``, float32 [n] -> codes int32 [1, m]; m may be 0."""
        return self._advance(self._codec.check_samples(samples), last=False)

    def flush(self) -> np.ndarray:
        """End the stream: the remaining codes."""
        return self.finish(np.empty(0, np.float32))

    def finish(self, samples: np.ndarray) -> np.ndarray:
        """``push`` and ``flush`` in one."""
        return self._advance(self._codec.check_samples(samples), last=True)

    def _advance(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        with self._claimed():
            self._begin(last)
            codes = []
            for piece in self._front.push(self._resampler.push(samples, last=last), last=last):
                x, self._state = self._codec.encode_lstm(piece, self._state)
                codes += self._tail.push(x, last=False)
            if last:
                codes += self._tail.push(np.empty((0, self._units), np.float32), last=True)
            return np.concatenate([np.empty(0, np.int32), *codes]).astype(np.int32)[np.newaxis]

    def __enter__(self) -> ClipEncoderStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
