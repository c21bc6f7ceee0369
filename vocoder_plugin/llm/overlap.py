"""Decoding on a thread of its own, so that generation goes on meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

MOST_WAITING = 2  # chunks not decoded yet, the one in work included; ``submit`` waits beyond that


class Worker:
    """Decodes the chunks of one stream on one thread, in order.

    The thread works in ggml, which ctypes calls without the interpreter's lock; samples come back
    to whoever asks, and so do errors, after which no chunk is decoded any more. For one caller's thread at a time.

    Parameters
    ----------
    decode : callable
        Codes [n_codebooks, n] -> samples float32 [m]; runs on the worker's thread.
    """

    def __init__(self, decode: Callable[[np.ndarray], np.ndarray]) -> None:
        self._decode = decode
        self._changed = threading.Condition()
        self._waiting: deque[np.ndarray] = deque()
        self._working = self._closed = False
        self._samples: deque[np.ndarray] = deque()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, codes: np.ndarray) -> None:
        """Hand over a chunk; waits while more than MOST_WAITING chunks are not decoded."""
        with self._changed:
            self._waiting.append(codes)
            self._changed.notify_all()
        if self._thread is None:  # A daemon: whoever forgets to close must not keep the interpreter from its end.
            self._thread = threading.Thread(target=self._run, name="vocoder-decode", daemon=True)
            self._thread.start()
        self._wait_until(lambda: len(self._waiting) + self._working <= MOST_WAITING)

    def ready(self) -> list[np.ndarray]:
        """Samples of the chunks that are decoded, in order; raises what decoding raised."""
        with self._changed:
            samples = list(self._samples)
            self._samples.clear()
            if not samples and self._error is not None:
                raise self._error
        return samples

    def drain(self) -> list[np.ndarray]:
        """Wait for every chunk; their samples, in order."""
        self._wait_until(lambda: not self._waiting and not self._working)
        with self._changed:
            if self._error is not None:
                raise self._error
        return self.ready()

    def close(self) -> None:
        """Drop chunks not begun, wait for the one in work, end the thread. May be called more than once."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._samples.clear()

    def _wait_until(self, true: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or true())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed or self._error is not None:
                    return
                codes, self._working = self._waiting.popleft(), True
            try:
                samples, error = self._decode(codes), None
            except BaseException as raised:  # raised again on the caller's thread
                samples, error = None, raised
            with self._changed:
                self._working, self._error = False, error
                if samples is not None:
                    self._samples.append(samples)
                self._changed.notify_all()
