"""Decoding on a thread of its own, so that generation goes on meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

MOST_WAITING = 2  # chunks not decoded yet, the one in work included; ``submit`` waits beyond that


class Worker:
    """Decodes the chunks of one stream on one thread, in order.

    The thread works in ggml, which ctypes calls without the interpreter's lock; samples come back
    to whoever asks, and so do errors. For one caller's thread at a time.

    Parameters
    ----------
    decode : callable
        Codes [n_codebooks, n] -> samples float32 [m]; runs on the worker's thread.
    """

    def __init__(self, decode: Callable[[np.ndarray], np.ndarray]) -> None:
        self._decode = decode
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vocoder-decode")
        self._chunks: deque[Future[np.ndarray]] = deque()

    def submit(self, codes: np.ndarray) -> None:
        """Hand over a chunk; waits while more than MOST_WAITING chunks are not decoded."""
        self._chunks.append(self._executor.submit(self._decode, codes))
        undone = [chunk for chunk in self._chunks if not chunk.done()]
        if len(undone) > MOST_WAITING:
            wait(undone[:-MOST_WAITING])

    def ready(self) -> list[np.ndarray]:
        """Samples of the chunks that are decoded, in order; raises what decoding raised."""
        samples = []
        while self._chunks and self._chunks[0].done():
            samples.append(self._chunks.popleft().result())
        return samples

    def drain(self) -> list[np.ndarray]:
        """Wait for every chunk; their samples, in order."""
        wait(self._chunks)
        return self.ready()

    def close(self) -> None:
        """Drop chunks not begun, wait for the one in work, end the thread. May be called more than once."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._chunks.clear()
