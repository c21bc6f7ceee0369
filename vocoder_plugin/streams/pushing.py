"""What every stream offers: push, flush, finish, reset and close, to one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import StreamError

if TYPE_CHECKING:
    from ..codec import Codec

S = TypeVar("S", bound="OneThread")


class OneThread:
    """The life of a stream: one thread at a time, and nothing after its end. A context manager."""

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
        """Let go of what is kept. The stream cannot be used afterwards."""
        with self._claimed():
            self._finished = self._closed = True
            self._clear()

    def _clear(self) -> None:
        raise NotImplementedError

    def _check_ready(self, pass_: Any) -> None:
        """Raise StreamError for a stream that has ended, or that does not go through this pass."""
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
def advancing(streams: Sequence[OneThread], pass_: Any = None, *, last: bool) -> Iterator[None]:
    """Claim streams that have not ended. They end with ``last``, and where the block raises: half-way."""
    with contextlib.ExitStack() as claims:
        for stream in streams:
            claims.enter_context(stream._claimed())
            stream._check_ready(pass_)
        ended = True
        try:
            yield
            ended = last
        finally:
            for stream in streams:
                stream._finished = ended


class TakesCodes(OneThread):
    """Codes in, samples out."""

    _codec: Codec

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n_codebooks, n] -> the samples that became available, float32 [m]; m may be 0.

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
        return self.finish(np.empty((self._codec.n_codebooks, 0), np.int32))

    def finish(self, codes: np.ndarray) -> np.ndarray:
        """``push`` and ``flush`` in one, with less work."""
        return self._feed(codes, last=True)

    def _feed(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        raise NotImplementedError


class TakesSamples(OneThread):
    """Samples in, codes out.

    Attributes
    ----------
    sample_rate : float
        Hz, of the samples that are pushed.
    """

    sample_rate: float

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples at ``sample_rate``, float32 [n] -> codes int32 [n_codebooks, m]; m may be 0.

        Raises
        ------
        AudioError
            For samples of a wrong type or shape or that are not finite; the stream goes on as if they had not come.
        StreamError
            After ``flush`` or another error, or while another thread uses the stream.
        """
        return self._feed(samples, last=False)

    def flush(self) -> np.ndarray:
        """End the stream: the remaining codes, int32 [n_codebooks, m]; samples short of a frame count as one."""
        return self.finish(np.empty(0, np.float32))

    def finish(self, samples: np.ndarray) -> np.ndarray:
        """``push`` and ``flush`` in one, with less work."""
        return self._feed(samples, last=True)

    def _feed(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        raise NotImplementedError
