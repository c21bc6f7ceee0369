"""What every stream offers: push, flush, finish, reset and close, to one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from ..audio.samples import Resampler
from ..errors import ArgumentError, StreamError, refusal
from .format import Format
from .row_resampler import RowResampler

S = TypeVar("S", bound="OneThread")


class OneThread:
    """The life of a stream: one thread at a time, and nothing after its end. A context manager."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._closed = False
        self.reset()

    def push(self, data: np.ndarray, /) -> np.ndarray:
        """Take the next piece of what the stream takes, and give what became available."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget everything pushed so far; the next push starts a new stream."""
        with self._claimed():
            if self._closed:
                raise StreamError("this stream is closed")
            self._finished = False
            self._clear()

    def close(self) -> None:
        """Let go of what is kept. The stream cannot be used afterwards."""
        with self._claimed():
            self._finished = self._closed = True
            self._clear()

    def _clear(self) -> None:
        raise NotImplementedError

    def _check_ready(self, head: str) -> None:
        """Raise StreamError for a stream that has ended, or that does not give this head."""
        if self._finished:
            raise StreamError("this stream has ended; call reset() to start a new one")

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise StreamError("this stream is in use by another thread; give each thread a stream of its own")
        try:
            yield
        finally:
            self._busy.release()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@contextlib.contextmanager
def advancing(streams: Sequence[OneThread], head: str, *, last: bool) -> Iterator[None]:
    """Claim streams that have not ended. They end with ``last``, and where the block raises: half-way."""
    with contextlib.ExitStack() as claims:
        for stream in streams:
            claims.enter_context(stream._claimed())
            stream._check_ready(head)
        ended = True
        try:
            yield
            ended = last
        finally:
            for stream in streams:
                stream._finished = ended


class TakesCodes(OneThread):
    """Codes in, samples out."""

    _format: Format

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [rows of a frame, n] -> the samples that became available, float32 [m]; m may be 0.

        Raises
        ------
        CodesError
            For codes of a wrong type, shape or range; the stream goes on as if they had not come.
        StreamError
            After ``flush`` or another error, or while another thread uses the stream.
        """
        return self._feed(codes, last=False)

    def flush(self) -> np.ndarray:
        """End the stream: the remaining samples, float32 [m]."""
        return self.finish(np.empty((len(self._format.rows), 0), np.int32))

    def finish(self, codes: np.ndarray) -> np.ndarray:
        """``push`` and ``flush`` in one, with less work."""
        return self._feed(codes, last=True)

    def _feed(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        raise NotImplementedError


class TakesSamples(OneThread):
    """Samples in, codes out, or the latents before quantisation: both advance the stream, so either may be asked for.

    Attributes
    ----------
    sample_rate : float
        Hz, of the samples that are pushed; others than the codec's are resampled as they come.
    frame_rate : float
        Latents per second. A stream with a rate of its own interpolates them and gives no codes.
    """

    def __init__(
        self, format: Format, latent_dim: int, *, sample_rate: float | None = None, frame_rate: float | None = None
    ) -> None:
        self._format, self._latent_dim = format, latent_dim
        self.sample_rate = format.sample_rate if sample_rate is None else sample_rate
        self.frame_rate = format.frame_rate if frame_rate is None else frame_rate
        if not 0 < self.frame_rate <= format.sample_rate:
            raise ArgumentError(
                refusal("frame_rate", repr(frame_rate), f"more than 0 and at most {format.sample_rate}")
            )
        self._resampler = Resampler(self.sample_rate, format.sample_rate)
        self._interpolated = (
            RowResampler(format.frame_rate, self.frame_rate, latent_dim)
            if self.frame_rate != format.frame_rate
            else None
        )
        super().__init__()

    def _clear(self) -> None:
        self._resampler.reset()
        if self._interpolated:
            self._interpolated.reset()

    def _check_ready(self, head: str) -> None:
        super()._check_ready(head)
        if self._interpolated and head != "latents":
            raise StreamError(
                f"this stream gives latents at {self.frame_rate:g} frames/s; codes come at "
                f"{self._format.frame_rate:g}, from a stream without frame_rate"
            )

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples at ``sample_rate``, float32 [n] -> codes int32 [rows of a frame, m]; m may be 0.

        Raises
        ------
        AudioError
            For samples of a wrong type or shape or that are not finite; the stream goes on as if they had not come.
        StreamError
            After ``flush`` or another error, or while another thread uses the stream.
        """
        return self._feed("encode", samples, last=False)

    def flush(self) -> np.ndarray:
        """End the stream: the remaining codes, int32 [rows, m]; samples short of a frame are filled up with zeros."""
        return self.finish(np.empty(0, np.float32))

    def finish(self, samples: np.ndarray) -> np.ndarray:
        """``push`` and ``flush`` in one, with less work."""
        return self._feed("encode", samples, last=True)

    def push_latents(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples at ``sample_rate``, float32 [n] -> latents float32 [m, latent_dim]; m may be 0."""
        return self._feed("latents", samples, last=False)

    def flush_latents(self) -> np.ndarray:
        """End the stream: the remaining latents; a last partial frame is filled up with zeros."""
        return self.finish_latents(np.empty(0, np.float32))

    def finish_latents(self, samples: np.ndarray) -> np.ndarray:
        """``push_latents`` and ``flush_latents`` in one."""
        return self._feed("latents", samples, last=True)

    def _given(self, head: str, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        """Codes [rows, n] or latents [n, latent_dim] of the chunks that were run, as the caller gets them."""
        if head == "encode":
            return np.concatenate([np.empty((len(self._format.rows), 0), np.int32), *parts], axis=1)
        latents = np.concatenate([np.empty((0, self._latent_dim), np.float32), *parts])
        return self._interpolated.push(latents, last=last) if self._interpolated else latents

    def _feed(self, head: str, samples: np.ndarray, *, last: bool) -> np.ndarray:
        raise NotImplementedError
